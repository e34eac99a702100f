"""Arrow columns to record batches, without one Python object per record.

Comes in: :class:`Columns`, rows for one partition. Goes out: batches that lack only the producer's identity.
Invariant: the bytes are those that aiokafka's own builder would make of the same rows.

A record is: length, attributes 0, time delta, offset delta, key length, key, value length, value, header
count 0; all numbers but the attributes are zigzag varints (KIP-98). The varints of all rows are written by
numpy, then joined with keys and values by one Arrow kernel: 0.1 µs a record.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors.kafka_batch import CODECS, HEADER_BYTES, UnsealedBatch, compress
from pipeline.errors import RecordError

# At most: length 4, attributes 1, time delta 1, offset delta 3, no key 1, value length 4, header count 1.
_RECORD_OVERHEAD_BYTES = 15
_KEY_OVERHEAD_BYTES = 3  # its length takes up to 4 bytes instead of 1
_TIME_OVERHEAD_BYTES = 9  # a delta of any 64 bits


@dataclass(frozen=True)
class Columns:
    """What to send to one partition, row for row."""

    values: pa.BinaryArray  # null: a tombstone
    keys: pa.BinaryArray | None = None
    timestamps_ms: np.ndarray | None = None  # int64; None: now

    def slice(self, start: int, stop: int) -> Columns:
        """Rows ``start`` to ``stop`` (half-open)."""
        return Columns(
            self.values.slice(start, stop - start),
            None if self.keys is None else self.keys.slice(start, stop - start),
            None if self.timestamps_ms is None else self.timestamps_ms[start:stop],
        )


def batch_bounds(columns: Columns, batch_bytes_max: int) -> list[tuple[int, int]]:
    """Row ranges (half-open, in order) whose batches stay within ``batch_bytes_max`` uncompressed bytes.

    Raises RecordError (oversize) when one record alone does not fit.
    """
    sizes = _lengths(columns.values).clip(0) + _RECORD_OVERHEAD_BYTES
    if columns.keys is not None:
        sizes = sizes + _lengths(columns.keys).clip(0) + _KEY_OVERHEAD_BYTES
    if columns.timestamps_ms is not None:
        sizes = sizes + _TIME_OVERHEAD_BYTES
    room = batch_bytes_max - HEADER_BYTES
    if len(sizes) and int(sizes.max()) > room:
        raise RecordError(
            f"expected at most {room} bytes, found {int(sizes.max())}",
            reason="oversize",
            remedy="send less per event",
        )
    ends = np.cumsum(sizes)
    bounds, start, spent = [], 0, 0
    while start < len(ends):
        stop = int(np.searchsorted(ends, spent + room, side="right"))
        bounds.append((start, stop))
        start, spent = stop, int(ends[stop - 1])
    return bounds


def encode_batch(columns: Columns, codec: str) -> UnsealedBatch:
    """All rows as one batch; offsets count from 0."""
    count = len(columns.values)
    times = columns.timestamps_ms
    if times is None:
        first = latest = int(time.time() * 1000)
        deltas = np.zeros(count, np.int64)
    else:
        times = np.ascontiguousarray(times, np.int64)
        first, latest = int(times[0]), int(times.max())
        deltas = times - first
    attributes, records = compress(CODECS[codec], _join_records(columns, deltas))
    return UnsealedBatch(records, attributes, count, first, latest)


def _join_records(columns: Columns, time_deltas: np.ndarray) -> bytes:
    value_lengths = _lengths(columns.values)
    count = len(value_lengths)
    zeros = np.zeros(count, np.int64)
    key_lengths = _lengths(columns.keys) if columns.keys is not None else zeros - 1
    before_key = [zeros, time_deltas, np.arange(count), key_lengths]
    body = key_lengths.clip(0) + value_lengths.clip(0) + 1  # the header count is one byte
    body = body + sum(varint_lengths(column) for column in [*before_key, value_lengths])
    tail, nothing = pa.scalar(b"\0", pa.binary()), pa.scalar(b"", pa.binary())
    values = columns.values.fill_null(b"") if columns.values.null_count else columns.values
    if columns.keys is None:
        head = join_varints([body, *before_key, value_lengths])
        parts = [head, values, tail]
    else:
        head, middle = join_varints([body, *before_key]), join_varints([value_lengths])
        parts = [head, columns.keys.fill_null(b""), middle, values, tail]
    return _flat_bytes(pc.binary_join_element_wise(*parts, nothing))


def varint_lengths(column: np.ndarray) -> np.ndarray:
    """Bytes of each int64 as a zigzag varint, int64."""
    return _varint_lengths(_zigzag(column))


def join_varints(columns: Sequence[np.ndarray]) -> pa.BinaryArray:
    """Row by row, the zigzag varints of all int64 columns one after the other."""
    coded = [_zigzag(column) for column in columns]
    lengths = [_varint_lengths(column) for column in coded]
    ends = np.zeros(len(coded[0]) + 1, np.int64)
    np.cumsum(sum(lengths), out=ends[1:])
    out = np.zeros(int(ends[-1]), np.uint8)
    at = ends[:-1]
    for column, length in zip(coded, lengths, strict=True):
        _put_varints(out, at, column, length)
        at = at + length
    buffers = [None, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(out)]
    return pa.BinaryArray.from_buffers(pa.binary(), len(ends) - 1, buffers)


def _zigzag(column: np.ndarray) -> np.ndarray:
    return ((column << 1) ^ (column >> 63)).view(np.uint64)


def _varint_lengths(coded: np.ndarray) -> np.ndarray:
    lengths = np.ones(len(coded), np.int64)
    largest = int(coded.max(initial=0))
    shift = 7
    while shift < 64 and largest >> shift:
        lengths += coded >= np.uint64(1 << shift)
        shift += 7
    return lengths


def _put_varints(out: np.ndarray, at: np.ndarray, coded: np.ndarray, lengths: np.ndarray) -> None:
    """Write byte k of every varint that has one, for each k."""
    for k in range(int(lengths.max(initial=0))):
        if k:
            longer = lengths > k
            at, coded, lengths = at[longer], coded[longer], lengths[longer]
        more = np.where(lengths > k + 1, np.uint64(0x80), np.uint64(0))
        out[at + k] = ((coded >> np.uint64(7 * k)) & np.uint64(0x7F)) | more


def _lengths(column: pa.BinaryArray) -> np.ndarray:
    """Bytes per row, -1 for null."""
    lengths = pc.binary_length(column)
    if column.null_count:
        lengths = lengths.fill_null(-1)
    return lengths.to_numpy(zero_copy_only=False).astype(np.int64)


def _flat_bytes(column: pa.BinaryArray) -> bytes:
    """The bytes of all rows, one after the other."""
    offsets = np.frombuffer(column.buffers()[1], np.int32)
    first, last = offsets[column.offset], offsets[column.offset + len(column)]
    return bytes(memoryview(column.buffers()[2])[first:last])
