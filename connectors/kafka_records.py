"""Record batches to Arrow columns, without one Python object per record.

Comes in: the bytes of a fetch response. Goes out: a :class:`Fetched` of numpy and Arrow columns. Invariants:
what is read is proven to be framed as declared, or read again record by record, or refused as a whole with
its positions; no position is skipped in silence.

Reading rests on a likeness: Kafka's varints are Avro's zigzag longs, so the records of a batch, after their
count and before a zero byte, are one Avro array. The decoder works through it at 4 M records/s. A record that
does not fit the assumed shape (headers, null value, other padding) would shift its followers, so
:func:`_proven` compares every declared length with the decoded fields and their sum with the section.

Transactions: the pipeline uses none. Markers are passed over, aborted records are read like others
(read_uncommitted); do not point a foreign transactional producer at a raw topic.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyruhvro
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch

from connectors.kafka_batch import HEADER_BYTES, BatchRefused, RawBatch, split_batches
from connectors.kafka_encode import join_varints, varint_lengths

_PARSE_STOP_BYTES = 33_554_432  # one Fetched ends after the batch that passes this; the rest waits
_EMPTY_I64 = np.empty(0, np.int64)
_NO_VALUES = pa.array([], pa.binary())


@dataclass(frozen=True)
class Fetched:
    """What one fetch gave for one partition: positions [first_offset, next_offset), whole batches trimmed.

    ``offsets`` ascend and may have holes (compaction, markers). ``keys`` is None when no record has one. A
    null value is a tombstone. ``refused`` names positions that exist and cannot be read: (first, next,
    reason); they lie inside [first_offset, next_offset) and have no row.
    """

    topic: str
    partition: int
    first_offset: int
    next_offset: int
    offsets: np.ndarray = field(default_factory=lambda: _EMPTY_I64)
    timestamps_ms: np.ndarray = field(default_factory=lambda: _EMPTY_I64)
    keys: pa.BinaryArray | None = None
    values: pa.BinaryArray = field(default_factory=lambda: _NO_VALUES)
    refused: tuple[tuple[int, int, str], ...] = ()

    def __len__(self) -> int:
        return len(self.offsets)


class BytesCorrupt(Exception):
    """The bytes at ``offset`` are not those that were sent: fetch again, then stop."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.offset = offset
        self.reason = reason


@dataclass(frozen=True)
class _Section:
    batch: RawBatch
    records: bytes | memoryview
    shape: str  # "bare": no key; "keyed"; "odd": one by one


@dataclass(frozen=True)
class _Rows:
    offsets: np.ndarray
    timestamps_ms: np.ndarray
    keys: pa.BinaryArray | None
    values: pa.BinaryArray


def parse_batches(data: memoryview, asked: Fetched, bytes_max: int) -> tuple[Fetched, int]:
    """Read whole batches from ``data``; returns the columns and how many bytes were used.

    ``asked`` is an empty Fetched at the position asked for; ``bytes_max`` bounds one batch's decompressed
    records. Stops early (fewer bytes used) when much has been decompressed already. Raises BytesCorrupt when
    the first batch fails its checksum; a later one ends the run before it.
    """
    sections: list[_Section] = []
    refused: list[tuple[int, int, str]] = []
    position, used, unpacked = asked.next_offset, 0, 0
    try:
        for batch in split_batches(data):
            if batch.next_offset > position:
                if not batch.crc_holds():
                    raise BytesCorrupt(batch.base_offset, "checksum differs")
                start = max(position, batch.base_offset)
                position = batch.next_offset
                if not batch.is_control and batch.count:
                    try:
                        records = batch.records(bytes_max)
                        sections.append(_Section(batch, records, _shape(records)))
                        unpacked += len(records)
                    except BatchRefused as error:
                        refused.append((start, batch.next_offset, error.reason))
            used += len(batch.data)
            if unpacked > _PARSE_STOP_BYTES:
                break
    except BytesCorrupt:
        if not used:
            raise
    except BatchRefused as error:
        if not used:
            raise BytesCorrupt(asked.next_offset, error.reason) from None
    pieces, odd = _read_sections(sections)
    refused = sorted(refused + [(max(first, asked.next_offset), stop, why) for first, stop, why in odd])
    return _assemble(asked, position, pieces, tuple(refused)), used


def _assemble(
    asked: Fetched, position: int, pieces: list[_Rows], refused: tuple[tuple[int, int, str], ...]
) -> Fetched:
    if not pieces:
        return replace(asked, next_offset=position, refused=refused)
    keys = None
    if any(piece.keys is not None for piece in pieces):
        blank = [pa.nulls(len(p.offsets), pa.binary()) if p.keys is None else p.keys for p in pieces]
        keys = pa.concat_arrays(blank)
    offsets = np.concatenate([piece.offsets for piece in pieces])
    times = np.concatenate([piece.timestamps_ms for piece in pieces])
    values = pa.concat_arrays([piece.values for piece in pieces])
    start = int(np.searchsorted(offsets, asked.first_offset))
    if start:
        offsets, times, values = offsets[start:], times[start:], values[start:]
        keys = None if keys is None else keys[start:]
    return replace(
        asked,
        next_offset=position,
        offsets=offsets,
        timestamps_ms=times,
        keys=keys,
        values=values,
        refused=refused,
    )


def _shape(records: bytes | memoryview) -> str:
    """How the first record looks; the proof later says whether all do."""
    try:
        at = _skip_varint(records, 0) + 1
        at = _skip_varint(records, _skip_varint(records, at))
        if records[at] != 0x01:
            return "keyed"
        return "odd" if records[at + 1] == 0x01 else "bare"
    except IndexError:
        return "odd"


def _skip_varint(records: bytes | memoryview, at: int) -> int:
    while records[at] & 0x80:
        at += 1
    return at + 1


