"""The door before a plan: framed records in, rows that a plan may be applied to out.

Comes in: values as they stand in a raw or curated topic, of any locked version of one event. Goes out: one
batch in the event's newest shape with the row number of each, and why every other record is no such row. It
asks what the processor asks ("readable? plausible?") for those that read a topic without being a processor:
a user's stream, a comparison of two packs. Invariant: every record is a row or refused, never both, never
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
    """``batch``: rows fit for a plan. ``rows``: their numbers among the records, ascending. ``refused``: the
    other records."""

    batch: pa.RecordBatch
    rows: np.ndarray
    refused: Refusals


@dataclass(frozen=True)
class Intake:
    """One event's way from bytes to checked rows; holds no state between calls.

    ``codecs``: schema ids that count as this event. Older versions are brought to the newest, with nulls for
    what they lack.
    """

    event: EventType
    codecs: Mapping[int, Codec]
    checks: RowChecks
    record_bytes_max: int
    fingerprints: Mapping[bytes, int] = field(default_factory=dict)

    def take(self, values: pa.BinaryArray, now_us: int) -> Taken:
        """Decode and check; ``now_us``: microseconds since 1970 UTC, for the checks of time."""
        refused: Refusals = {}
        rows = np.arange(len(values))
        values = values.fill_null(b"") if values.null_count else values
        sizes = pc.binary_length(values).to_numpy(zero_copy_only=False)
        if len(sizes) and sizes.max() > self.record_bytes_max:
            refused[Reason.OVERSIZE, ""] = rows[sizes > self.record_bytes_max]
            rows = rows[sizes <= self.record_bytes_max]
            values = values.take(pa.array(rows))
        batch, rows = self._decode(values, rows, refused)
        return self._checked(batch, rows, refused, now_us)

    def _decode(
        self, values: pa.BinaryArray, rows: np.ndarray, refused: Refusals
    ) -> tuple[pa.RecordBatch, np.ndarray]:
        ids, bodies = unframe(values, self.fingerprints)
        parts: list[tuple[pa.RecordBatch, np.ndarray]] = []
        for schema_id in np.unique(ids).tolist():
            chosen = np.flatnonzero(ids == schema_id)
            codec = self.codecs.get(schema_id)
            if codec is None:
                _refuse(refused, Reason.FRAMING if schema_id < 0 else Reason.UNKNOWN_SCHEMA, rows[chosen])
                continue
            batch, good, bad = codec.decode(bodies.take(pa.array(chosen)))
            for reason in set(bad.values()):
                _refuse(refused, reason, rows[chosen[[row for row, why in bad.items() if why == reason]]])
            parts.append((newest(batch, self.event.arrow), rows[chosen[good]]))
        return _joined(parts, self.event.arrow)

    def _checked(self, batch: pa.RecordBatch, rows: np.ndarray, refused: Refusals, now_us: int) -> Taken:
        findings = self.checks.run(batch, now_us)
        if findings.all_good:
            return Taken(batch, rows, refused)
        for (reason, name), failed in findings.failed().items():
            _refuse(refused, reason, rows[failed], name)
        good = findings.good()
        return Taken(batch.take(pa.array(good)), rows[good], refused)


def newest(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A batch of an older version with the newest one's columns; nullable ones that it lacks are null."""
    if batch.schema.equals(schema):
        return batch
    columns = [
        batch.column(column.name).cast(column.type)
        if column.name in batch.schema.names
        else pa.nulls(len(batch), column.type)
        for column in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


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
