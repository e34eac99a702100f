"""The same plan on files: rows of a file in, rows that the destination may hold out.

Comes in: batches of a file's columns, raw events with their envelope or curated rows of a region. Goes out:
allowed rows, and for every other row its number and why, in the words of checks and fields. Memory is one
batch. Invariant: ``read = passed + filtered + rejected``, and no row is judged by anything that the leg does
not ask.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.casts import Cast, cast_rows, plain, read_clock
from pipeline.checks import Findings, leaf_checks
from pipeline.errors import ConfigError
from pipeline.events import EventField, EventType
from pipeline.intake import RowChecks
from pipeline.mapping import TimeRule
from pipeline.policy.flow import ORIGIN, RAW_POSITION
from pipeline.policy.standalone import Standalone
from pipeline.reasons import Reason
from pipeline.replay import Mapper

# What a file need not have: the transport writes it, and no rule of a plan may depend on it.
_TRANSPORT = ("spool", "lane", "sequence", "received_time", *RAW_POSITION)


@dataclass(frozen=True)
class Reject:
    """One row that is no event: its number from 1, and which check of which field it failed."""

    row: int
    field: str
    reason: str


@dataclass(frozen=True)
class Conformed:
    """``batch``: every row in the event's own types; those in ``bad`` (indices, ascending) are no rows."""

    batch: pa.RecordBatch
    bad: dict[int, tuple[str, str]]  # index -> (field, reason)


class Conform(Protocol):
    """Columns of a file to columns of an event. ``columns``: those that it reads."""

    columns: tuple[str, ...]

    def apply(self, batch: pa.RecordBatch, numbers: np.ndarray) -> Conformed:
        """``numbers``: the rows' numbers in the file, from 1."""
        ...


class ByName:
    """A file that speaks the event's names. ConfigError names every column that is missing.

    A nullable column may be absent, and what the transport writes: then it is 0, and ``received_time`` the
    event's own time.
    """

    def __init__(self, event: EventType, columns: pa.Schema) -> None:
        self._event = event
        present = [name for name in event.arrow.names if name in columns.names]
        twice = sorted({name for name in present if columns.names.count(name) > 1})
        missing = [
            f.name for f in event.fields
            if f.name not in present and not f.nullable and f.name not in _TRANSPORT
        ]  # fmt: skip
        if missing or twice:
            told = [f"the file has no column {', '.join(missing)}"] if missing else []
            told += [f"the file has twice {', '.join(twice)}"] if twice else []
            raise ConfigError(
                "; ".join(told), operation="apply policy", place=event.name,
                remedy="declare a mapping, or name the columns as the event's fields",
            )  # fmt: skip
        self.columns = tuple(present)

    def apply(self, batch: pa.RecordBatch, numbers: np.ndarray) -> Conformed:
        """See :class:`Conform`."""
        bad: dict[int, tuple[str, str]] = {}
        made: dict[str, pa.Array] = {}
        for wanted in self._event.fields:
            if wanted.name not in self.columns:
                continue
            kind = self._event.arrow.field(wanted.name).type
            array, failed = _in_type(batch.column(wanted.name), wanted, kind)
            for row in failed.tolist():
                bad.setdefault(row, (wanted.name, Reason.TYPE))
            made[wanted.name] = array
        return Conformed(_whole(made, self._event, len(batch)), bad)


class ByMapping:
    """A file whose columns a declared mapping turns into fields; what the transport writes is 0."""

    def __init__(self, mapper: Mapper) -> None:
        self._mapper, self._event = mapper, mapper.event
        self.columns = mapper.columns

    def apply(self, batch: pa.RecordBatch, numbers: np.ndarray) -> Conformed:
        """See :class:`Conform`."""
        mapped = self._mapper.apply(batch, numbers)
        bad = {
            int(row): (bad.field, str(Reason.FIELD_MISSING if "found none" in bad.problem else Reason.TYPE))
            for row, bad in zip(mapped.bad_rows.tolist(), mapped.bad, strict=True)
        }
        made = dict(zip(mapped.batch.schema.names, mapped.batch.columns, strict=True))
        return Conformed(_whole(made, self._event, len(batch)), bad)


class CuratedChecks:
    """What curated rows of a file have to be: complete, in range, collected in one of ``jurisdictions``."""

    def __init__(self, event: EventType, jurisdictions: frozenset[str]) -> None:
        self._here = pa.array(sorted(jurisdictions), pa.string())
        self._required = [f.name for f in event.fields if not f.nullable]
        self._checks = [(f.name, check) for f in event.fields for check in leaf_checks(f)]

    def run(self, batch: pa.RecordBatch, now_us: int) -> Findings:
        """One finding per row; no check of time, which is coarse here."""
        codes = np.full(len(batch), -1, dtype=np.int16)
        reasons: list[tuple[Reason, str]] = []
        for reason, name, failed in self._failed(batch):
            hit = failed & (codes < 0)
            if hit.any():
                codes[hit] = len(reasons)
                reasons.append((reason, name))
        return Findings(codes, reasons)

    def _failed(self, batch: pa.RecordBatch) -> Iterator[tuple[Reason, str, np.ndarray]]:
        for name in self._required:
            if batch.column(name).null_count:
                yield Reason.FIELD_MISSING, name, np.asarray(pc.is_null(batch.column(name)))
        if "jurisdiction" in batch.schema.names:
            here = pc.is_in(batch.column("jurisdiction"), value_set=self._here)
            yield Reason.JURISDICTION_ELSEWHERE, "jurisdiction", ~np.asarray(here)
        for name, check in self._checks:
            yield from check(batch.column(name))


