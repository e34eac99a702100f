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
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa

from pipeline.batches import FILTERED, QUARANTINED, REPEAT, Outcomes, Run
from pipeline.checks import Findings
from pipeline.codec import Codec
from pipeline.intake import Reading
from pipeline.policy import Plan
from pipeline.policy.crowd import SUPPRESSED
from pipeline.policy.plan import Choices
from pipeline.processor.repeats import Seen, find_repeats
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

    ``reading``: what comes in. ``curated``: what goes out. ``choices``: what people have said, where the plan
    asks for consent.
    """

    reading: Reading
    plan: Plan
    curated: Codec
    choices: Choices | None = field(default=None, kw_only=True)

    @property
    def event(self) -> EventType:
        """What comes in, at its newest version."""
        return self.reading.event

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

    # --- one batch ---------------------------------------------------------------------------------------

    def process(self, records: Records, seen: Seen, decided: Decided, now_us: int) -> Landed:
        """Records to a :class:`Landed`; deterministic but for ``now_us`` (since 1970, UTC)."""
        outcomes = Outcomes(records.offsets, records.refused)
        if records.first_offset < decided.end:
            outcomes.decide(decided.end, decided.runs)
        taken = self.reading.read(records.values)
        for (unreadable, _), found in taken.refused.items():
            outcomes.mark(found, QUARANTINED, unreadable)
        batch, rows = taken.batch, taken.rows
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
