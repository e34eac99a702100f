"""What the policy's tests share: the real events, a small made-up one, a small pack, keys without files."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.events import EventType
from pipeline.policy import load_packs
from pipeline.policy.pack import Pack
from pipeline.policy.terms import Terms, landing_terms
from pipeline.schemas import source_schemas
from tests.shared_data import PROJECT

POLICIES = PROJECT / "schemas" / "policies"
EVENTS = {
    name: EventType(name, 1, 1, schema)
    for name, schema in source_schemas(PROJECT / "schemas").items()
    if not name.startswith("control.")
}
COLLECTING = tuple(
    origin for origin, destination in load_packs(POLICIES, EVENTS).legs() if origin == destination
)  # every region but those that only receive
TIMESTAMP = {"type": "long", "logicalType": "timestamp-micros"}
NOW_US = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z

PACK: dict[str, Any] = {
    "region": "eu",
    "version": "2026.1",
    "jurisdictions": ["DE", "FR"],
    "epoch": "month",
    "purposes": {"care": {"meaning": "keep it running", "basis": "a test"}},
    "retention": {"minimum_days": 0, "maximum_days": 30, "source": "a test"},
    "landing": {
        "allowed": {
            "tags": ["pseudonym", "location.coarse", "time.coarse", "measurement", "category", "transport"],
            "source": "a test",
        },
        "rules": {
            "identifier": {"operator": "pseudonymise", "with": {"purpose": "care"}, "source": "a test"},
            "location.precise": {
                "operator": "coarsen_location",
                "with": {"cell_km2": 1.0},
                "source": "a test",
            },
            "time.precise": {"operator": "truncate_time", "with": {"to": "hour"}, "source": "a test"},
            "special": {"operator": "drop", "source": "a test"},
            "measurement": {"operator": "keep", "source": "a test"},
            "category": {"operator": "keep", "source": "a test"},
        },
        "events": {},
    },
}


def field(name: str, avro_type: Any, *tags: str, **attributes: Any) -> dict[str, Any]:
    """An Avro field with its tags."""
    return {
        "name": name,
        "type": avro_type,
        "doc": f"The {name}.",
        "confluent:tags": list(tags),
        **attributes,
    }


SMALL_FIELDS = (
    field("source", "string", "identifier.device"),
    field("event_time", TIMESTAMP, "time.precise", unit="us"),
    field("person", ["null", "string"], "identifier.direct"),
    field("latitude", ["null", "double"], "location.precise", role="latitude"),
    field("longitude", ["null", "double"], "location.precise", role="longitude"),
    field("pulse", ["null", "double"], "special.health", unit="1/min"),
    field("load", "double", "measurement", unit="kg", minimum=0.0, maximum=950.0),
    field("count", ["null", "int"], "measurement", unit="1", minimum=-7, maximum=93),
    field("phase", {"type": "enum", "name": "Phase", "symbols": ["idle", "busy"]}, "category"),
)
SMALL_ROW: dict[str, Any] = {
    "source": "press-1",
    "event_time": NOW_US,
    "person": None,
    "latitude": None,
    "longitude": None,
    "pulse": None,
    "load": 1.0,
    "count": None,
    "phase": "idle",
}


def event(name: str = "small", fields: Sequence[dict[str, Any]] = SMALL_FIELDS) -> EventType:
    """An event type of these fields, without the envelope."""
    schema = {"type": "record", "name": name, "namespace": "pipeline.events", "fields": list(fields)}
    return EventType(name, 1, 1, schema)


def raw_pack(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The small pack with changes by dotted path; a key that holds dots is given as a tuple of parts."""
    content = copy.deepcopy(PACK)
    for path, value in (changes or {}).items():
        parts = path if isinstance(path, tuple) else tuple(path.split("."))
        here = content
        for part in parts[:-1]:
            here = here.setdefault(part, {})
        if value is None:
            here.pop(parts[-1], None)
        else:
            here[parts[-1]] = copy.deepcopy(value)
    return content


def pack(changes: Mapping[Any, Any] | None = None) -> Pack:
    """The small pack as a model; its content is not checked."""
    return Pack.model_validate(raw_pack(changes))


def terms(changes: Mapping[Any, Any] | None = None) -> Terms:
    """What lands in the small pack's region."""
    return landing_terms(pack(changes))


def small_batch(rows: Sequence[Mapping[str, Any]], of: EventType | None = None) -> pa.RecordBatch:
    """Rows of the small event, what a row does not say taken from SMALL_ROW."""
    return to_batch((of or event()).arrow, [{**SMALL_ROW, **row} for row in rows])


def to_batch(schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """Rows as a batch; times may be text (ISO 8601 with zone) or microseconds."""
    return pa.RecordBatch.from_arrays(
        [_column([row[column.name] for row in rows], column.type) for column in schema], schema=schema
    )


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_timestamp(kind):
        return pa.array(values, kind)
    return pa.array([microseconds(v) if isinstance(v, str) else v for v in values], pa.int64()).cast(kind)


def microseconds(text: str) -> int:
    """ISO 8601 with a zone as microseconds since 1970 UTC."""
    delta = datetime.fromisoformat(text).astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return delta.days * 86_400_000_000 + delta.seconds * 1_000_000 + delta.microseconds


class Keys:
    """A key store in memory: a key per name, none for the epochs in ``missing``; notes what is asked."""

    def __init__(self, missing: frozenset[str] = frozenset()) -> None:
        self.missing = missing
        self.asked: list[tuple[str, str, str]] = []

    def key(self, region: str, purpose: str, epoch: str) -> bytes:
        """See :class:`pipeline.policy.keys.KeyStore`."""
        self.asked.append((region, purpose, epoch))
        if epoch in self.missing:
            raise ConfigError("no key here", operation="key store", place=epoch)
        return hashlib.sha256(json.dumps([region, purpose, epoch]).encode()).digest()
