"""The pipeline's own records: small, few, and written one by one.

Comes in: a dict and the record's name (``stats``, ``quarantine``, ``watermark_position`` ...). Goes out: a
framed value, and back. Times are int µs since the epoch, UTC. Invariant: every field is written and none is
ignored, so a misspelt key is an error and not a default.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import fastavro

from pipeline.avro import Malformed, canonicaliser
from pipeline.errors import ConfigError, RecordError
from pipeline.events import LockedSchema, bare_schema
from pipeline.framing import FRAME_BYTES, frame
from pipeline.reasons import Reason

if TYPE_CHECKING:
    from pipeline.schemas import SchemaStore


class ControlCodec:
    """Encoder and decoder of one control schema.

    fastavro writes an int beyond 32 bits and reads what no encoder writes, so the strict reader looks at the
    bytes both ways. Its schema has no logical types: times stay int µs and cannot overflow a datetime.
    """

    def __init__(self, locked: LockedSchema) -> None:
        self.locked = locked
        self._parsed = fastavro.parse_schema(_without_logical(bare_schema(locked.schema)))
        self._canonical = canonicaliser(locked.schema)

    def encode(self, record: dict[str, Any]) -> bytes:
        """The framed value; ConfigError when the record does not fit."""
        out = io.BytesIO()
        try:
            fastavro.schemaless_writer(out, self._parsed, record, strict=True)
            self._canonical(out.getvalue())
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, Malformed) as error:
            raise ConfigError(
                f"the record does not fit its schema ({type(error).__name__})",
                operation="encode",
                place=self.locked.subject,
            ) from None
        return frame(self.locked.id) + out.getvalue()

    def decode(self, body: bytes) -> dict[str, Any]:
        """The fields; RecordError when the bytes are not exactly one record."""
        try:
            canonical = io.BytesIO(self._canonical(body))
        except Malformed as fault:
            raise RecordError(
                f"{self.locked.subject} does not decode: {fault}", reason=Reason.UNDECODABLE
            ) from None
        record = fastavro.schemaless_reader(canonical, self._parsed, None)
        assert isinstance(record, dict)
        return record


def encode_control(store: SchemaStore, name: str, record: dict[str, Any]) -> bytes:
    """A control record (``stats``, ``quarantine`` …) as a framed value. Times are int µs since the epoch.

    Raises ConfigError when a field is missing, unknown or of another type.
    """
    return store.control_codec(store.latest(f"control.{name}").id).encode(record)


def decode_control(store: SchemaStore, value: bytes) -> tuple[str, dict[str, Any]]:
    """The name and fields of a control record of any locked version; times come out as int µs.

    Raises RecordError for a value that is none.
    """
    schema_id = int.from_bytes(value[1:FRAME_BYTES], "big")
    if len(value) < FRAME_BYTES or value[0] != 0:
        raise RecordError("a control record without frame", reason=Reason.FRAMING)
    try:
        subject = store.by_id(schema_id).subject
    except KeyError:
        raise RecordError(f"no schema has id {schema_id}", reason=Reason.UNKNOWN_SCHEMA) from None
    if not subject.startswith("control."):
        raise RecordError(f"id {schema_id} is no control schema", reason=Reason.UNKNOWN_SCHEMA)
    return subject.removeprefix("control."), store.control_codec(schema_id).decode(value[FRAME_BYTES:])


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