def _read_sections(sections: list[_Section]) -> tuple[list[_Rows], list[tuple[int, int, str]]]:
    """Runs of sections of one shape in one go; where that is not proven, batch by batch."""
    pieces: list[_Rows] = []
    refused: list[tuple[int, int, str]] = []
    for run in _runs(sections):
        rows = _read_joined(run)
        if rows is not None:
            pieces.append(rows)
            continue
        for section in run:
            try:
                pieces.append((_read_joined([section]) if len(run) > 1 else None) or _read_singly(section))
            except BatchRefused as error:
                refused.append((section.batch.base_offset, section.batch.next_offset, error.reason))
    return pieces, refused


def _runs(sections: list[_Section]) -> Iterator[list[_Section]]:
    run: list[_Section] = []
    for section in sections:
        if run and section.shape != run[0].shape:
            yield run
            run = []
        run.append(section)
    if run:
        yield run


def _schema(fields: str) -> str:
    kinds = {"key": "string", "value": "string"}
    record = {
        "type": "record",
        "name": "Record",
        "fields": [{"name": name, "type": kinds.get(name, "long")} for name in fields.split()],
    }
    items = {"name": "records", "type": {"type": "array", "items": record}}
    return json.dumps({"type": "record", "name": "Section", "fields": [items]})


_SCHEMAS = {
    "bare": _schema("length attributes time offset no_key value headers"),
    "keyed": _schema("length attributes time offset key value headers"),
}


def _read_joined(run: list[_Section]) -> _Rows | None:
    """All sections as one Avro array, or None when that is not proven to be what they hold."""
    shape = run[0].shape
    counts = [section.batch.count for section in run]
    size = sum(len(section.records) for section in run)
    if shape == "odd" or min(counts) < 0 or sum(counts) * 7 > size:
        return None
    count = join_varints([np.array([sum(counts)], np.int64)])[0].as_py()
    datum = b"".join([count, *(section.records for section in run), b"\0"])
    table = _decode(datum, _SCHEMAS[shape])
    if table is None or len(table) != sum(counts) or not _proven(table, size):
        return None
    batches = [section.batch for section in run]
    deltas, times = _ints(table, "offset"), _ints(table, "time")
    if not _deltas_fit(deltas, batches):
        return None
    offsets = deltas + np.repeat(np.array([b.base_offset for b in batches], np.int64), counts)
    times = times + np.repeat(np.array([b.first_timestamp_ms for b in batches], np.int64), counts)
    for index, batch in enumerate(batches):
        if batch.has_broker_time:
            start = sum(counts[:index])
            times[start : start + batch.count] = batch.max_timestamp_ms
    keys = table.field("key").cast(pa.binary()) if shape == "keyed" else None
    return _Rows(offsets, times, keys, table.field("value").cast(pa.binary()))


def _decode(datum: bytes, schema: str) -> pa.StructArray | None:
    try:
        return pa.record_batch(pyruhvro.deserialize_array([datum], schema)).column(0).values
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # The decoder is Rust: a panic arrives as a BaseException that is no Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            return None
        raise


def _proven(table: pa.StructArray, size: int) -> bool:
    """True when every record fills exactly the length it declares and all of them the section.

    The decoder reads fields back to back. A padded varint would make it use more bytes than counted here, so
    the sum could only hold by running past the section's end, which is an error of the decoder.
    """
    declared = _ints(table, "length")
    body = np.ones(len(table), np.int64)  # header count 0
    for name in ("attributes", "time", "offset"):
        body += varint_lengths(_ints(table, name))
    for name in ("no_key", "key", "value"):
        if table.type.get_field_index(name) < 0:
            continue
        if name == "no_key":
            body += 1
            continue
        lengths = pc.binary_length(table.field(name)).to_numpy(zero_copy_only=False).astype(np.int64)
        body += lengths + varint_lengths(lengths)
    bare = "no_key" not in {f.name for f in table.type} or bool((_ints(table, "no_key") == -1).all())
    plain = not _ints(table, "headers").any() and not _ints(table, "attributes").any()
    return bool(
        plain
        and bare
        and (declared == body).all()
        and int(declared.sum() + varint_lengths(declared).sum()) == size
    )


def _deltas_fit(deltas: np.ndarray, batches: list[RawBatch]) -> bool:
    """Offsets ascend within each batch and stay inside it."""
    start = 0
    for batch in batches:
        mine = deltas[start : start + batch.count]
        start += batch.count
        if mine[0] < 0 or mine[-1] > batch.last_offset_delta or (np.diff(mine) <= 0).any():
            return False
    return True


def _ints(table: pa.StructArray, name: str) -> np.ndarray:
    return table.field(name).to_numpy(zero_copy_only=False)


def _read_singly(section: _Section) -> _Rows:
    """Record by record through aiokafka's own reader; headers are read over. Raises BatchRefused."""
    batch = section.batch
    plain = bytearray(batch.data[:HEADER_BYTES])
    plain[22] &= ~0x07  # already decompressed, within bounds
    try:
        records = list(DefaultRecordBatch(bytes(plain) + bytes(section.records)))
    except (CorruptRecordException, ValueError, IndexError, UnicodeDecodeError, MemoryError):
        raise BatchRefused("records do not fill their batch") from None
    offsets = np.array([record.offset for record in records], np.int64)
    if len(offsets) != batch.count or not _deltas_fit(offsets - batch.base_offset, [batch]):
        raise BatchRefused("offsets outside their batch")
    keys = [record.key for record in records]
    return _Rows(
        offsets,
        np.array([record.timestamp for record in records], np.int64),
        pa.array(keys, pa.binary()) if any(key is not None for key in keys) else None,
        pa.array([record.value for record in records], pa.binary()),
    )
