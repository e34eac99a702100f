"""Columns of a foreign file as columns of an event, with every row that does not fit named.

Comes in: an Arrow array (text, numbers or timestamps) and the wanted type. Goes out: an array of that type
and the rows that could not be converted, null there. Nothing is rounded, cut or wrapped in silence.
Time leaves as ``timestamp[us]`` without a zone, which is UTC everywhere in the pipeline.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.mapping import ISO, TimeRule
from pipeline.units import Conversion

TIME = pa.timestamp("us")
NO_ROWS = np.empty(0, dtype=np.int64)
TIME_FIRST_US = -62_135_596_800_000_000  # year 1
TIME_NEXT_US = 253_402_300_800_000_000  # year 10000
_ZONE = r"\d:\d\d.*(Z|[+-]\d\d(:?\d\d)?)$"
_US_PER_UNIT = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}

Cast = tuple[pa.Array, np.ndarray]  # the converted column, and the rows that did not fit, ascending


def plain(column: pa.Array) -> Cast:
    """Text in any of Arrow's dresses (or raw bytes) as a string column; other types as they are."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return plain(column.dictionary_decode())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _search(column, pa.string())
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string()), NO_ROWS
    return column, NO_ROWS


def cast_rows(column: pa.Array, kind: pa.DataType) -> Cast:
    """Cast by Arrow's checked casts; text may be padded with blanks, a whole number may end in ``.0``."""
    if column.type == kind:
        return column, NO_ROWS
    if pa.types.is_boolean(column.type) and not pa.types.is_string(kind):
        return _all_bad(column, kind)  # Arrow would take true for 1.0
    try:
        return column.cast(kind), NO_ROWS
    except pa.ArrowInvalid:
        return _search(_tidy(column, kind), kind)
    except pa.ArrowNotImplementedError:
        return _all_bad(column, kind)


def _all_bad(column: pa.Array, kind: pa.DataType) -> Cast:
    return pa.nulls(len(column), kind), np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))


def _tidy(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if not pa.types.is_string(column.type):
        return column
    column = pc.utf8_trim_whitespace(column)
    if pa.types.is_integer(kind):
        column = pc.replace_substring_regex(column, r"^\+?(-?\d+)(\.0*)?$", r"\1")
    return column


def _search(column: pa.Array, kind: pa.DataType) -> Cast:
    """Halve until each row that does not fit stands alone: few bad rows cost a few casts."""
    pieces: list[pa.Array] = []
    bad: list[int] = []
    todo = [(0, len(column))]
    while todo:
        first, stop = todo.pop()
        try:
            pieces.append(column.slice(first, stop - first).cast(kind))
            continue
        except pa.ArrowInvalid:
            pass
        if stop - first == 1:
            pieces.append(pa.nulls(1, kind))
            bad.append(first)
        else:
            middle = (first + stop) // 2
            todo += [(middle, stop), (first, middle)]  # the left half is taken next: order is kept
    return pa.concat_arrays(pieces), np.asarray(bad, dtype=np.int64)


def convert_unit(column: pa.Array, conversion: Conversion, kind: pa.DataType) -> Cast:
    """A column in one unit as numbers of ``kind`` in another; whole-number fields take the nearest."""
    numbers, bad = cast_rows(column, pa.float64())
    if not conversion.is_identity:
        numbers = pc.add(pc.multiply(numbers, conversion.factor), conversion.offset)
    if pa.types.is_integer(kind):
        numbers = pc.round(numbers)
    array, more = cast_rows(numbers, kind)
    return array, np.union1d(bad, more)


def read_clock(column: pa.Array, rule: TimeRule) -> Cast:
    """The event's time from a column, as the rule says (:class:`pipeline.mapping.TimeRule`)."""
    if rule.step_s is not None:
        return _elapsed(column, rule.step_s * 1e6, rule.start_us)
    if rule.unit is not None:
        return _epoch(column, rule.unit)
    if pa.types.is_timestamp(column.type):
        moments = column.cast(TIME, safe=False)
        return (moments if column.type.tz else _to_utc(moments, rule.timezone)), NO_ROWS
    text, bad = cast_rows(column, pa.string())
    moments, more = _from_text(pc.utf8_trim_whitespace(text), rule)
    return moments, np.union1d(bad, more)


def _epoch(column: pa.Array, unit: str) -> Cast:
    """Whole numbers stay integers (a double cannot hold today in nanoseconds), the rest are doubles."""
    try:
        whole = column.cast(pa.int64())
    except pa.ArrowInvalid:
        return _elapsed(column, _US_PER_UNIT[unit], 0)
    numbers = whole.fill_null(0).to_numpy(zero_copy_only=False)
    times, divisor = (1, 1_000) if unit == "ns" else (int(_US_PER_UNIT[unit]), 1)
    fits = (numbers >= TIME_FIRST_US * divisor // times) & (numbers < TIME_NEXT_US * divisor // times)
    moments = np.where(fits, numbers, 0) * times // divisor
    null = ~(fits & whole.is_valid().to_numpy(zero_copy_only=False))
    return pa.array(moments, mask=null).cast(TIME), np.flatnonzero(~fits)


def _elapsed(column: pa.Array, step_us: float, start_us: int) -> Cast:
    numbers, bad = cast_rows(column, pa.float64())
    steps = numbers.fill_null(0.0).to_numpy(zero_copy_only=False) * step_us
    fits = (steps >= TIME_FIRST_US - start_us) & (steps < TIME_NEXT_US - start_us)  # False for not-a-number
    moments = np.rint(np.where(fits, steps, 0.0)).astype(np.int64) + start_us
    null = ~(fits & numbers.is_valid().to_numpy(zero_copy_only=False))
    return pa.array(moments, mask=null).cast(TIME), np.union1d(bad, np.flatnonzero(~fits))


def _from_text(text: pa.Array, rule: TimeRule) -> Cast:
    if rule.format != ISO:
        moments = pc.strptime(text, format=rule.format, unit="us", error_is_null=True)
        lost = pc.and_(text.is_valid(), moments.is_null())
        return _to_utc(moments, rule.timezone), np.flatnonzero(lost.to_numpy(zero_copy_only=False))
    text = pc.replace_substring_regex(text, r"(\.\d{6})\d+", r"\1")  # finer than a microsecond is cut
    zoned = pc.match_substring_regex(text, _ZONE).fill_null(False)
    nothing = pa.scalar(None, pa.string())
    local, bad_local = cast_rows(pc.if_else(zoned, nothing, text), TIME)
    utc, bad_utc = cast_rows(pc.if_else(zoned, text, nothing), pa.timestamp("us", "UTC"))
    moments = pc.coalesce(_to_utc(local, rule.timezone), utc.cast(TIME))
    return moments, np.union1d(bad_local, bad_utc)


def _to_utc(local: pa.Array, timezone: str) -> pa.Array:
    if timezone == "UTC":
        return local
    return pc.assume_timezone(local, timezone, ambiguous="earliest", nonexistent="earliest").cast(TIME)
