"""Outcomes of raw positions, as runs.

Comes in: one outcome code per record of a batch, with its offset. Goes out: half-open runs of positions
that share a fate, and counts. Invariant: every position of ``[first_offset, next_offset)`` that holds a
record has exactly one outcome; the ones that passed are the complement of the runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PASSED = "passed"
FILTERED = "filtered"
QUARANTINED = "quarantined"
REPEAT = "repeat"


@dataclass(frozen=True)
class Run:
    """Positions ``[first, next)`` with one fate; ``reason`` is a rule's or check's name, never a value."""

    first: int
    next: int
    outcome: str
    reason: str


class Outcomes:
    """What became of each record of one batch; all passed until said otherwise. First word wins."""

    def __init__(self, offsets: np.ndarray) -> None:
        self.offsets = offsets
        self._codes = np.zeros(len(offsets), dtype=np.int16)
        self._kinds: list[tuple[str, str]] = [(PASSED, "")]

    def mark(self, rows: np.ndarray, outcome: str, reason: str) -> None:
        """Give the rows (indices into the batch) an outcome, unless they have one already."""
        if len(rows) == 0:
            return
        kind = (outcome, reason)
        if kind not in self._kinds:
            self._kinds.append(kind)
        open_rows = rows[self._codes[rows] == 0]
        self._codes[open_rows] = self._kinds.index(kind)

    def passed(self) -> np.ndarray:
        """Row indices that no one has taken out, ascending."""
        return np.flatnonzero(self._codes == 0)

    def counts(self) -> dict[tuple[str, str], int]:
        """Records per (outcome, reason), without empty ones."""
        totals = np.bincount(self._codes, minlength=len(self._kinds))
        return {kind: int(n) for kind, n in zip(self._kinds, totals, strict=True) if n}

    def runs(self) -> list[Run]:
        """Runs of all that did not pass, ascending; offsets that hold no record never lie inside one."""
        codes, offsets = self._codes, self.offsets
        if len(codes) == 0:
            return []
        breaks = np.flatnonzero((np.diff(codes) != 0) | (np.diff(offsets) != 1)) + 1
        starts = np.concatenate(([0], breaks))
        ends = np.concatenate((breaks, [len(codes)])) - 1
        return [
            Run(int(offsets[s]), int(offsets[e]) + 1, *self._kinds[codes[s]])
            for s, e in zip(starts, ends, strict=True)
            if codes[s]
        ]
