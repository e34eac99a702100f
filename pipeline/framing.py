"""The bytes before a record's body that say which schema wrote it.

Comes in: values of Kafka records. Goes out: schema ids and bodies, all at once. Two forms are read: the
Confluent wire format, version 0 (a zero byte and the id, big-endian), which we write; and Avro's
single-object encoding (C3 01 and the CRC-64-AVRO fingerprint, little-endian; Avro 1.12, "Single-object
encoding"), for producers that know a schema but no registry.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

FRAME_BYTES = 5
SINGLE_OBJECT_MARK = b"\xc3\x01"
SINGLE_OBJECT_BYTES = 10
_SLICE_END = 1 << 30


def frame(schema_id: int) -> bytes:
    """The five bytes before a body: 0 and the id, big-endian (Confluent wire format, version 0)."""
    return b"\0" + schema_id.to_bytes(4, "big")


def unframe(
    values: pa.BinaryArray, fingerprints: Mapping[bytes, int] | None = None
) -> tuple[np.ndarray, pa.BinaryArray]:
    """Ids (int64; -1 where there is no known frame) and bodies (empty there) of framed records.

    ``fingerprints``: schema ids by the 8 bytes of a single-object header; without it only the Confluent
    form is read. A null value has no frame.
    """
    if len(values) == 0:
        return np.zeros(0, np.int64), pa.array([], pa.binary())
    if values.null_count:
        values = values.fill_null(b"")
    ids = _confluent_ids(values)
    bodies = pc.binary_slice(values, FRAME_BYTES, _SLICE_END)
    unframed = np.flatnonzero(ids < 0)
    if len(unframed):
        singles = [_single_object(values[int(row)].as_py(), fingerprints or {}) for row in unframed]
        mask = pa.array(ids < 0)
        ids[unframed] = [schema_id for schema_id, _ in singles]
        bodies = pc.replace_with_mask(bodies, mask, pa.array([body for _, body in singles], pa.binary()))
    return ids, bodies


def _confluent_ids(values: pa.BinaryArray) -> np.ndarray:
    """The big-endian number after a zero byte, for all rows in five gathers; -1 where there is none."""
    offsets = np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1]
    data = np.frombuffer(values.buffers()[2] or b"", np.uint8)
    framed = np.diff(offsets) >= FRAME_BYTES
    starts = offsets[:-1][framed].astype(np.int64)
    ids = np.full(len(values), -1, np.int64)
    parts = [data[starts + i].astype(np.int64) for i in range(FRAME_BYTES)]
    found = parts[1] << 24 | parts[2] << 16 | parts[3] << 8 | parts[4]
    ids[framed] = np.where(parts[0] == 0, found, -1)
    return ids


def _single_object(value: bytes, fingerprints: Mapping[bytes, int]) -> tuple[int, bytes]:
    if not value.startswith(SINGLE_OBJECT_MARK):
        return -1, b""
    schema_id = fingerprints.get(value[len(SINGLE_OBJECT_MARK) : SINGLE_OBJECT_BYTES], -1)
    return schema_id, value[SINGLE_OBJECT_BYTES:] if schema_id >= 0 else b""
