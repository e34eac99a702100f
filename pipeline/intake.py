"""The door of every leg: framed records in, rows of one event's newest shape out.

Comes in: values as they stand in a raw or curated topic, of any locked version of one event. Goes out: one
batch with the row number of each record, and why every other record is no such row. :class:`Reading` asks
"readable?"; :class:`Intake` also asks "plausible?", for those that apply a plan without being a processor: a
user's stream, a comparison of two packs. Invariant: every record is a row or refused, never both, never
neither; reasons name checks and fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.checks import Findings
from pipeline.codec import Codec
from pipeline.events import EventType
from pipeline.framing import unframe
from pipeline.reasons import Reason

Refusals = dict[tuple[str, str], np.ndarray]  # (reason, field or "") -> ascending row numbers


class RowChecks(Protocol):
    """Which rows are plausible: :class:`pipeline.checks.Checks`."""

    def run(self, batch: pa.RecordBatch, now_us: int) -> Findings:
        """One finding per row."""
        ...


@dataclass(frozen=True)
class Taken:
    """``batch``: rows in the newest shape. ``rows``: their numbers among the records, ascending. ``refused``:
    the other records."""

    batch: pa.RecordBatch
    rows: np.ndarray
    refused: Refusals


@dataclass(frozen=True)
class Reading:
    """One event's way from bytes to rows; holds no state between calls.

    ``event``: at its newest version. ``codecs``: schema ids that count as it, newest one included.
    ``fingerprints``: single-object headers to schema ids. ``carried``: per id of an older version the columns
    that mean the same in the newest; without an entry, all that have the same name. The others become null.
    """

    event: EventType
    codecs: Mapping[int, Codec]
    record_bytes_max: int
    fingerprints: Mapping[bytes, int] = field(default_factory=dict)
    carried: Mapping[int, frozenset[str]] = field(default_factory=dict)

    def read(self, values: pa.BinaryArray) -> Taken:
        """Decode, whatever the records are."""
        refused: Refusals = {}
        rows = np.arange(len(values))
        values = values.fill_null(b"") if values.null_count else values
        sizes = pc.binary_length(values).to_numpy(zero_copy_only=False)
        if len(sizes) and sizes.max() > self.record_bytes_max:
            _refuse(refused, Reason.OVERSIZE, rows[sizes > self.record_bytes_max])
            rows = rows[sizes <= self.record_bytes_max]
            values = values.take(pa.array(rows))
        ids, bodies = unframe(values, self.fingerprints)
        parts: list[tuple[pa.RecordBatch, np.ndarray]] = []
        for schema_id in np.unique(ids).tolist():
            chosen = np.flatnonzero(ids == schema_id)
            codec = self.codecs.get(schema_id)
            if codec is None:
                _refuse(refused, Reason.FRAMING if schema_id < 0 else Reason.UNKNOWN_SCHEMA, rows[chosen])
                continue
            whole = len(chosen) == len(rows)
            batch, good, bad = codec.decode(bodies if whole else bodies.take(pa.array(chosen)))
            for reason in set(bad.values()):
                _refuse(refused, reason, rows[chosen[[row for row, why in bad.items() if why == reason]]])
            parts.append((self._newest(batch, schema_id), rows[chosen[good]]))
        return Taken(*_joined(parts, self.event.arrow), refused)

    def _newest(self, batch: pa.RecordBatch, schema_id: int) -> pa.RecordBatch:
        if schema_id == self.event.schema_id:
            return batch
        carried = self.carried.get(schema_id, frozenset(batch.schema.names))
        columns = [
            batch.column(column.name).cast(column.type)
            if column.name in carried
            else pa.nulls(len(batch), column.type)
            for column in self.event.arrow
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.event.arrow)


@dataclass(frozen=True)
class Intake:
    """Readable and plausible: rows that a plan may be applied to."""

    reading: Reading
    checks: RowChecks

    @property
    def event(self) -> EventType:
        """At its newest version."""
        return self.reading.event

    def take(self, values: pa.BinaryArray, now_us: int) -> Taken:
        """Decode and check; ``now_us``: microseconds since 1970 UTC, for the checks of time."""
        taken = self.reading.read(values)
        findings = self.checks.run(taken.batch, now_us)
        if findings.all_good:
            return taken
        for (reason, name), failed in findings.failed().items():
            _refuse(taken.refused, reason, taken.rows[failed], name)
        good = findings.good()
        return Taken(taken.batch.take(pa.array(good)), taken.rows[good], taken.refused)


def _refuse(refused: Refusals, reason: str, rows: np.ndarray, field: str = "") -> None:
    key = (str(reason), field)
    refused[key] = np.union1d(refused[key], rows) if key in refused else np.sort(rows)


def _joined(
    parts: list[tuple[pa.RecordBatch, np.ndarray]], schema: pa.Schema
) -> tuple[pa.RecordBatch, np.ndarray]:
    """Parts of several versions as one batch, in the order of the records again."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        empty = [pa.array([], column.type) for column in schema]
        return pa.RecordBatch.from_arrays(empty, schema=schema), np.empty(0, dtype=np.int64)
    rows = np.concatenate([part[1] for part in parts])
    order = np.argsort(rows)
    return pa.concat_batches([part[0] for part in parts]).take(pa.array(order)), rows[order]