@dataclass
class Summary:
    """What became of the rows so far."""

    read: int = 0
    passed: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)  # (field, reason)


class Offline:
    """A plan on the batches of one file. ``schema``: that of what comes out, with its tags as metadata.

    On a border the rows carry their origin and, where the file has it, their raw position.
    """

    def __init__(self, plan: Standalone, conform: Conform, checks: RowChecks, now_us: int) -> None:
        self._run, self._conform, self._checks, self._now_us = plan, conform, checks, now_us
        terms, arrow = plan.plan.terms, plan.plan.arrow
        self._carried = [name for name in RAW_POSITION if terms.crosses and name in conform.columns]
        self._origin = terms.origin if terms.crosses and ORIGIN not in arrow.names else None
        extra = [pa.field(ORIGIN, pa.string(), nullable=False)] if self._origin else []
        extra += [plan.plan.event.arrow.field(name) for name in self._carried]
        self.schema = described(pa.schema([*arrow, *extra]), plan)
        self.summary = Summary()

    def apply(
        self, batch: pa.RecordBatch, numbers: np.ndarray, broken: tuple[Reject, ...] = ()
    ) -> tuple[pa.RecordBatch, list[Reject]]:
        """The allowed rows, and the rejected ones by number. ``broken``: rows that had no columns at all.

        Raises ConfigError when the plan cannot do its work: then nothing may be kept.
        """
        conformed = self._conform.apply(batch, numbers)
        faults = dict(conformed.bad)
        rows = np.setdiff1d(np.arange(len(batch)), list(faults))
        findings = self._checks.run(conformed.batch.take(pa.array(rows)), self._now_us)
        for (reason, name), failed in findings.failed().items():
            faults.update(dict.fromkeys(rows[failed].tolist(), (name, str(reason))))
        rows = rows[findings.good()]
        checked = conformed.batch.take(pa.array(rows))
        applied = self._run.apply(checked)
        rejects = [Reject(int(numbers[row]), name, reason) for row, (name, reason) in faults.items()]
        rejects = sorted([*rejects, *broken], key=lambda reject: reject.row)
        self._count(len(batch) + len(broken), applied.filtered, len(applied.kept), rejects)
        columns = list(applied.batch.columns)
        if self._origin:
            columns.append(pa.repeat(pa.scalar(self._origin), len(applied.kept)))
        kept = pa.array(applied.kept)
        columns += [checked.column(name).take(kept) for name in self._carried]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema), rejects

    def _count(self, read: int, filtered: dict[str, np.ndarray], passed: int, rejects: list[Reject]) -> None:
        self.summary.read += read
        self.summary.passed += passed
        self.summary.filtered.update({name: len(rows) for name, rows in filtered.items()})
        self.summary.rejected.update((reject.field, reject.reason) for reject in rejects)


def described(schema: pa.Schema, run: Standalone) -> pa.Schema:
    """The schema with tags, doc and unit per column, and the policy's hash: Parquet keeps them."""
    terms = run.plan.terms
    told = {column["name"]: column for column in run.plan.schema["fields"]}
    columns = []
    for column in schema:
        about = told.get(column.name, {})
        words = {key: about[key] for key in ("doc", "unit") if key in about}
        words["confluent:tags"] = json.dumps(about.get("confluent:tags", []))
        columns.append(column.with_metadata(words))
    return pa.schema(columns, {
        "event": run.plan.event.name, "origin": terms.origin, "destination": terms.destination,
        "policy_hash": terms.hash, "basis": terms.basis,
    })  # fmt: skip


def _in_type(column: pa.Array, wanted: EventField, kind: pa.DataType) -> Cast:
    """The column in the field's type, and the rows (null there) whose value is none of that type."""
    column, bad = _text(column)
    if pa.types.is_timestamp(kind) and not pa.types.is_integer(column.type):
        moments, more = read_clock(column, TimeRule.model_validate({"from": wanted.name}))
        array, lost = cast_rows(moments, kind)
        more = np.union1d(more, lost)
    else:
        array, more = cast_rows(column, kind)
    return array, np.union1d(bad, more) if len(bad) else more


def _text(column: pa.Array) -> Cast:
    """Text that is text: a Parquet file may hold anything under that name."""
    column, bad = plain(column)
    if pa.types.is_string(column.type):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            return plain(column.view(pa.binary()))
    return column, bad


def _whole(made: dict[str, pa.Array], event: EventType, count: int) -> pa.RecordBatch:
    """All columns of the event, in order; what the file does not have is null or the transport's zero."""
    columns = []
    for column in event.arrow:
        if column.name in made:
            columns.append(made[column.name])
        elif column.name == "received_time" and "event_time" in made:
            columns.append(made["event_time"])
        elif column.name in _TRANSPORT and not column.nullable:
            columns.append(pa.array(np.zeros(count, np.int64)).cast(column.type))
        else:
            columns.append(pa.nulls(count, column.type))
    return pa.RecordBatch.from_arrays(columns, schema=event.arrow)
