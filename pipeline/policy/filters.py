"""Filters: which events a destination does not want, by their raw values.

Comes in: declared conditions. Goes out: the faults of a declaration, or the rows of a batch that it drops. A
filter decides about whole events before any operator runs. Invariant: what a null does is always written
down, so no event passes or vanishes because a comparison with nothing is neither true nor false.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from pipeline.events import EventField, EventType

Plain = bool | int | float | str
_ORDER = ("<", "<=", ">", ">=")
_KERNELS: dict[str, Any] = {
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
    "==": pc.equal,
    "!=": pc.not_equal,
}


class Condition(BaseModel):
    """One comparison. ``on_null`` says what a null field does; needed where the field can be null."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    field: str
    op: Literal["<", "<=", "==", "!=", ">=", ">", "in", "not_in", "is_null", "not_null"]
    value: Annotated[Plain, Field(union_mode="smart")] | tuple[Plain, ...] | None = None
    on_null: Literal["drop", "pass"] | None = None


class Filter(BaseModel):
    """Events for which *all* conditions hold are dropped and counted under ``name``."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
    drop_when: Annotated[tuple[Condition, ...], Field(min_length=1)]
    source: Annotated[str, Field(min_length=1)]


def filter_faults(rule: Filter, event: EventType) -> Iterator[str]:
    """What is wrong with a filter on this event, one sentence each, with the remedy."""
    for condition in rule.drop_when:
        where = f"filter {rule.name} on {event.name}.{condition.field}"
        try:
            field = event.field(condition.field)
        except KeyError:
            names = ", ".join(f.name for f in event.fields)
            yield f"{where}: the event has no such field; it has {names}"
            continue
        yield from (f"{where}: {fault}" for fault in _condition_faults(condition, field))


def _condition_faults(condition: Condition, field: EventField) -> Iterator[str]:
    op, value = condition.op, condition.value
    if op in ("is_null", "not_null"):
        if value is not None or condition.on_null is not None:
            yield f"{op} takes neither value nor on_null; remove them"
        return
    values = value if isinstance(value, tuple) else (value,)
    if (op in ("in", "not_in")) != isinstance(value, tuple) or None in values or not values:
        yield f"{op} needs {'a list of values' if op in ('in', 'not_in') else 'one value'}"
        return
    if field.nullable and condition.on_null is None:
        yield 'the field can be null; say on_null = "drop" or on_null = "pass"'
    if not field.nullable and condition.on_null is not None:
        yield "the field is never null; remove on_null"
    yield from _value_faults(op, values, field)


def _value_faults(op: str, values: tuple[Any, ...], field: EventField) -> Iterator[str]:
    if field.kind in ("string", "enum"):
        expected: tuple[type, ...] = (str,)
    elif field.kind in ("int", "long"):
        expected = (int,)
    elif field.kind in ("float", "double"):
        expected = (int, float)
    elif field.kind == "boolean":
        expected = (bool,)
    else:
        yield f"{op} does not work on {field.kind}; filter on another field"
        return
    if any(not isinstance(v, expected) or (isinstance(v, bool) and bool not in expected) for v in values):
        yield f"the field is {field.kind}; write values of that type"
    elif op in _ORDER and field.kind in ("string", "enum", "boolean"):
        yield f"{op} has no meaning for {field.kind}; use ==, !=, in or not_in"
    elif strange := [v for v in values if field.symbols and v not in field.symbols]:
        yield f"{', '.join(map(repr, strange))} is not among {', '.join(field.symbols)}: it would never match"


def matching(condition: Condition, batch: pa.RecordBatch) -> np.ndarray:
    """Per row whether the condition holds, nulls as declared (bool, never null)."""
    column = batch.column(condition.field)
    if condition.op in ("is_null", "not_null"):
        answer = pc.is_null(column) if condition.op == "is_null" else pc.is_valid(column)
        return np.asarray(answer)
    if isinstance(condition.value, tuple):
        # is_in takes a null for "not in the set", so nulls are put back before on_null speaks.
        inside = pc.is_in(column, value_set=pa.array(condition.value, column.type))
        answer = pc.invert(inside) if condition.op == "not_in" else inside
        answer = pc.if_else(pc.is_valid(column), answer, None)
    else:
        answer = _KERNELS[condition.op](column, _scalar(condition.value, column.type))
    return np.asarray(answer.fill_null(condition.on_null == "drop"))


def _scalar(value: Any, column: pa.DataType) -> pa.Scalar:
    """In the column's type; for floats in double, so that a 32-bit field meets the number as written."""
    return pa.scalar(float(value), pa.float64()) if pa.types.is_floating(column) else pa.scalar(value, column)


def dropped(rules: tuple[Filter, ...], batch: pa.RecordBatch) -> dict[str, np.ndarray]:
    """Row indices each filter drops, ascending; a row counts for the first filter that wants it gone."""
    found: dict[str, np.ndarray] = {}
    open_rows = np.ones(len(batch), dtype=bool)
    for rule in rules:
        hits = reduce(np.logical_and, (matching(c, batch) for c in rule.drop_when)) & open_rows
        if hits.any():
            found[rule.name] = np.flatnonzero(hits)
            open_rows &= ~hits
    return found
