"""Batches and schemas for the tests of schemas, codec and checks."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa

from pipeline.events import EventField, EventType, LockedSchema, text_digest
from pipeline.schemas import avro_fingerprint

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
NOW_US = 1_760_000_000_000_000


def tagged(name: str, avro_type: Any, **more: Any) -> dict[str, Any]:
    """A field that passes the linter."""
    field = {"name": name, "type": avro_type, "doc": f"A {name}.", "confluent:tags": ["category"], **more}
    return field | {"default": None} if isinstance(avro_type, list) else field


def event_schema(*fields: dict[str, Any], name: str = "sample") -> dict[str, Any]:
    """An event with the envelope before the fields."""
    envelope = json.loads((SCHEMAS / "envelope.avsc").read_text(encoding="utf-8"))["fields"]
    return {
        "type": "record", "name": name, "namespace": "pipeline.events", "doc": "A sample.",
        "fields": [*envelope, *fields],
    }  # fmt: skip


def every_type() -> dict[str, Any]:
    """An event with each kind of field that the linter allows, nullable or not."""
    inside = [
        tagged("x", "double", minimum=-1.0, maximum=1.0, unit="1"),
        tagged("note", ["null", "string"]),
    ]
    point = {"type": "record", "name": "Point", "doc": "A point.", "fields": inside}
    kind = {"type": "enum", "name": "Kind", "symbols": ["RED", "GREEN", "BLUE"]}
    moment = {"type": "long", "logicalType": "timestamp-micros"}
    millis = {"type": "long", "logicalType": "timestamp-millis"}
    day = {"type": "int", "logicalType": "date"}
    return event_schema(
        tagged("flag", "boolean"), tagged("maybe_flag", ["null", "boolean"]),
        tagged("small", "int", unit="1"), tagged("maybe_small", ["null", "int"], unit="1"),
        tagged("big", "long", unit="1"), tagged("maybe_big", ["null", "long"], unit="1"),
        tagged("single", "float", unit="1"), tagged("real", ["null", "double"], unit="1"),
        tagged("word", "string"), tagged("maybe_word", ["null", "string"]),
        tagged("kind", kind), tagged("moment", ["null", moment]),
        tagged("millis", millis), tagged("day", day),
        tagged("words", {"type": "array", "items": "string"}),
        tagged("numbers", ["null", {"type": "array", "items": ["null", "long"]}], unit="1"),
        tagged("points", {"type": "array", "items": point}),
    )  # fmt: skip


def event(schema: dict[str, Any]) -> EventType:
    """The schema as an event with id 900."""
    return EventType(schema["name"], 1, 900, schema)


def locked(schema: dict[str, Any]) -> LockedSchema:
    """The schema as a lock entry with id 900."""
    return LockedSchema(900, schema["name"], 1, avro_fingerprint(schema), text_digest(schema), schema)


def random_batch(of: EventType, rows: int, seed: int) -> pa.RecordBatch:
    """Rows of an event that pass its checks; the same for the same seed."""
    rng = np.random.default_rng(seed)
    arrays = [
        pa.array(_values(field, rows, rng), arrow.type)
        for field, arrow in zip(of.fields, of.arrow, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=of.arrow)


def by_fastavro(schema: dict[str, Any], batch: pa.RecordBatch) -> list[bytes]:
    """The rows as the other implementation writes them."""
    parsed = fastavro.parse_schema(json.loads(json.dumps(schema)))
    as_integers = {"timestamp[us]": pa.int64(), "timestamp[ms]": pa.int64(), "date32[day]": pa.int32()}
    integers = pa.schema([f.with_type(as_integers.get(str(f.type), f.type)) for f in batch.schema])
    out = []
    for row in batch.cast(integers).to_pylist():
        buffer = io.BytesIO()
        fastavro.schemaless_writer(buffer, parsed, row, strict=True)
        out.append(buffer.getvalue())
    return out


def _values(field: EventField, rows: int, rng: np.random.Generator) -> list[Any]:
    values = [_value(field, rng) for _ in range(rows)]
    if not field.nullable:
        return values
    return [None if rng.random() < 0.3 else value for value in values]


_WORDS = ["", "a", "Zürich", "日本", "🚚 truck", "x" * 200, "nul\0byte"]


def _value(field: EventField, rng: np.random.Generator) -> Any:
    kind = field.kind
    if field.name == "jurisdiction":
        return "DE"
    if field.name == "source":
        return f"device-{rng.integers(50)}"
    if kind in ("timestamp-micros", "timestamp-millis"):
        moment = NOW_US - int(rng.integers(10**12))
        return moment if kind == "timestamp-micros" else moment // 1000
    if kind in ("float", "double"):
        low, high = field.minimum, field.maximum
        value = float(rng.uniform(-1e6 if low is None else low, 1e6 if high is None else high))
        return float(np.float32(value)) if kind == "float" else value
    if kind in ("int", "long", "date"):
        limit = 2**31 if kind == "int" else 2**62 if kind == "long" else 10**5
        low, high = field.minimum, field.maximum
        return int(rng.integers(-limit if low is None else int(low), limit if high is None else int(high)))
    return _other(field, rng)


def _other(field: EventField, rng: np.random.Generator) -> Any:
    if field.kind == "boolean":
        return bool(rng.integers(2))
    if field.kind == "enum":
        return field.symbols[rng.integers(len(field.symbols))]
    if field.kind == "array":
        return _values(field.item(), int(rng.integers(4)), rng)
    if field.kind == "record":
        return {c.name.rpartition(".")[2]: _values(c, 1, rng)[0] for c in field.children()}
    return _WORDS[rng.integers(len(_WORDS))]
