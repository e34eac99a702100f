"""One leg: raw records of one event type in, what may land out. Pure: no I/O, no clock of its own.

Comes in: a run of records of one partition. Goes out: framed curated records, and for every raw position one
outcome. The order of the questions is fixed, because the first answer counts: readable? seen before?
plausible? wanted? And then the policy's operators, which can only transform: what they cannot discharge stops
the stage, it never passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.batches import FILTERED, QUARANTINED, REPEAT, Outcomes, Run
from pipeline.checks import Checks
from pipeline.codec import Codec
from pipeline.framing import unframe
from pipeline.policy import Plan
from pipeline.processor.repeats import Seen, find_repeats
from pipeline.reasons import Reason
from pipeline.schemas import EventType


class Records(Protocol):
    """A run of raw records, as the Kafka reader gives them."""

    topic: str
    partition: int
    first_offset: int
    next_offset: int
    offsets: np.ndarray
    values: pa.BinaryArray
    refused: Sequence[tuple[int, int, str]]


@dataclass(frozen=True)
class Decided:
    """Outcomes that an earlier owner recorded, for positions below ``end``, before it was interrupted."""

    end: int = 0
    runs: tuple[Run, ...] = ()


@dataclass
class Landed:
    """What one batch became.

    ``received_us``: receipt time of each curated row. ``foreign``: ascending offsets of the records without
    an identity, which no spool has accepted. ``faulty_fields``: raw offset to field name.
    """

    first_offset: int
    next_offset: int
    outcomes: Outcomes
    curated: pa.BinaryArray
    received_us: np.ndarray
    seen: dict[tuple[int, int], int]
    foreign: np.ndarray
    faulty_fields: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Leg:
    """All that one event type needs on its way into its region.

    ``codecs`` are the schema ids that count as this event, newest ``reader`` schema included; records of an
    older version are brought to the newest one, with nulls for what they lack.
    """

    event: EventType
    codecs: Mapping[int, Codec]
    checks: Checks
    plan: Plan
    curated: Codec
    record_bytes_max: int
    fingerprints: Mapping[bytes, int] = field(default_factory=dict)  # single-object records, to schema ids

    def process(self, records: Records, seen: Seen, decided: Decided, now_us: int) -> Landed:
        """Raw records to a :class:`Landed`; deterministic but for ``now_us`` (since 1970, UTC)."""
        outcomes = Outcomes(records.offsets, records.refused)
        if records.first_offset < decided.end:
            outcomes.decide(decided.end, decided.runs)
        batch, rows = self._decode(records, outcomes)
        spool, lane, sequence = (_int64(batch, name) for name in ("spool", "lane", "sequence"))
        repeats, updates = find_repeats(spool, lane, sequence, seen)
        foreign = self._foreign(records, rows[spool != 0])
        outcomes.mark(rows[repeats], REPEAT, "")
        faulty = self._check(batch, rows, outcomes, now_us)
        self._filter(batch, rows, outcomes)
        keep = np.flatnonzero(outcomes.is_open(rows))
        if len(keep) < len(rows):
            batch, rows = batch.take(pa.array(keep)), rows[keep]
        curated = self._curate(batch, records.partition, records.offsets[rows])
        return Landed(
            records.first_offset, records.next_offset, outcomes, curated,
            _int64(batch, "received_time"), updates, foreign, faulty,
        )  # fmt: skip

    def _foreign(self, records: Records, identified: np.ndarray) -> np.ndarray:
        unnamed = np.ones(len(records.offsets), dtype=bool)
        unnamed[identified] = False
        refused = [np.arange(first, end) for first, end, _ in records.refused]
        return np.sort(np.concatenate([records.offsets[unnamed], *refused]))

    def _decode(self, records: Records, outcomes: Outcomes) -> tuple[pa.RecordBatch, np.ndarray]:
        """The readable rows as one batch of the newest schema, and their rows in ``records``."""
        values = records.values
        sizes = pc.binary_length(values.fill_null(b"") if values.null_count else values)
        sizes = sizes.to_numpy(zero_copy_only=False)
        rows = np.arange(len(values))
        if len(sizes) and sizes.max() > self.record_bytes_max:
            outcomes.mark(rows[sizes > self.record_bytes_max], QUARANTINED, Reason.OVERSIZE)
            rows = rows[sizes <= self.record_bytes_max]
            values = values.take(pa.array(rows))
        ids, bodies = unframe(values, self.fingerprints)
        parts = []
        for schema_id in np.unique(ids).tolist():
            codec = self.codecs.get(schema_id)
            chosen = np.flatnonzero(ids == schema_id)
            if codec is None:
                reason = Reason.FRAMING if schema_id < 0 else Reason.UNKNOWN_SCHEMA
                outcomes.mark(rows[chosen], QUARANTINED, reason)
                continue
            whole = len(chosen) == len(rows)
            batch, good, bad = codec.decode(bodies if whole else bodies.take(pa.array(chosen)))
            for index, bad_reason in bad.items():
                outcomes.mark(rows[chosen[[index]]], QUARANTINED, bad_reason)
            parts.append((self._newest(batch), rows[chosen[good]]))
        return self._joined(parts)

    def _newest(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with the newest version's columns: missing nullable ones are null."""
        if batch.schema.equals(self.event.arrow):
            return batch
        columns = [
            batch.column(column.name).cast(column.type)
            if column.name in batch.schema.names
            else pa.nulls(len(batch), column.type)
            for column in self.event.arrow
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.event.arrow)

    def _joined(self, parts: list[tuple[pa.RecordBatch, np.ndarray]]) -> tuple[pa.RecordBatch, np.ndarray]:
        """Parts of several schema versions as one batch, in log order again."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return _empty(self.event.arrow), np.empty(0, dtype=np.int64)
        rows = np.concatenate([part[1] for part in parts])
        order = np.argsort(rows)
        batch = pa.concat_batches([part[0] for part in parts]).take(pa.array(order))
        return batch, rows[order]

    def _check(
        self, batch: pa.RecordBatch, rows: np.ndarray, outcomes: Outcomes, now_us: int
    ) -> dict[int, str]:
        """Quarantine what is implausible; the offset and field name of each such row."""
        findings = self.checks.run(batch, now_us)
        faulty: dict[int, str] = {}
        for code, (reason, name) in enumerate(findings.reasons):
            found = rows[findings.codes == code]
            outcomes.mark(found, QUARANTINED, reason)
            faulty.update(dict.fromkeys(outcomes.offsets[found].tolist(), name))
        return faulty

    def _filter(self, batch: pa.RecordBatch, rows: np.ndarray, outcomes: Outcomes) -> None:
        for rule, found in self.plan.filter(batch).items():
            outcomes.mark(rows[found], FILTERED, rule)

    def _curate(self, batch: pa.RecordBatch, partition: int, offsets: np.ndarray) -> pa.BinaryArray:
        """Apply the operators and append the raw position, which is the event's identity from here on."""
        kept = self.plan.transform(batch)
        columns = [*kept.columns, pa.array(np.full(len(offsets), partition, np.int32)), pa.array(offsets)]
        return self.curated.encode(pa.RecordBatch.from_arrays(columns, schema=self.curated.arrow))


def _int64(batch: pa.RecordBatch, name: str) -> np.ndarray:
    return batch.column(name).cast(pa.int64()).to_numpy(zero_copy_only=False)


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], column.type) for column in schema], schema=schema)
