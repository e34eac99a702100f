"""Records held back so that a crowd can gather: several runs of one partition, looked at together.

Comes in: runs of records, each continuing where the one before ended. Goes out: one run that covers them all,
once it is old or large enough. Invariant: nothing that is held is remembered as processed; after a crash it
is read again, for the position only moves when a joined run was delivered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

HELD_RECORDS_MAX = 200_000  # per partition: memory is bounded, and a crowd of that many rows has gathered


@dataclass(frozen=True)
class Joined:
    """Several runs as one; the same attributes as each of them."""

    topic: str
    partition: int
    first_offset: int
    next_offset: int
    offsets: np.ndarray
    timestamps_ms: np.ndarray
    values: pa.BinaryArray
    refused: list[tuple[int, int, str]]


@dataclass
class Hold:
    """Runs of one partition, from one generation of its claim. ``hold_s`` 0: nothing waits."""

    hold_s: float = 0.0
    records_max: int = HELD_RECORDS_MAX
    _runs: list[Any] = field(default_factory=list)
    _since_s: float = 0.0

    def __len__(self) -> int:
        return sum(len(run.offsets) for run in self._runs)

    def add(self, run: Any, now_s: float) -> None:
        """Hold one more; it must continue the last one. ``now_s``: a monotonic clock."""
        assert not self._runs or self._runs[-1].next_offset == run.first_offset
        if not self._runs:
            self._since_s = now_s
        self._runs.append(run)

    def due_in(self, now_s: float) -> float | None:
        """Seconds until what is held has to go, 0 when now, None when nothing is held."""
        if not self._runs:
            return None
        if len(self) >= self.records_max:
            return 0.0
        return max(0.0, self._since_s + self.hold_s - now_s)

    def take(self) -> Any:
        """Everything that is held as one run; holds nothing afterwards."""
        runs, self._runs = self._runs, []
        if len(runs) == 1:
            return runs[0]
        first = runs[0]
        return Joined(
            first.topic, first.partition, first.first_offset, runs[-1].next_offset,
            np.concatenate([run.offsets for run in runs]),
            np.concatenate([run.timestamps_ms for run in runs]),
            pa.concat_arrays([run.values for run in runs]),
            [refusal for run in runs for refusal in run.refused],
        )  # fmt: skip

    def clear(self) -> None:
        """Forget what is held: its partition goes back to an earlier position, or to another instance."""
        self._runs = []
