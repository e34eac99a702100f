"""The gate: what a producer gives, checked while the producer waits.

Comes in: one mapping, a sequence of mappings, or an Arrow batch. Goes out: rows that the encoder takes, or a
RecordError that names row, field and reason, never a value. Invariant: all of a call passes, or nothing does.
What passes is minimised here (pipeline.policy.minimise), before anything of it is stored.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.admission import compiled, micros, text
from pipeline.checks import Checks
from pipeline.config import LimitsConfig
from pipeline.edge.columns import conform
from pipeline.edge.encoder import STAMPED, EventEncoder, Row, not_stamped
from pipeline.edge.minimising import Admitted, Minimiser
from pipeline.edge.routes import Routes
from pipeline.errors import RecordError
from pipeline.events import EventType
from pipeline.policy.minimise import EdgePlan
from pipeline.reasons import MICROS, Reason

GIVEN = ("source", "event_time", "jurisdiction")  # of the envelope, by the producer


class Gate:
    """The checks of one event type. Holds no state of a call; safe in several threads.

    ``plans``: what each region's policy has the edge leave out of this event.
    """

    def __init__(
        self, event: EventType, limits: LimitsConfig, routes: Routes, encoder: EventEncoder,
        plans: Mapping[str, EdgePlan] | None = None,
    ) -> None:  # fmt: skip
        self.event = event
        self._limits = limits
        self._routes = routes
        self._encoder = encoder
        self._own = compiled(event)
        self._names = frozenset((*GIVEN, *(field.name for field in event.own_fields)))
        self._checks = self._make_checks(frozenset())
        self._minimiser = Minimiser(event, routes, plans) if plans else None

    def admit_one(
        self, fields: Mapping[str, Any], source: Any, event_time: Any, jurisdiction: Any
    ) -> Admitted:
        """One event, checked and minimised. Raises RecordError, and ConfigError when a minimisation fails."""
        row = self.one(fields, source, event_time, jurisdiction)
        return self._minimiser.one(row) if self._minimiser else Admitted(row)

    def admit_many(self, rows: Sequence[Mapping[str, Any]] | pa.Table | pa.RecordBatch) -> Admitted:
        """At least one row, checked and minimised; raises like :meth:`admit_one`."""
        batch = self.many(rows)
        return self._minimiser.many(batch) if self._minimiser else Admitted(batch)

    def one(self, fields: Mapping[str, Any], source: Any, event_time: Any, jurisdiction: Any) -> Row:
        """The row of one event; RecordError when it cannot be taken."""
        values = self._own(fields)
        return (
            self._source(source), self._event_time(event_time), self._jurisdiction(jurisdiction),
            *values.values(),
        )  # fmt: skip

    def many(self, rows: Sequence[Mapping[str, Any]] | pa.Table | pa.RecordBatch) -> pa.RecordBatch:
        """The rows as one batch of the event's schema; RecordError names the first bad row."""
        if isinstance(rows, pa.Table):
            batches = rows.combine_chunks().to_batches()
            rows = batches[0] if batches else pa.RecordBatch.from_pylist([], schema=rows.schema)
        if isinstance(rows, pa.RecordBatch):
            return self._columns(rows)
        return self._encoder.batch([self._row(index, row) for index, row in enumerate(rows)])

    def _row(self, index: int, row: Mapping[str, Any]) -> Row:
        try:
            if not isinstance(row, Mapping):
                raise RecordError(f"expected a mapping, got {type(row).__name__}", reason=Reason.TYPE)
            fields = dict(row)
            given = [fields.pop(name, None) for name in GIVEN]
            return self.one(fields, *given)
        except RecordError as error:
            raise _at_row(index, error) from None

    # -- one event

    def _source(self, value: Any) -> str:
        if value is None:
            raise RecordError("a value is required", reason=Reason.FIELD_MISSING, field="source")
        if isinstance(value, str) and not value:
            raise RecordError("expected a name, got an empty one", reason=Reason.RANGE, field="source")
        return text(value, "source")

    def _event_time(self, value: Any) -> int:
        if value is None:
            raise RecordError("a value is required", reason=Reason.FIELD_MISSING, field="event_time")
        moment = micros(value, "event_time")
        now_us = time.time_ns() // 1000
        if moment > now_us + self._limits.event_future_max_s * MICROS:
            raise RecordError(
                f"more than {self._limits.event_future_max_s:g} s ahead of this machine's clock",
                reason=Reason.TIME_FUTURE, field="event_time", remedy="compare the clocks",
            )  # fmt: skip
        if moment < now_us - self._limits.event_age_max_s * MICROS:
            problem = f"more than {self._limits.event_age_max_s:g} s ago"
            raise RecordError(problem, reason=Reason.TIME_ANCIENT, field="event_time")
        return moment

    def _jurisdiction(self, value: Any) -> str:
        if value is None or (isinstance(value, str) and not value):
            raise RecordError(
                "a value is required", reason=Reason.JURISDICTION_MISSING, field="jurisdiction",
                remedy="ISO 3166 code of where it was collected, such as DE or US-CA",
            )  # fmt: skip
        code = text(value, "jurisdiction")
        if self._routes.region(code) is None:
            raise RecordError(
                "no configured region's policy pack names it", reason=Reason.JURISDICTION_UNKNOWN,
                field="jurisdiction", remedy="ISO 3166 code, or add it to a pack",
            )  # fmt: skip
        return code

    # -- columns

    def _columns(self, given: pa.RecordBatch) -> pa.RecordBatch:
        try:
            given.validate(full=True)
        except pa.ArrowInvalid:
            problem = "the batch breaks Arrow's rules (text that is not UTF-8?)"
            raise RecordError(problem, reason=Reason.UTF8) from None
        batch = self._conformed(given)
        if len(batch) == 0:
            return batch
        findings = self._checks_for(batch).run(batch, time.time_ns() // 1000)
        bad = findings.codes >= 0
        if bad.any():
            index = int(np.argmax(bad))
            reason, field = findings.reasons[findings.codes[index]]
            raise _at_row(index, self._explained(batch, index, reason, field))
        return batch

    def _conformed(self, given: pa.RecordBatch) -> pa.RecordBatch:
        """The columns in the schema's order and types."""
        names = given.schema.names
        unknown = [name for name in names if name not in self._names]
        if unknown or len(set(names)) != len(names):
            raise RecordError(
                f"{len(unknown)} column(s) that {self.event.name} does not have, or one twice",
                reason=Reason.FIELD_UNKNOWN, remedy=f"known: {', '.join(sorted(self._names))}",
            )  # fmt: skip
        columns = []
        for field in self.event.arrow:
            if field.name in STAMPED:
                columns.append(not_stamped(field.name, len(given)))
            elif field.name in names:
                columns.append(conform(given.column(field.name), field))
            elif field.nullable:
                columns.append(pa.nulls(len(given), field.type))
            else:
                raise RecordError("the column is missing", reason=Reason.FIELD_MISSING, field=field.name)
        return pa.RecordBatch.from_arrays(columns, schema=self.event.arrow)

    def _explained(self, batch: pa.RecordBatch, index: int, reason: Reason, field: str) -> RecordError:
        """The error that the row alone would get: it says what was expected."""
        try:
            row = {name: _aware(batch.column(name)[index].as_py()) for name in self._names}
            given = [row.pop(name) for name in GIVEN]
            self.one(row, *given)
        except RecordError as error:
            if error.field == field:
                return error
        except (ValueError, OverflowError):  # a time that Python cannot hold
            pass
        return RecordError(f"fails the check {reason}", reason=reason, field=field)

    def _checks_for(self, batch: pa.RecordBatch) -> Checks:
        known = self._routes.learn(batch.column("jurisdiction"))
        checks = self._checks
        if checks.known != known:
            checks = self._checks = self._make_checks(known)
        return checks

    def _make_checks(self, known: frozenset[str]) -> _KnownChecks:
        return _KnownChecks(self.event, self._limits, known)


class _KnownChecks(Checks):
    """Checks that remember which jurisdictions they take: at the edge all that have a region."""

    def __init__(self, event: EventType, limits: LimitsConfig, known: frozenset[str]) -> None:
        super().__init__(event, limits, known, known)
        self.known = known


def _aware(value: Any) -> Any:
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else value


def _at_row(index: int, error: RecordError) -> RecordError:
    problem = f"row {index}: {error.problem}"
    return RecordError(problem, reason=error.reason, field=error.field, remedy=error.remedy)
