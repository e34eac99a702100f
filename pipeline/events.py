"""What an event is: its fields, what each value may be, and its Arrow shape.

Comes in: an Avro schema as parsed JSON. Goes out: :class:`EventType`, read-only. Invariant: the Arrow
schema follows from the Avro schema alone: strings and enums are ``string``, ``timestamp-micros`` is
``timestamp[us]`` without a zone and means UTC, only ``["null", X]`` is nullable at the top, children of
nested types always are.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError

AvroType = str | dict[str, Any]
ENVELOPE = ("source", "spool", "lane", "sequence", "event_time", "received_time", "jurisdiction")

TAGS: dict[str, str] = {
    "identifier.direct": "names a person: name, staff number, customer or contract number",
    "identifier.device": "names a thing that leads to a person: vehicle, meter, machine, camera, journey",
    "location.precise": "a place known to better than 0.9989 km2",
    "location.coarse": "an area of at least 0.9989 km2",
    "time.precise": "a moment",
    "time.coarse": "a moment rounded to an hour, a day or more",
    "special.health": "health data and the other special categories of GDPR article 9",
    "text.free": "text a person wrote: may hold anything",
    "text.redacted": "such text without the patterns that a machine finds; names and stories remain",
    "quasi": "identifies together with other fields or other people's books",
    "quasi.crowd": "a trait that at least k people of the released set share",
    "quasi.coarse": "a trait put into few declared groups: only a crowd in each group hides a person",
    "quasi.noised": "a trait with noise or answered by chance: one value is deniable, many of one are not",
    "measurement": "a physical quantity or a count",
    "pseudonym": "a keyed hash of an identifier, or its encryption: still personal data",
    "jurisdiction": "where the event was collected",
    "transport": "how the event travelled: spool, lane, sequence, raw position",
    "inference": "what a model concluded",
    "category": "one of few values that describe a thing, not a person",
}

_PRIMITIVES: dict[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "string": pa.string(),
    "enum": pa.string(),
    "timestamp-micros": pa.timestamp("us"),
    "timestamp-millis": pa.timestamp("ms"),
    "date": pa.date32(),
}


def split_null(avro_type: Any) -> tuple[Any, bool]:
    """The type without null, and whether null was allowed; other unions come back as they are."""
    if isinstance(avro_type, list) and len(avro_type) == 2 and avro_type[0] == "null":
        return avro_type[1], True
    return avro_type, False


def kind_of(avro_type: Any) -> str:
    """One word for a type without null: its logical type, else its Avro type; "union" for a union."""
    if isinstance(avro_type, list):
        return "union"
    if isinstance(avro_type, dict):
        kind = avro_type.get("logicalType") or avro_type["type"]
        return kind if isinstance(kind, str) else kind_of(kind)
    return str(avro_type)


def arrow_type(avro_type: Any) -> pa.DataType:
    """The Arrow type of an Avro type (null taken off). Raises ConfigError for what the codec cannot do."""
    inner, _ = split_null(avro_type)
    kind = kind_of(inner)
    if kind in _PRIMITIVES:
        return _PRIMITIVES[kind]
    if kind == "array":
        return pa.list_(pa.field("item", arrow_type(inner["items"])))
    if kind == "record":
        return pa.struct([pa.field(f["name"], arrow_type(f["type"])) for f in inner["fields"]])
    raise ConfigError(
        f"Avro type {kind} has no Arrow form here", operation="schema", remedy="see schemas/README.md"
    )


def bare_schema(avro_type: Any) -> Any:
    """The schema without docs, tags and other attributes, which no decoder needs and some trip over."""
    if isinstance(avro_type, list):
        return [bare_schema(branch) for branch in avro_type]
    if not isinstance(avro_type, dict):
        return avro_type
    bare = {
        k: avro_type[k] for k in ("type", "name", "namespace", "symbols", "logicalType") if k in avro_type
    }
    if "items" in avro_type:
        bare["items"] = bare_schema(avro_type["items"])
    if "fields" in avro_type:
        bare["fields"] = [{"name": f["name"], "type": bare_schema(f["type"])} for f in avro_type["fields"]]
    return bare


def arrow_schema(schema: dict[str, Any]) -> pa.Schema:
    """The exact Arrow schema of batches of this record, without metadata."""
    return pa.schema(
        [
            pa.field(f["name"], arrow_type(f["type"]), nullable=split_null(f["type"])[1])
            for f in schema["fields"]
        ]
    )


def normal_text(schema: Any) -> str:
    """The whole schema as one line with sorted keys: equal text means equal in every attribute."""
    return json.dumps(schema, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def text_digest(schema: Any) -> str:
    """SHA-256 (hex) of :func:`normal_text`: notices tags and docs, which Avro's fingerprint ignores."""
    return hashlib.sha256(normal_text(schema).encode()).hexdigest()


