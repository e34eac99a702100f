"""What is killed when: one seed, one schedule, printed before it runs.

A fault is due when the share ``at`` of the events has been accepted, whatever the time, so that it falls into
the flow and not after it. Each kind is a line of its own: its faults follow each other, those of different
lines overlap as they come.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

EDGE, BROKER, PROCESSOR, STORE, ZOMBIE, FOREIGN = "edge", "broker", "processor", "store", "zombie", "foreign"
BORDER, CORE_STORE = "border", "core store"
KILLS = {EDGE: 6, BROKER: 2, PROCESSOR: 2, STORE: 3, ZOMBIE: 2, FOREIGN: 3, BORDER: 3, CORE_STORE: 2}
PAUSE_MAX_S = {
    EDGE: 1.5, BROKER: 3.0, PROCESSOR: 1.5, STORE: 1.5, ZOMBIE: 1.0, FOREIGN: 0.0,
    BORDER: 1.5, CORE_STORE: 1.5,
}  # fmt: skip
LINES = {ZOMBIE: PROCESSOR}  # both decide which processors run, so they take turns


@dataclass(frozen=True)
class Fault:
    """``pause_s``: how long the process stays dead; ``luck`` in [0, 1): for what is decided on the spot."""

    at: float
    kind: str
    pause_s: float
    luck: float

    @property
    def line(self) -> str:
        """Faults of one line follow each other."""
        return LINES.get(self.kind, self.kind)

    def __str__(self) -> str:
        return f"{self.at:6.1%}  {self.kind:<10}  {self.pause_s:.2f} s"


def schedule(seed: int, kills: Mapping[str, int] = KILLS) -> list[Fault]:
    """The faults of a seed in the order in which they are due."""
    chance = random.Random(seed)
    faults = [
        Fault(chance.uniform(0.03, 0.95), kind, chance.uniform(0.0, PAUSE_MAX_S[kind]), chance.random())
        for kind, count in kills.items()
        for _ in range(count)
    ]
    return sorted(faults, key=lambda fault: fault.at)
