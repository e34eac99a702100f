"""How fast a backlog may leave, so that a link that has just come back is not taken by what is old.

Comes in: what was sent of the backlog. Goes out: when the next of it may go. Invariant: over any time that
begins with the link's return, no more than the rate times that time was sent, and one step.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pipeline.config import EdgeConfig
from pipeline.edge.blocks import Block

PACED_STEP_S = 0.25
PACED_STEP_BYTES = 65_536  # a paced step is small (one block at least), so that others need not wait for it


class Drain:
    """The pace of one region's backlog; without rates it never holds anything up."""

    def __init__(self, settings: EdgeConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._events_per_s = settings.drain_events_per_s
        self._bytes_per_s = settings.drain_bytes_per_s
        self._step_bytes = settings.step_bytes
        self._clock = clock
        self.next_s = 0.0  # on the clock

    @property
    def paced(self) -> bool:
        """Whether there is a rate."""
        return self._events_per_s is not None or self._bytes_per_s is not None

    @property
    def step_bytes(self) -> int:
        """How much of the backlog goes at once."""
        return min(self._step_bytes, PACED_STEP_BYTES) if self.paced else self._step_bytes

    def share(self, blocks: list[Block]) -> list[Block]:
        """The first of them that make PACED_STEP_S of the pace; one at least."""
        if self._events_per_s is None:
            return blocks
        left = self._events_per_s * PACED_STEP_S
        for count, block in enumerate(blocks):
            left -= len(block.values)
            if left < 0 < count:
                return blocks[:count]
        return blocks

    def sent(self, events: int, size: int) -> None:
        """So much of the backlog went."""
        takes_s = 0.0
        if self._events_per_s is not None:
            takes_s = events / self._events_per_s
        if self._bytes_per_s is not None:
            takes_s = max(takes_s, size / self._bytes_per_s)
        self.next_s = max(self.next_s, self._clock()) + takes_s