@dataclass(frozen=True)
class EventField:
    """One field. ``avro_type`` is the type without null, as in the schema; ``kind`` is one word for it."""

    name: str
    avro_type: AvroType
    tags: frozenset[str]
    unit: str | None
    minimum: float | None
    maximum: float | None
    role: str | None
    doc: str
    nullable: bool

    @property
    def kind(self) -> str:
        """``double``, ``string``, ``enum``, ``timestamp-micros``, ``array`` …"""
        return kind_of(self.avro_type)

    @property
    def symbols(self) -> tuple[str, ...]:
        """The values of an enum, in order; empty for other types."""
        return tuple(self.avro_type.get("symbols", ())) if isinstance(self.avro_type, dict) else ()

    def item(self) -> EventField:
        """An array's item as a field: same name, and this field's range and unit if it is a number."""
        if not isinstance(self.avro_type, dict) or self.kind != "array":
            raise TypeError(f"{self.name} is not an array")
        inner, nullable = split_null(self.avro_type["items"])
        return replace(self, avro_type=inner, nullable=nullable)

    def children(self) -> tuple[EventField, ...]:
        """A record's fields, named ``outer.inner``."""
        if not isinstance(self.avro_type, dict) or self.kind != "record":
            raise TypeError(f"{self.name} is not a record")
        inner = [EventField.of(f) for f in self.avro_type["fields"]]
        return tuple(replace(f, name=f"{self.name}.{f.name}") for f in inner)

    @classmethod
    def of(cls, field: dict[str, Any]) -> EventField:
        """From a field of an Avro record."""
        inner, nullable = split_null(field["type"])
        return cls(
            name=field["name"],
            avro_type=inner,
            tags=frozenset(field.get("confluent:tags", ())),
            unit=field.get("unit"),
            minimum=field.get("minimum"),
            maximum=field.get("maximum"),
            role=field.get("role"),
            doc=field.get("doc", ""),
            nullable=nullable,
        )


@dataclass(frozen=True, eq=False)
class EventType:
    """An event at its current version; ``schema_id`` is the id of that version in the lock."""

    name: str
    version: int
    schema_id: int
    schema: dict[str, Any]

    @cached_property
    def fields(self) -> tuple[EventField, ...]:
        """All fields in order, the envelope's seven first."""
        return tuple(EventField.of(f) for f in self.schema["fields"])

    @cached_property
    def own_fields(self) -> tuple[EventField, ...]:
        """The fields after the envelope: what a producer passes as the event's content."""
        return self.fields[len(ENVELOPE) :]

    @cached_property
    def arrow(self) -> pa.Schema:
        """Exact schema of a RecordBatch of this event."""
        return arrow_schema(self.schema)

    def field(self, name: str) -> EventField:
        """The field of that name; KeyError when there is none."""
        for field in self.fields:
            if field.name == name:
                return field
        raise KeyError(name)


@dataclass(frozen=True, eq=False)
class LockedSchema:
    """One entry of the lock: this id means this schema, for ever.

    ``fingerprint`` is CRC-64-AVRO (hex, big-endian) of the parsing canonical form, ``digest`` the SHA-256
    of the whole normalised text.
    """

    id: int
    subject: str
    version: int
    fingerprint: str
    digest: str
    schema: dict[str, Any]

    @cached_property
    def arrow(self) -> pa.Schema:
        """Exact schema of a RecordBatch decoded from it."""
        return arrow_schema(self.schema)
