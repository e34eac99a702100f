"""Avro records to Arrow batches and back, in bulk, proven byte by byte.

Comes in: the bodies of Kafka records, trusted in nothing but their size (the caller bounds it). Goes out: a
RecordBatch of exactly the schema's Arrow shape, and a reason for each record that is not in it. Invariant:
every row that comes out was decoded from exactly the bytes of its own record.

How that is proven: the bodies of a batch, behind a count and before a zero, are one Avro array, which the
bulk decoder reads at millions of rows a second. A malformed record would shift all that follow it,
silently. So the result is encoded again, and a row counts only when its bytes equal its record's: Avro's
canonical encoding is injective, so equal bytes are the same datum, wherever the decoder believed itself to
be. What is not proven is halved and tried again; small remainders go one by one through pipeline.avro,
which is strict and slow.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyruhvro

from pipeline.avro import Malformed, canonicaliser, zigzag
from pipeline.control_records import decode_control, encode_control
from pipeline.errors import ConfigError
from pipeline.events import LockedSchema, bare_schema, kind_of, split_null
from pipeline.framing import frame, unframe
from pipeline.reasons import Reason

__all__ = ["Codec", "decode_control", "encode_control", "frame", "unframe"]

# A Python constant handed to an Arrow kernel costs 40 µs a call (it looks for pandas), a scalar 4.
_NOTHING = pa.scalar(b"", pa.binary())
_SINGLY = 16  # below this many doubtful rows, reading them one by one is cheaper than halving on


class Codec:
    """Encoder and decoder of one schema id. Holds no state between calls; safe in several threads."""

    def __init__(self, locked: LockedSchema) -> None:
        self.locked = locked
        self.arrow: pa.Schema = locked.arrow
        bare = bare_schema(locked.schema)
        self._json = json.dumps(bare)
        self._array_json = json.dumps(
            {
                "type": "record",
                "name": "Batch",
                "fields": [{"name": "rows", "type": {"type": "array", "items": bare}}],
            }
        )
        self._frame = pa.scalar(frame(locked.id), pa.binary())
        none = [pa.array([], field.type) for field in self.arrow]
        self._empty = pa.RecordBatch.from_arrays(none, schema=self.arrow)
        self._canonical = canonicaliser(locked.schema)

    def encode(self, batch: pa.RecordBatch) -> pa.BinaryArray:
        """Each row as one framed record. Raises ConfigError when the batch is not of this schema's shape."""
        return pc.binary_join_element_wise(self._frame, self.encode_bare(batch), _NOTHING)

    def encode_bare(self, batch: pa.RecordBatch) -> pa.BinaryArray:
        """Each row as Avro without a frame; raises like :meth:`encode`."""
        if not batch.schema.equals(self.arrow):
            raise self._misfit("the batch has other columns or types than the schema")
        for field, column in zip(self.locked.schema["fields"], batch.columns, strict=True):
            if _has_stray_null(column, field["type"]):
                raise self._misfit(f"nulls in {field['name']}, where the schema does not allow them")
        encoded = self._serialise(batch)
        if encoded is None:
            raise self._misfit("a value has no encoding: an enum symbol that the schema does not know")
        return encoded

    def decode(self, bodies: pa.BinaryArray) -> tuple[pa.RecordBatch, np.ndarray, dict[int, Reason]]:
        """The good rows in order, their indices into ``bodies``, and why each other row is bad.

        ``bodies`` are unframed; a null counts as empty. Times beyond what ``datetime`` can hold come out as
        they are: run the checks before converting them.
        """
        if len(bodies) == 0:
            return self._empty, np.zeros(0, np.int64), {}
        if bodies.null_count:
            bodies = bodies.fill_null(b"")
        proof = _Proof(np.arange(len(bodies), dtype=np.int64))
        self._prove(bodies, proof)
        self._read_singly(bodies, proof)
        batch, rows = proof.result(self._empty)
        batch, rows, invalid = _without_invalid_text(batch, rows)
        proof.bad.update(dict.fromkeys(invalid, Reason.UTF8))
        return batch, rows, dict(sorted(proof.bad.items()))

    def _prove(self, bodies: pa.BinaryArray, proof: _Proof) -> None:
        """Bulk-decode, keep what encodes back to the same bytes, halve the rest."""
        open_rows = [proof.rows]
        while open_rows:
            rows = open_rows.pop()
            part = bodies if len(rows) == len(bodies) else bodies.take(pa.array(rows))
            batch = self._deserialise(part)
            encoded = None if batch is None else self._serialise(batch)
            if batch is not None and encoded is not None:
                if _same_bytes(encoded, part):
                    proof.keep(batch, rows)
                    continue
                same = pc.equal(encoded, part).to_numpy(zero_copy_only=False)
                proof.keep(batch.filter(pa.array(same)), rows[same])
                rows = rows[~same]
            if len(rows) <= _SINGLY:
                proof.doubtful.append(rows)
            else:
                half = len(rows) // 2
                open_rows += [rows[half:], rows[:half]]

    def _read_singly(self, bodies: pa.BinaryArray, proof: _Proof) -> None:
        """Read doubtful rows strictly; what has a canonical form is decoded from that form."""
        forms, rows = [], []
        for row in (int(r) for part in proof.doubtful for r in part):
            try:
                forms.append(self._canonical(bodies[row].as_py()))
                rows.append(row)
            except Malformed as fault:
                proof.bad[row] = Reason.UTF8 if fault.utf8 else Reason.UNDECODABLE
        if not rows:
            return
        canonical = pa.array(forms, pa.binary())
        batch = self._deserialise(canonical)
        encoded = None if batch is None else self._serialise(batch)
        if batch is not None and encoded is not None and _same_bytes(encoded, canonical):
            proof.keep(batch, np.array(rows, np.int64))
        else:
            proof.bad.update(dict.fromkeys(rows, Reason.UNDECODABLE))

    def _deserialise(self, bodies: pa.BinaryArray) -> pa.RecordBatch | None:
        """All bodies as one Avro array; None when the decoder fails or finds another number of rows."""
        try:
            decoded = pyruhvro.deserialize_array([_one_array(bodies)], self._array_json)
            items = pa.record_batch(decoded).column(0).flatten()
            if len(items) != len(bodies):
                return None
            columns = [
                column if column.type == field.type else column.cast(field.type)
                for field, column in zip(self.arrow, items.flatten(), strict=True)
            ]
            return pa.RecordBatch.from_arrays(columns, schema=self.arrow)
        except BaseException as error:
            _only_decoder_faults(error)
            return None

    def _serialise(self, batch: pa.RecordBatch) -> pa.BinaryArray | None:
        """The rows without frames; None when the encoder refuses one (its message would quote the value)."""
        try:
            return pa.array(pyruhvro.serialize_record_batch(batch, self._json, 1)[0])
        except BaseException as error:
            _only_decoder_faults(error)
            return None

    def _misfit(self, problem: str) -> ConfigError:
        return ConfigError(problem, operation="encode", place=f"{self.locked.subject} (id {self.locked.id})")


