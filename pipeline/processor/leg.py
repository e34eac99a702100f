"""One leg: records of one event type in, what may go on out. Pure: no I/O, no clock of its own.

Comes in: a run of records of one partition. Goes out: framed curated records, and for every position one
outcome. The order of the questions is fixed, because the first answer counts: readable? seen before?
plausible? wanted, by the pack and by its person? And then the policy's operators, which can only transform:
what they cannot discharge stops the stage, it never passes; last, whether a crowd hides what they made.

What all legs share is here; :mod:`pipeline.processor.landing` and :mod:`pipeline.processor.border` say what a
record's identity is, what makes it plausible, and which position its row carries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.batches import FILTERED, QUARANTINED, REPEAT, Outcomes, Run
from pipeline.checks import Findings
from pipeline.codec import Codec
from pipeline.framing import unframe
from pipeline.policy import Plan
from pipeline.policy.crowd import SUPPRESSED
from pipeline.policy.plan import Choices
from pipeline.processor.repeats import Seen, find_repeats
from pipeline.reasons import Reason
from pipeline.schemas import EventType


class Records(Protocol):
    """A run of records of the leg's source, as the Kafka reader gives them."""

    topic: str
    partition: int
    first_offset: int
    next_offset: int
    offsets: np.ndarray
    timestamps_ms: np.ndarray
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
    an identity, which no spool has accepted. ``faulty_fields``: source offset to field name.
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
class Leg(ABC):
    """All that one event type needs on its way from one topic to another.

    ``event``: what comes in, at its newest version. ``codecs``: the schema ids that count as this event,
    newest one included; records of an older version are brought to it. ``curated``: what goes out.
    ``choices``: what people have said, where the plan asks for consent.
    """

    event: EventType
    codecs: Mapping[int, Codec]
    plan: Plan
    curated: Codec
    record_bytes_max: int
    choices: Choices | None = field(default=None, kw_only=True)

    @abstractmethod
    def identities(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per row (line, part of it, number on it), int64: what does not rise on its line is a repeat."""

    @abstractmethod
    def findings(self, batch: pa.RecordBatch, partition: int, now_us: int) -> Findings:
        """Rows that may not go on, and why."""

    @abstractmethod
    def position(self, batch: pa.RecordBatch, partition: int, offsets: np.ndarray) -> tuple[pa.Array, ...]:
        """What follows the operators' columns in ``curated``: (on a border the origin,) raw partition and
        offset of each row, its identity from here on. ``offsets``: where it lies in the source."""

    @abstractmethod
    def received_us(self, batch: pa.RecordBatch, written_us: np.ndarray) -> np.ndarray:
        """When each row came to this leg; ``written_us``: when its record was appended to the source."""

    def foreign(self, records: Records, identified: np.ndarray) -> np.ndarray:
        """Offsets of records that nobody accounts for; ``identified``: rows that have an identity."""
        return np.empty(0, dtype=np.int64)

    def permit(self, now_us: int) -> None:  # noqa: B027 - most legs may always
        """Called before each batch: raises ConfigError when nothing may pass now."""

    def unframe(self, values: pa.BinaryArray) -> tuple[np.ndarray, pa.BinaryArray]:
        """Schema ids (-1: no frame) and bodies."""
        return unframe(values)

    def carried(self, batch: pa.RecordBatch, schema_id: int) -> frozenset[str]:
        """Columns of an older version that mean the same in the newest; the others become null."""
        return frozenset(batch.schema.names)

    # --- one batch ---------------------------------------------------------------------------------------

    def process(self, records: Records, seen: Seen, decided: Decided, now_us: int) -> Landed:
        """Records to a :class:`Landed`; deterministic but for ``now_us`` (since 1970, UTC)."""
        outcomes = Outcomes(records.offsets, records.refused)
        if records.first_offset < decided.end:
            outcomes.decide(decided.end, decided.runs)
        batch, rows = self._decode(records, outcomes)
        line, part, number = self.identities(batch)
        repeats, updates = find_repeats(line, part, number, seen)
        foreign = self.foreign(records, rows[line != 0])
        outcomes.mark(rows[repeats], REPEAT, "")
        faulty = self._check(batch, rows, outcomes, (records.partition, now_us))
        for reason, found in self.plan.filter(batch, self.choices).items():
            outcomes.mark(rows[found], FILTERED, reason)
        batch, rows = _open(batch, rows, outcomes)
        result = self.plan.transform(batch)
        alone = self.plan.alone(batch, result)
        if len(alone):
            outcomes.mark(rows[alone], FILTERED, SUPPRESSED)
            result, _ = _open(result, rows, outcomes)
            batch, rows = _open(batch, rows, outcomes)
        offsets = records.offsets[rows]
        columns = [*result.columns, *self.position(batch, records.partition, offsets)]
        curated = self.curated.encode(pa.RecordBatch.from_arrays(columns, schema=self.curated.arrow))
        received = self.received_us(batch, records.timestamps_ms[rows] * 1000)
        return Landed(
            records.first_offset, records.next_offset, outcomes, curated, received, updates, foreign, faulty
        )

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
        ids, bodies = self.unframe(values)
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
            parts.append((self._newest(batch, schema_id), rows[chosen[good]]))
        return self._joined(parts)

    def _newest(self, batch: pa.RecordBatch, schema_id: int) -> pa.RecordBatch:
        """The batch with the newest version's columns: missing nullable ones are null."""
        if schema_id == self.event.schema_id:
            return batch
        carried = self.carried(batch, schema_id)
        columns = [
            batch.column(column.name).cast(column.type)
            if column.name in carried
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
        self, batch: pa.RecordBatch, rows: np.ndarray, outcomes: Outcomes, moment: tuple[int, int]
    ) -> dict[int, str]:
        """Quarantine what is implausible; the offset and field name of each such row."""
        findings = self.findings(batch, *moment)
        faulty: dict[int, str] = {}
        for code, (reason, name) in enumerate(findings.reasons):
            found = rows[findings.codes == code]
            outcomes.mark(found, QUARANTINED, reason)
            faulty.update(dict.fromkeys(outcomes.offsets[found].tolist(), name))
        return faulty


def _open(batch: pa.RecordBatch, rows: np.ndarray, outcomes: Outcomes) -> tuple[pa.RecordBatch, np.ndarray]:
    """The rows that nothing has taken out, and their numbers."""
    keep = np.flatnonzero(outcomes.is_open(rows))
    return (batch, rows) if len(keep) == len(rows) else (batch.take(pa.array(keep)), rows[keep])


def int64(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """A column of numbers or times (then µs) without nulls."""
    return batch.column(name).cast(pa.int64()).to_numpy(zero_copy_only=False)


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], column.type) for column in schema], schema=schema)
