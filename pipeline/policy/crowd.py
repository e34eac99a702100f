"""k-anonymity: a row leaves only in a crowd of at least k people who share its quasi-identifiers.

Comes in: the rows as the operators made them, whom each is about, and when it happened. Goes out: the rows
that no such crowd hides. k counts *subjects*, not rows: a thousand readings of one meter are a crowd of one
(Sweeney 2002, k-anonymity; de Montjoye 2013 for why it is counted per window of time).

A crowd is counted over the rows that are looked at together. That is safe whatever these rows are: each set
that leaves is k-anonymous by itself, and a union of such sets is. Fewer rows together only means that more of
them stay behind, which is why a leg holds rows back for a while (see :mod:`pipeline.processor.hold`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa

SUPPRESSED = "crowd"  # the reason under which such rows are counted
_DAY_US, _HOUR_US = 86_400_000_000, 3_600_000_000
WINDOW_US = {"hour": _HOUR_US, "day": _DAY_US}


class CrowdRule(Protocol):
    """What the pack says: at least ``k`` subjects share the values of ``fields`` within a ``window`` of the
    event's own time (UTC)."""

    @property
    def k(self) -> int: ...
    @property
    def window(self) -> Literal["hour", "day"]: ...


def too_few(rule: CrowdRule, traits: Sequence[pa.Array], subjects: pa.Array, times: pa.Array) -> np.ndarray:
    """Rows (ascending) whose group has fewer than ``rule.k`` different subjects.

    ``traits``: the columns that have to be shared, after their operators; a null is a value like any other.
    ``subjects``: whom the row is about, before the operators; a row without one helps no crowd.
    ``times``: event time, timestamp, never null. All have the same length.
    """
    if len(subjects) == 0:
        return np.empty(0, dtype=np.int64)
    groups = _codes(times.cast(pa.int64()).to_numpy(zero_copy_only=False) // WINDOW_US[rule.window])
    for trait in traits:
        groups = _paired(groups, _column_codes(trait))
    named = np.asarray(subjects.is_valid())
    people = np.unique(_pairs(groups[named], _column_codes(subjects)[named]), axis=0)
    sizes = np.bincount(people[:, 0], minlength=int(groups.max()) + 1)
    return np.flatnonzero(sizes[groups] < rule.k)


def _column_codes(column: pa.Array) -> np.ndarray:
    """A number per different value, nulls with one of their own."""
    return np.asarray(column.dictionary_encode(null_encoding="encode").indices).astype(np.int64)


def _codes(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _pairs(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.stack((left, right), axis=1)


def _paired(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """A number per different pair; the codes stay below the row count, so the product cannot overflow."""
    return _codes(left * (int(right.max()) + 1) + right)