class _Proof:
    """What is settled about the rows of one batch so far."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows
        self.doubtful: list[np.ndarray] = []
        self.bad: dict[int, Reason] = {}
        self._kept: list[tuple[pa.RecordBatch, np.ndarray]] = []

    def keep(self, batch: pa.RecordBatch, rows: np.ndarray) -> None:
        """These rows are proven."""
        if len(rows):
            self._kept.append((batch, rows))

    def result(self, empty: pa.RecordBatch) -> tuple[pa.RecordBatch, np.ndarray]:
        """All proven rows in the order they came."""
        if not self._kept:
            return empty, np.zeros(0, np.int64)
        if len(self._kept) == 1:
            return self._kept[0]
        rows = np.concatenate([rows for _, rows in self._kept])
        table = pa.Table.from_batches([batch for batch, _ in self._kept]).combine_chunks()
        batch = table.to_batches()[0]
        order = np.argsort(rows)
        if not (np.diff(order) == 1).all():
            batch = batch.take(pa.array(order))
        return batch, rows[order]


def _has_stray_null(column: pa.Array, avro_type: Any) -> bool:
    """Whether a null lies where the schema has none: the encoder would write some value in its place."""
    inner, nullable = split_null(avro_type)
    if not nullable and column.null_count:
        return True
    kind = kind_of(inner)
    if kind == "array":
        return _has_stray_null(pc.list_flatten(column), inner["items"])
    if kind == "record":
        present = column.drop_null()
        children = (pc.struct_field(present, [i]) for i in range(len(inner["fields"])))
        return any(_has_stray_null(c, f["type"]) for c, f in zip(children, inner["fields"], strict=True))
    return False


def _one_array(bodies: pa.BinaryArray) -> bytes:
    """Avro's array encoding of the bodies: one block with its count, then the end."""
    _, offsets_buffer, data_buffer = bodies.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)
    first, last = int(offsets[bodies.offset]), int(offsets[bodies.offset + len(bodies)])
    data = memoryview(data_buffer)[first:last] if data_buffer is not None else b""
    return b"".join((zigzag(len(bodies)), data, b"\0"))


def _same_bytes(a: pa.BinaryArray, b: pa.BinaryArray) -> bool:
    return a.equals(b)


def _only_decoder_faults(error: BaseException) -> None:
    """Let through what must not be swallowed. A Rust panic arrives as PanicException, a BaseException."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def _without_invalid_text(
    batch: pa.RecordBatch, rows: np.ndarray
) -> tuple[pa.RecordBatch, np.ndarray, list[int]]:
    """Take out rows with a string that is not UTF-8: the decoder passes it, every later reader fails."""
    if _is_valid(batch):
        return batch, rows, []
    bad = np.unique(np.concatenate([_invalid_text(column) for column in batch.columns]))
    good = np.ones(len(batch), dtype=bool)
    good[bad] = False
    return batch.filter(pa.array(good)), rows[good], rows[~good].tolist()


def _invalid_text(column: pa.Array) -> np.ndarray:
    """Indices of the rows with such a string at any depth.

    Arrow validates the whole child of a sliced list or struct, so those are opened before they are halved.
    """
    found = [np.zeros(0, np.int64)]
    if pa.types.is_list(column.type):
        parents = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
        found.append(parents[_invalid_text(pc.list_flatten(column))])
    elif pa.types.is_struct(column.type):
        found += [_invalid_text(pc.struct_field(column, [i])) for i in range(column.type.num_fields)]
    elif pa.types.is_string(column.type):
        spans = [(0, len(column))]
        while spans:
            first, end = spans.pop()
            if _is_valid(column.slice(first, end - first)):
                continue
            if end - first == 1:
                found.append(np.array([first]))
            else:
                middle = (first + end) // 2
                spans += [(first, middle), (middle, end)]
    return np.concatenate(found)


def _is_valid(values: pa.RecordBatch | pa.Array) -> bool:
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
