"""Admitted rows to blocks: envelope, Avro, one block per way.

Comes in: parts (a RecordBatch of the event's Arrow schema, or one row as a tuple) that passed the gate, and
the stamp of the spool. Goes out: blocks. Invariants: rows keep their order within a partition; the sequence
in a record is the one its receipt names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.codec import Codec
from pipeline.edge.blocks import BLOCK_BYTES_MAX, Block, Stamp, bounds
from pipeline.edge.metrics import EdgeMetrics
from pipeline.edge.routes import Routes
from pipeline.edge.submission import Refused
from pipeline.errors import RecordError
from pipeline.reasons import Reason

STAMPED = {"spool": "int64", "lane": "int32", "sequence": "int64", "received_time": "datetime64[us]"}
CHUNK_BYTES = 64 << 20  # encoded at a time: offsets of an Arrow array end at 2 GiB
CHUNK_ROWS = 65_536
_FEW = 512  # below it even records of the largest size fit a chunk

Row = tuple[Any, ...]  # values of the event's fields in order, without STAMPED


class EventEncoder:
    """Encoder of one event type; used by one thread at a time."""

    def __init__(
        self, event: str, codec: Codec, routes: Routes, record_bytes_max: int, metrics: EdgeMetrics
    ) -> None:
        self.event = event
        self.arrow = codec.arrow
        self._codec = codec
        self._routes = routes
        self._record_bytes_max = record_bytes_max
        self._metrics = metrics

    def batch(self, rows: Sequence[Row]) -> pa.RecordBatch:
        """Rows as a batch of the event's schema; the stamped columns hold zeros."""
        given = zip(*rows, strict=True)
        columns = [
            not_stamped(field.name, len(rows)) if field.name in STAMPED else pa.array(next(given), field.type)
            for field in self.arrow
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.arrow)

    def encode(self, parts: Sequence[pa.RecordBatch | Row], stamp: Stamp) -> list[Block]:
        """Blocks of all rows, numbered in order. Raises Refused for parts with a record above the limit."""
        whole = self._join(parts)
        rows_max = len(whole)
        if rows_max > _FEW:
            rows_max = max(1, min(CHUNK_ROWS, CHUNK_BYTES * rows_max // max(1, whole.nbytes)))
        blocks: list[Block] = []
        for start in range(0, len(whole), rows_max):
            chunk = whole.slice(start, rows_max)
            first = stamp.first_sequence + start
            values = self._codec.encode(self._stamped(chunk, first, stamp))
            self._expect_small(values, start, parts)
            blocks += self._blocks(chunk, values, first, stamp)
        return blocks

    def _join(self, parts: Sequence[pa.RecordBatch | Row]) -> pa.RecordBatch:
        batches: list[pa.RecordBatch] = []
        for is_row, neighbours in groupby(parts, lambda part: isinstance(part, tuple)):
            run = list(neighbours)
            batches += [self.batch(run)] if is_row else run
        return batches[0] if len(batches) == 1 else pa.concat_batches(batches)

    def _stamped(self, batch: pa.RecordBatch, first: int, stamp: Stamp) -> pa.RecordBatch:
        count = len(batch)
        given = {
            "spool": np.full(count, stamp.spool, np.int64),
            "lane": np.full(count, stamp.lane, np.int32),
            "sequence": np.arange(first, first + count, dtype=np.int64),
            "received_time": np.full(count, stamp.received_us, np.int64).view("datetime64[us]"),
        }
        columns = [
            pa.array(given[field.name]) if field.name in given else column
            for field, column in zip(self.arrow, batch.columns, strict=True)
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.arrow)

    def _expect_small(self, values: pa.BinaryArray, start: int, parts: Sequence[Any]) -> None:
        sizes = np.diff(bounds(values))
        limit = self._record_bytes_max
        if int(sizes.max(initial=0)) <= limit:
            return
        counts = [1 if isinstance(part, tuple) else len(part) for part in parts]
        starts = np.cumsum([0, *counts])
        faults: dict[int, RecordError] = {}
        for row in np.flatnonzero(sizes > limit).tolist():
            part = int(np.searchsorted(starts, start + row, side="right")) - 1
            if part in faults:
                continue
            inside = start + row - int(starts[part])
            problem = f"row {inside}: {int(sizes[row])} bytes encoded, more than record_bytes_max {limit}"
            faults[part] = RecordError(problem, reason=Reason.OVERSIZE, remedy="send less in one event")
            self._metrics.rejected(self.event, Reason.OVERSIZE, counts[part])
        raise Refused(faults)

    def _blocks(
        self, batch: pa.RecordBatch, values: pa.BinaryArray, first: int, stamp: Stamp
    ) -> Iterator[Block]:
        ways = self._routes.ways(batch.column("source"), batch.column("jurisdiction"))
        order = np.argsort(ways.astype(np.uint16 if int(ways.max()) < 65_536 else np.int64), kind="stable")
        ways = ways[order]
        if ways[0] != ways[-1]:
            values = values.take(pa.array(order))
        offsets = bounds(values)
        starts = np.concatenate(([0], np.flatnonzero(np.diff(ways)) + 1))
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(ways)], strict=True):
            region, partition = self._routes.way(int(ways[start]))
            for a, b in _cuts(offsets, start, stop):
                yield Block(
                    stamp.lane, region, self.event, partition, first + int(order[a]),
                    first + int(order[b - 1]), stamp.received_us // 1000, values.slice(a, b - a),
                )  # fmt: skip


def not_stamped(name: str, count: int) -> pa.Array:
    """What stands in a stamped column until the spool has given sequences."""
    return pa.array(np.zeros(count, STAMPED[name]))


def _cuts(offsets: np.ndarray, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Rows [start, stop) in pieces of at most BLOCK_BYTES_MAX, one row at least."""
    while start < stop:
        limit = int(offsets[start]) + BLOCK_BYTES_MAX
        end = min(stop, max(start + 1, int(np.searchsorted(offsets, limit, side="right")) - 1))
        yield start, end
        start = end
