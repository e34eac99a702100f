"""What a value may be: ranges, finite numbers, plausible times, a jurisdiction that belongs here.

Comes in: a decoded RecordBatch, or one mapping of a producer. Goes out: one code per row (the first check
that failed), or a RecordError. Used by the edge before it acknowledges and by the processor on what
arrives; both see the same rules. Messages name the field, never its value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.admission import validate_one
from pipeline.events import EventField, EventType
from pipeline.reasons import DAY_S, MICROS, TIMESTAMP_MAX_US, TIMESTAMP_MIN_US, Reason

if TYPE_CHECKING:
    from pipeline.config import LimitsConfig

__all__ = ["Checks", "Findings", "Reason", "validate_one"]

# A Python constant handed to an Arrow kernel costs 40 µs a call (it looks for pandas), a scalar 4.
EMPTY, FALSE = pa.scalar(""), pa.scalar(False)


@dataclass(frozen=True)
class Findings:
    """One code per row: -1 is good, else an index into ``reasons`` of (reason, field name)."""

    codes: np.ndarray
    reasons: list[tuple[Reason, str]]

    @property
    def all_good(self) -> bool:
        """Whether no row failed."""
        return not bool((self.codes >= 0).any())

    def good(self) -> np.ndarray:
        """Indices of the rows that passed, ascending."""
        return np.flatnonzero(self.codes < 0)

    def failed(self) -> dict[tuple[Reason, str], np.ndarray]:
        """Row indices per (reason, field), for those that occur."""
        return {
            self.reasons[code]: np.flatnonzero(self.codes == code)
            for code in np.unique(self.codes)
            if code >= 0
        }


Mask = np.ndarray  # of bool, per row: True where the check failed
Check = Callable[[pa.RecordBatch, int], Iterator[tuple[Reason, str, Mask]]]


class Checks:
    """The checks of one event in one region.

    ``jurisdictions``: those of this region; ``known``: those of all regions. Order: presence, jurisdiction,
    times, then the fields in schema order.
    """

    def __init__(
        self, event: EventType, limits: LimitsConfig, jurisdictions: frozenset[str], known: frozenset[str]
    ) -> None:
        self.event = event
        self._age_us = int(limits.event_age_max_s * MICROS)
        self._future_us = int(limits.event_future_max_s * MICROS)
        self._here = pa.array(sorted(jurisdictions), pa.string())
        self._known = pa.array(sorted(known), pa.string())
        self._checks: list[Check] = [self._jurisdiction, self._event_time]
        for index, field in enumerate(event.fields):
            if field.name not in ("jurisdiction", "event_time"):
                self._checks += [_column_check(index, check) for check in leaf_checks(field)]
        self._required = [f.name for f in event.fields if not f.nullable and f.name != "jurisdiction"]

    def run(self, batch: pa.RecordBatch, now_us: int) -> Findings:
        """Check every row; ``batch`` has the event's Arrow schema, ``now_us`` is µs since the epoch."""
        codes = np.full(len(batch), -1, dtype=np.int16)
        reasons: list[tuple[Reason, str]] = []
        if len(batch) == 0:
            return Findings(codes, reasons)
        for check in [self._presence, *self._checks]:
            for reason, field, mask in check(batch, now_us):
                hit = mask & (codes < 0)
                if hit.any():
                    codes[hit] = len(reasons)
                    reasons.append((reason, field))
        return Findings(codes, reasons)

    def _presence(self, batch: pa.RecordBatch, _now_us: int) -> Iterator[tuple[Reason, str, Mask]]:
        """Arrow lets a column that is declared without nulls hold some; the encoder would write nonsense."""
        for name in self._required:
            column = batch.column(name)
            if column.null_count:
                yield Reason.FIELD_MISSING, name, ~_valid(column)

    def _jurisdiction(self, batch: pa.RecordBatch, _now_us: int) -> Iterator[tuple[Reason, str, Mask]]:
        column = batch.column("jurisdiction")
        if column.null_count:
            column = column.fill_null(EMPTY)
        elsewhere = pc.invert(pc.is_in(column, value_set=self._here))
        if not pc.any(elsewhere).as_py():
            return
        yield Reason.JURISDICTION_MISSING, "jurisdiction", _mask(pc.equal(column, EMPTY))
        unknown = pc.invert(pc.is_in(column, value_set=self._known))
        yield Reason.JURISDICTION_UNKNOWN, "jurisdiction", _mask(unknown)
        yield Reason.JURISDICTION_ELSEWHERE, "jurisdiction", _mask(elsewhere)

    def _event_time(self, batch: pa.RecordBatch, now_us: int) -> Iterator[tuple[Reason, str, Mask]]:
        column = batch.column("event_time")
        if column.null_count == len(column):
            return
        micros = _numbers(column.cast(pa.int64()))
        latest, earliest = now_us + self._future_us, now_us - self._age_us
        if int(micros.max()) > latest:
            yield Reason.TIME_FUTURE, "event_time", micros > latest
        if int(micros.min()) < earliest:
            yield Reason.TIME_ANCIENT, "event_time", micros < earliest


LeafCheck = Callable[[pa.Array], Iterator[tuple[Reason, str, Mask]]]


def _column_check(index: int, check: LeafCheck) -> Check:
    def run(batch: pa.RecordBatch, _now_us: int) -> Iterator[tuple[Reason, str, Mask]]:
        return check(batch.column(index))

    return run


