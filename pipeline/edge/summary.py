"""What remains of events that were given up: count, minimum, maximum, mean of what was measured.

Comes in: framed values of one event. Goes out: one :class:`FieldSummary` per numeric field whose only tag is
``measurement``. Invariants: no other field is looked at, so no identifier, place or time of a person gets
into the loss ledger; two summaries of the same field add up exactly as if made at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.codec import unframe
from pipeline.schemas import SchemaStore

MEASURED = frozenset({"measurement"})


@dataclass(frozen=True, slots=True)
class FieldSummary:
    """Of one field, in its unit; nulls do not count."""

    count: int
    minimum: float
    maximum: float
    total: float

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return self.total / self.count

    def plus(self, other: FieldSummary) -> FieldSummary:
        """Both together."""
        return FieldSummary(
            self.count + other.count, min(self.minimum, other.minimum), max(self.maximum, other.maximum),
            self.total + other.total,
        )  # fmt: skip


Summary: TypeAlias = Mapping[str, FieldSummary]


class Summariser:
    """Knows the events' schemas, offline."""

    def __init__(self, schemas: SchemaStore) -> None:
        self._schemas = schemas
        self._measured = {
            name: [field.name for field in event.own_fields if field.tags == MEASURED]
            for name, event in schemas.events.items()
        }

    def __call__(self, event: str, values: pa.BinaryArray) -> dict[str, FieldSummary]:
        """Summaries of the values; empty for an event that it does not know."""
        found: dict[str, FieldSummary] = {}
        ids, bodies = unframe(values)
        for schema_id in set(ids.tolist()):
            if self._schemas.event_of(schema_id) != event:
                continue
            batch, _, _ = self._schemas.codec(schema_id).decode(bodies.filter(pa.array(ids == schema_id)))
            for name in self._measured.get(event, ()):
                if name in batch.schema.names:
                    add(found, name, _of(batch.column(name)))
        return found


def add(summary: dict[str, FieldSummary], name: str, more: FieldSummary | None) -> None:
    """Put one more field's summary into the whole."""
    if more is not None:
        summary[name] = summary[name].plus(more) if name in summary else more


def merged(one: Summary, other: Summary) -> dict[str, FieldSummary]:
    """Both together."""
    whole = dict(one)
    for name, more in other.items():
        add(whole, name, more)
    return whole


def to_text(summary: Summary) -> str:
    """For the loss ledger's column."""
    return json.dumps({name: astuple(one) for name, one in summary.items()}) if summary else ""


def from_text(text: str) -> dict[str, FieldSummary]:
    """Back from :func:`to_text`."""
    return {name: FieldSummary(*one) for name, one in json.loads(text).items()} if text else {}


def _of(column: pa.Array) -> FieldSummary | None:
    """None when there is no number in it."""
    number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    count = len(column) - column.null_count
    if not number or not count:
        return None
    ends = pc.min_max(column)
    return FieldSummary(
        count, float(ends["min"].as_py()), float(ends["max"].as_py()),
        float(pc.sum(column.cast(pa.float64())).as_py()),
    )  # fmt: skip
