"""The pipeline's own records: small, few, and written one by one.

Comes in: a dict and the record's name (``stats``, ``quarantine``, ``watermark_position`` ...). Goes out: a
framed value, and back. Times are int µs since the epoch, UTC. Invariant: every field is written and none is
ignored, so a misspelt key is an error and not a default.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import fastavro

from pipeline.errors import ConfigError, RecordError
from pipeline.events import bare_schema
from pipeline.framing import FRAME_BYTES, frame
from pipeline.reasons import Reason

if TYPE_CHECKING:
    from pipeline.schemas import SchemaStore


def encode_control(store: SchemaStore, name: str, record: dict[str, Any]) -> bytes:
    """A control record (``stats``, ``quarantine`` …) as a framed value. Times are int µs since the epoch.

    Raises ConfigError when a field is missing, unknown or of another type.
    """
    locked = store.latest(f"control.{name}")
    out = io.BytesIO()
    out.write(frame(locked.id))
    try:
        fastavro.schemaless_writer(out, store.control_parser(locked.id), record, strict=True)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ConfigError(
            f"the record does not fit its schema ({type(error).__name__})",
            operation="encode",
            place=locked.subject,
        ) from None
    return out.getvalue()


def decode_control(store: SchemaStore, value: bytes) -> tuple[str, dict[str, Any]]:
    """The name and fields of a control record of any locked version; times come out as int µs.

    Raises RecordError for a value that is none.
    """
    schema_id = int.from_bytes(value[1:FRAME_BYTES], "big")
    if len(value) < FRAME_BYTES or value[0] != 0:
        raise RecordError("a control record without frame", reason=Reason.FRAMING)
    try:
        locked = store.by_id(schema_id)
    except KeyError:
        raise RecordError(f"no schema has id {schema_id}", reason=Reason.UNKNOWN_SCHEMA) from None
    if not locked.subject.startswith("control."):
        raise RecordError(f"id {schema_id} is no control schema", reason=Reason.UNKNOWN_SCHEMA)
    body = io.BytesIO(value)
    body.seek(FRAME_BYTES)
    try:
        record = fastavro.schemaless_reader(body, store.control_parser(schema_id), None)
    except (ValueError, EOFError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise RecordError(
            f"{locked.subject} does not decode ({type(error).__name__})", reason=Reason.UNDECODABLE
        ) from None
    if body.tell() != len(value) or not isinstance(record, dict):
        raise RecordError(f"{locked.subject} has bytes left over", reason=Reason.UNDECODABLE)
    return locked.subject.removeprefix("control."), record


def control_schema(schema: dict[str, Any]) -> Any:
    """For fastavro: without logical types, so that times stay int µs and cannot overflow a datetime."""
    return fastavro.parse_schema(_without_logical(bare_schema(schema)))


def _without_logical(avro_type: Any) -> Any:
    if isinstance(avro_type, list):
        return [_without_logical(branch) for branch in avro_type]
    if not isinstance(avro_type, dict):
        return avro_type
    return {
        key: [_without_logical(f) for f in value] if key == "fields" else _without_logical(value)
        for key, value in avro_type.items()
        if key != "logicalType"
    }
