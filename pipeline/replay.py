"""Rows of a foreign file become events.

Comes in: batches of a file's columns, a declared :class:`pipeline.mapping.Mapping` and the event's type.
Goes out: batches with ``source``, ``event_time``, ``jurisdiction`` and the event's own fields, in the order
of its schema, ready for the edge's ``emit_many``. Invariant: the order of rows is kept, and every row either
leaves or is counted with its number and the field that could not be had.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.casts import NO_ROWS, Cast, cast_rows, convert_unit, plain, read_clock
from pipeline.errors import ConfigError
from pipeline.events import ENVELOPE, EventField, EventType
from pipeline.mapping import FieldRule, Mapping, TimeRule, placeholders, template_parts
from pipeline.units import conversion

GIVEN_BY_EDGE = ("spool", "lane", "sequence", "received_time")
UNIT_OF_MACHINE = ("channel", "target")  # a unit that the schema leaves to the machine type or model


@dataclass(frozen=True)
class BadRow:
    """One row that could not become an event; the value stays out of it."""

    number: int  # of the data rows, from 1
    field: str
    problem: str


@dataclass(frozen=True)
class Mapped:
    """A batch after mapping: all rows, and which of them are no events."""

    batch: pa.RecordBatch
    bad: tuple[BadRow, ...]
    bad_rows: np.ndarray  # indices into the batch, ascending, beside ``bad``

    def good(self) -> pa.RecordBatch:
        """The rows that are events, in order."""
        if len(self.bad_rows) == 0:
            return self.batch
        return self.batch.take(np.setdiff1d(np.arange(len(self.batch)), self.bad_rows))


class _Columns:
    """The file's columns of one batch, text as text, each converted once."""

    def __init__(self, batch: pa.RecordBatch, numbers: np.ndarray) -> None:
        self.length = len(batch)
        self.numbers = numbers
        self._batch = batch
        self._plain: dict[str, Cast] = {}

    def get(self, name: str) -> Cast:
        if name not in self._plain:
            index = self._batch.schema.get_field_index(name)
            column = self._batch.column(index) if index >= 0 else pa.nulls(self.length, pa.string())
            self._plain[name] = plain(column)
        return self._plain[name]


_Make = Callable[[_Columns], Cast]


class Mapper:
    """A mapping compiled against one event and one file's columns.

    ``columns`` is the file's schema; a column whose type is not known before the rows are seen is null
    typed. Raises ConfigError that lists every fault: unknown columns and fields, fields left without a
    rule, units that do not convert, constants of the wrong type.
    """

    def __init__(
        self, mapping: Mapping, event: EventType, columns: pa.Schema, jurisdiction: str | None = None
    ) -> None:
        self.event = event
        self._columns = columns
        self._faults: list[str] = []
        template = jurisdiction or mapping.jurisdiction
        self._check(mapping, template)
        fields = [field for field in event.arrow if field.name not in GIVEN_BY_EDGE]
        rules = {"source": FieldRule(template=mapping.source), **mapping.fields}
        if template is not None:
            rules["jurisdiction"] = FieldRule(template=template)
        self._makes = [self._make(field, rules.get(field.name), mapping.event_time) for field in fields]
        self.columns = tuple(dict.fromkeys((*mapping.columns, *placeholders(template or "")))) or tuple(
            columns.names[:1]  # a mapping of constants alone still needs to know how many rows there are
        )
        self._required = [not event.field(field.name).nullable for field in fields]
        self.schema = pa.schema(fields)
        if self._faults:
            place = f"mapping of {event.name}"
            raise ConfigError("; ".join(self._faults), operation="replay", place=place)

    def apply(self, batch: pa.RecordBatch, numbers: np.ndarray) -> Mapped:
        """Map one batch; ``numbers`` are its rows' numbers in the file, from 1."""
        columns = _Columns(batch, numbers)
        problems: dict[int, tuple[str, str]] = {}
        arrays = []
        for field, make, required in zip(self.schema, self._makes, self._required, strict=True):
            array, bad = make(columns)
            for row in bad.tolist():
                problems.setdefault(row, (field.name, f"expected {field.type}"))
            if required and array.null_count:
                for row in np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)).tolist():
                    problems.setdefault(row, (field.name, "expected a value, found none"))
            arrays.append(array)
        rows = sorted(problems)
        return Mapped(
            pa.RecordBatch.from_arrays(arrays, schema=self.schema),
            tuple(BadRow(int(numbers[row]), *problems[row]) for row in rows),
            np.asarray(rows, dtype=np.int64) if rows else NO_ROWS,
        )

    def _check(self, mapping: Mapping, jurisdiction: str | None) -> None:
        if mapping.event != self.event.name:
            self._faults.append(f"event: expected {self.event.name}, found {mapping.event}")
        if jurisdiction is None:
            self._faults.append("jurisdiction: expected one, in the mapping or from the caller")
        names = self._columns.names
        for column in dict.fromkeys((*mapping.columns, *placeholders(jurisdiction or ""))):
            if names.count(column) != 1:
                found = "twice" if column in names else "not"
                self._faults.append(f"column {column!r} is {found} in the file ({', '.join(names)})")
        known = {field.name for field in self.event.own_fields}
        for name in mapping.fields:
            if name in ENVELOPE:
                self._faults.append(f"fields.{name}: expected a field of the event's own")
            elif name not in known:
                self._faults.append(f"fields.{name}: {self.event.name} has no such field")
        for field in self.event.own_fields:
            if not field.nullable and field.name not in mapping.fields:
                self._faults.append(f"fields.{field.name}: expected a rule, the field is never null")

    def _make(self, field: pa.Field, rule: FieldRule | None, clock: TimeRule) -> _Make:
        try:
            if field.name == "event_time":
                return _clock(clock)
            if rule is None:
                return lambda columns: (pa.nulls(columns.length, field.type), NO_ROWS)
            if rule.template is not None:
                return _template(field, rule.template)
            if rule.column is None:
                return _constant(field, rule.value, self.event.field(field.name).symbols)
            return self._from_column(field, rule.column, rule)
        except (ConfigError, pa.ArrowException) as error:
            problem = error.problem if isinstance(error, ConfigError) else f"expected {field.type}"
            self._faults.append(f"fields.{field.name}: {problem}")
            return lambda columns: (pa.nulls(columns.length, field.type), NO_ROWS)

    def _from_column(self, field: pa.Field, column: str, rule: FieldRule) -> _Make:
        index = self._columns.get_field_index(column)
        if index >= 0:
            pa.nulls(0, self._columns.field(index).type).cast(field.type)  # raises when there is no such cast
        target = self.event.field(field.name)
        if target.symbols:
            symbols = pa.array(target.symbols)
            return lambda columns: _both(columns.get(column), lambda array: _one_of(array, symbols))
        step = None if rule.unit is None else conversion(rule.unit, _target_unit(target, rule))
        if step is None or step.is_identity:
            return lambda columns: _both(columns.get(column), lambda array: cast_rows(array, field.type))
        return lambda columns: _both(columns.get(column), lambda array: convert_unit(array, step, field.type))


