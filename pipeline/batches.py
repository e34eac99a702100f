"""Outcomes of raw positions, as runs.

Comes in: the offsets of a batch's records, and who takes which of them out. Goes out: half-open runs of
positions that share a fate, and counts. Invariant: every position of ``[first_offset, next_offset)`` that
holds a record has exactly one outcome; the ones that passed are the complement of the runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

PASSED = "passed"
FILTERED = "filtered"
QUARANTINED = "quarantined"
REPEAT = "repeat"


@dataclass(frozen=True, order=True)
class Run:
    """Positions ``[first, next)`` with one fate; ``reason`` is a rule's or check's name, never a value."""

    first: int
    next: int
    outcome: str
    reason: str


def ranges(offsets: np.ndarray) -> list[tuple[int, int]]:
    """Ascending offsets as half-open ranges of neighbours."""
    if len(offsets) == 0:
        return []
    breaks = np.flatnonzero(np.diff(offsets) != 1) + 1
    starts, ends = np.concatenate(([0], breaks)), np.concatenate((breaks, [len(offsets)])) - 1
    return [(int(offsets[s]), int(offsets[e]) + 1) for s, e in zip(starts, ends, strict=True)]


class Outcomes:
    """What became of each record of one batch; all passed until said otherwise, and the first word wins.

    ``refused`` are positions whose records could not even be read (a corrupt or oversized record batch):
    quarantined from the start.
    """

    def __init__(self, offsets: np.ndarray, refused: Sequence[tuple[int, int, str]] = ()) -> None:
        self.offsets = offsets
        self._refused = [Run(first, end, QUARANTINED, reason) for first, end, reason in refused]
        self._codes = np.zeros(len(offsets), dtype=np.int16)
        self._sealed = np.zeros(len(offsets), dtype=bool)
        self._kinds: list[tuple[str, str]] = [(PASSED, "")]

    def mark(self, rows: np.ndarray, outcome: str, reason: str) -> None:
        """Give the rows (indices into the batch) an outcome, unless they have one already."""
        rows = rows[(self._codes[rows] == 0) & ~self._sealed[rows]]
        if len(rows) == 0:
            return
        kind = (outcome, reason)
        if kind not in self._kinds:
            self._kinds.append(kind)
        self._codes[rows] = self._kinds.index(kind)

    def decide(self, end: int, runs: Iterable[Run]) -> None:
        """Take over what was decided and recorded earlier for all positions below ``end``; final."""
        for run in runs:
            rows = np.arange(*np.searchsorted(self.offsets, (run.first, min(run.next, end))))
            self.mark(rows, run.outcome, run.reason)
        self._sealed[: np.searchsorted(self.offsets, end)] = True

    def passed(self) -> np.ndarray:
        """Row indices that no one has taken out, ascending."""
        return np.flatnonzero(self._codes == 0)

    def is_open(self, rows: np.ndarray) -> np.ndarray:
        """Mask over ``rows``: not taken out yet."""
        return self._codes[rows] == 0

    def is_sealed(self, rows: np.ndarray) -> np.ndarray:
        """Mask over ``rows``: decided earlier, so no rule of today may change it."""
        return self._sealed[rows]

    def quarantined(self) -> tuple[np.ndarray, list[str]]:
        """Offsets and reasons of all that goes to quarantine, unreadable positions included."""
        offsets = [np.arange(run.first, run.next) for run in self._refused]
        reasons = [run.reason for run in self._refused for _ in range(run.next - run.first)]
        for code, (outcome, reason) in enumerate(self._kinds):
            if outcome == QUARANTINED:
                rows = np.flatnonzero(self._codes == code)
                offsets.append(self.offsets[rows])
                reasons.extend([reason] * len(rows))
        return np.concatenate(offsets) if offsets else np.empty(0, dtype=np.int64), reasons

    def counts(self, start: int = 0) -> dict[tuple[str, str], int]:
        """Records per (outcome, reason) at positions from ``start`` on, without empty ones."""
        codes = self._codes[np.searchsorted(self.offsets, start) :]
        totals = np.bincount(codes, minlength=len(self._kinds))
        counts = {kind: int(n) for kind, n in zip(self._kinds, totals, strict=True) if n}
        for run in self._refused:
            size = run.next - max(run.first, start)
            if size > 0:
                kind = (run.outcome, run.reason)
                counts[kind] = counts.get(kind, 0) + size
        return counts

    def runs(self, start: int = 0) -> list[Run]:
        """Runs of all that did not pass, ascending, from ``start`` on; a hole in the offsets ends a run."""
        skip = int(np.searchsorted(self.offsets, start))
        codes, offsets = self._codes[skip:], self.offsets[skip:]
        found = [
            Run(max(run.first, start), run.next, run.outcome, run.reason)
            for run in self._refused
            if run.next > start
        ]
        if codes.any():
            breaks = np.flatnonzero((np.diff(codes) != 0) | (np.diff(offsets) != 1)) + 1
            starts = np.concatenate(([0], breaks))
            ends = np.concatenate((breaks, [len(codes)])) - 1
            taken = codes[starts] != 0
            found += [
                Run(int(offsets[s]), int(offsets[e]) + 1, *self._kinds[codes[s]])
                for s, e in zip(starts[taken], ends[taken], strict=True)
            ]
        return sorted(found)