def leaf_checks(field: EventField) -> list[LeafCheck]:
    """The checks of one column; for a list or struct those of all that is in it."""
    kind = field.kind
    if kind in ("float", "double"):
        return [_float_check(field)]
    if kind in ("int", "long"):
        return [_integer_check(field, field.minimum, field.maximum)]
    if kind == "timestamp-micros":
        return [_integer_check(field, TIMESTAMP_MIN_US, TIMESTAMP_MAX_US)]
    if kind == "timestamp-millis":
        return [_integer_check(field, TIMESTAMP_MIN_US // 1000, TIMESTAMP_MAX_US // 1000)]
    if kind == "date":
        return [
            _integer_check(field, TIMESTAMP_MIN_US // MICROS // DAY_S, TIMESTAMP_MAX_US // MICROS // DAY_S)
        ]
    if kind == "enum":
        return [_enum_check(field)]
    if kind == "array":
        return [_items_check(check) for check in _nested_checks(field.item())]
    if kind == "record":
        return [
            _child_check(i, check)
            for i, child in enumerate(field.children())
            for check in _nested_checks(child)
        ]
    return [_source_check] if field.name == "source" else []


def _nested_checks(field: EventField) -> list[LeafCheck]:
    return leaf_checks(field) if field.nullable else [_null_check(field.name), *leaf_checks(field)]


def _null_check(name: str) -> LeafCheck:
    """Inside lists and structs Arrow declares nothing, so nulls are looked for where the schema has none."""

    def check(column: pa.Array) -> Iterator[tuple[Reason, str, Mask]]:
        if column.null_count:
            yield Reason.FIELD_MISSING, name, ~_valid(column)

    return check


def _float_check(field: EventField) -> LeafCheck:
    low = -np.inf if field.minimum is None else float(field.minimum)
    high = np.inf if field.maximum is None else float(field.maximum)
    bounded = np.isfinite(low) and np.isfinite(high)

    def check(column: pa.Array) -> Iterator[tuple[Reason, str, Mask]]:
        if column.null_count == len(column):
            return
        values = _numbers(column).astype(np.float64, copy=False)
        # NaN becomes min and max, and makes both comparisons false: a clean column is cleared here.
        if values.min() >= low and values.max() <= high and (bounded or np.isfinite(values).all()):
            return
        valid = _valid(column)
        yield Reason.NOT_FINITE, field.name, valid & ~np.isfinite(values)
        with np.errstate(invalid="ignore"):
            yield Reason.RANGE, field.name, valid & ((values < low) | (values > high))

    return check


def _integer_check(field: EventField, low: float | None, high: float | None) -> LeafCheck:
    def check(column: pa.Array) -> Iterator[tuple[Reason, str, Mask]]:
        if (low is None and high is None) or column.null_count == len(column):
            return
        values = _numbers(column if pa.types.is_integer(column.type) else _as_integers(column))
        if (low is None or int(values.min()) >= low) and (high is None or int(values.max()) <= high):
            return
        mask = np.zeros(len(values), dtype=bool)
        if low is not None:
            mask |= values < low
        if high is not None:
            mask |= values > high
        yield Reason.RANGE, field.name, _valid(column) & mask

    return check


def _as_integers(column: pa.Array) -> pa.Array:
    return column.cast(pa.int32() if pa.types.is_date32(column.type) else pa.int64())


def _enum_check(field: EventField) -> LeafCheck:
    symbols = pa.array(field.symbols, pa.string())

    def check(column: pa.Array) -> Iterator[tuple[Reason, str, Mask]]:
        known = pc.is_in(column, value_set=symbols, skip_nulls=True)
        if column.null_count or not pc.all(known).as_py():
            yield Reason.RANGE, field.name, _valid(column) & ~_mask(known)

    return check


def _source_check(column: pa.Array) -> Iterator[tuple[Reason, str, Mask]]:
    """An event without a source has no partition and no identity."""
    empty = pc.equal(column, EMPTY)
    if pc.any(empty).as_py():
        yield Reason.RANGE, "source", _mask(empty)


def _items_check(check: LeafCheck) -> LeafCheck:
    """Run a check over the items of a list column; a row fails when one of its items does."""

    def run(column: pa.Array) -> Iterator[tuple[Reason, str, Mask]]:
        items = pc.list_flatten(column)
        if len(items) == 0:
            return
        parents = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
        for reason, field, failed in check(items):
            mask = np.zeros(len(column), dtype=bool)
            mask[parents[failed]] = True
            yield reason, field, mask

    return run


def _child_check(index: int, check: LeafCheck) -> LeafCheck:
    def run(column: pa.Array) -> Iterator[tuple[Reason, str, Mask]]:
        valid = _valid(column)
        for reason, field, failed in check(pc.struct_field(column, [index])):
            yield reason, field, failed & valid

    return run


def _numbers(column: pa.Array) -> np.ndarray:
    """The values as numpy; a null becomes the first valid value, so that min and max do not see it."""
    if column.null_count == 0:
        return column.to_numpy(zero_copy_only=False)
    first: Any = column.drop_null()[0]
    return column.fill_null(first).to_numpy(zero_copy_only=False)


def _valid(column: pa.Array) -> np.ndarray:
    return column.is_valid().to_numpy(zero_copy_only=False)


def _mask(flags: pa.Array) -> np.ndarray:
    return (flags.fill_null(FALSE) if flags.null_count else flags).to_numpy(zero_copy_only=False)
