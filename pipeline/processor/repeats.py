"""Which events of a batch were here before.

Comes in: identities (spool, lane, sequence) in log order, and the highest sequence seen per (spool, lane) of
this partition. Goes out: the rows that repeat, and what is seen now. Invariant: the edge forwards in order
per partition, so a sequence at or below the highest one seen is a repeat, never a late original.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Seen = Mapping[tuple[int, int], int]  # (spool, lane) -> highest sequence


def find_repeats(
    spool: np.ndarray, lane: np.ndarray, sequence: np.ndarray, seen: Seen
) -> tuple[np.ndarray, dict[tuple[int, int], int]]:
    """Row indices that repeat (ascending), and the new highest sequence of each (spool, lane) present.

    Spool 0 is "no identity" (a producer without a spool): never a repeat.
    """
    if len(spool) == 0:
        return np.empty(0, dtype=np.int64), {}
    order, starts = _groups(spool, lane)
    sorted_sequence = sequence[order]
    ends = np.append(starts[1:], len(order))
    heads = order[starts]
    keys = list(zip(spool[heads].tolist(), lane[heads].tolist(), strict=True))
    known = np.array([seen.get(key, 0) for key in keys], dtype=np.int64)
    highest = np.maximum.reduceat(sorted_sequence, starts)

    rises = np.diff(sorted_sequence, prepend=sorted_sequence[:1] - 1) > 0
    rises[starts] = sorted_sequence[starts] > known
    named = np.array([key[0] != 0 for key in keys])
    broken = np.logical_and.reduceat(rises, starts) == 0
    repeats = [
        _repeats_of(order[starts[g] : ends[g]], sorted_sequence[starts[g] : ends[g]], known[g])
        for g in np.flatnonzero(broken & named)
    ]
    updates = {
        key: int(top) for key, top, old in zip(keys, highest, known, strict=True) if key[0] != 0 and top > old
    }
    return np.sort(np.concatenate(repeats)) if repeats else np.empty(0, dtype=np.int64), updates


def _groups(spool: np.ndarray, lane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A stable order that brings each (spool, lane) together, and where each group starts."""
    if (spool == spool[0]).all() and (lane == lane[0]).all():
        return np.arange(len(spool)), np.array([0])
    order = np.lexsort((lane, spool))  # stable: log order stays inside a group
    changes = (np.diff(spool[order]) != 0) | (np.diff(lane[order]) != 0)
    return order, np.concatenate(([0], np.flatnonzero(changes) + 1))


def _repeats_of(rows: np.ndarray, sequence: np.ndarray, known: np.int64) -> np.ndarray:
    """The rows of one group whose sequence does not exceed all before it."""
    before = np.maximum.accumulate(np.concatenate(([known], sequence[:-1])))
    return rows[sequence <= before]