def _both(first: Cast, then: Callable[[pa.Array], Cast]) -> Cast:
    array, bad = then(first[0])
    return array, (bad if len(first[1]) == 0 else np.union1d(first[1], bad))


def _target_unit(field: EventField, rule: FieldRule) -> str:
    if field.unit in UNIT_OF_MACHINE:
        if rule.to is None:
            raise ConfigError(f"the unit is left to the {field.unit}; say which one with to = …")
        return rule.to
    if rule.to is not None:
        raise ConfigError(f"the field's unit is {field.unit}; leave out to = …")
    if field.unit is None:
        raise ConfigError("the field has no unit; leave out unit = …")
    return field.unit


def _clock(rule: TimeRule) -> _Make:
    if rule.column is not None:
        column = rule.column
        return lambda columns: _both(columns.get(column), lambda array: read_clock(array, rule))
    return lambda columns: read_clock(pa.array(columns.numbers - 1), rule)


def _one_of(column: pa.Array, symbols: pa.Array) -> Cast:
    text, bad = cast_rows(column, pa.string())
    other = pc.and_(text.is_valid(), pc.invert(pc.is_in(text, symbols)))
    return text, np.union1d(bad, np.flatnonzero(other.to_numpy(zero_copy_only=False)))


def _constant(field: pa.Field, value: object, symbols: tuple[str, ...]) -> _Make:
    scalar = pa.scalar(value)
    if symbols and value not in symbols:
        raise ConfigError(f"expected one of {', '.join(symbols)}")
    if pa.types.is_boolean(scalar.type) != pa.types.is_boolean(field.type):
        raise ConfigError(f"expected {field.type}, found a constant of {scalar.type}")
    scalar = scalar.cast(field.type)
    return lambda columns: (pa.repeat(scalar, columns.length), NO_ROWS)


def _template(field: pa.Field, template: str) -> _Make:
    if field.type not in (pa.string(), pa.large_string()):
        raise ConfigError(f"expected {field.type}, a template makes text")
    parts: Sequence[tuple[str, str | None]] = template_parts(template)

    def make(columns: _Columns) -> Cast:
        pieces: list[pa.Array | str] = []
        bad = NO_ROWS
        for text, column in parts:
            pieces.append(text)
            if column is not None:
                array, lost = _both(columns.get(column), lambda array: cast_rows(array, pa.string()))
                pieces.append(array)
                bad = np.union1d(bad, lost)
        if len(pieces) == 1:
            return pa.repeat(pa.scalar(template.format(), field.type), columns.length), NO_ROWS
        return pc.binary_join_element_wise(*pieces, "").cast(field.type), bad

    return make
