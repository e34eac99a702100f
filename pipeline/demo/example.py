"""One valid event of a type, for docs, a first try and tests.

Comes in: an event type. Goes out: what a producer hands over (``source``, ``event_time``, ``jurisdiction``
and the event's own fields). Events that the simulated fleet knows look like its own; any other gets the
simplest values its schema allows.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from pipeline.demo.fleet import Fleet, FleetSize
from pipeline.demo.places import CITIES
from pipeline.events import EventField, EventType

SEED = 2026
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def example(event: EventType, region: str = "eu", now: datetime | None = None) -> dict[str, Any]:
    """A valid event at ``now`` (aware; default: this moment); the same at every call but for its time.

    ``event_time`` is an aware datetime. ConfigError for a region whose places are not known.
    """
    now = now or datetime.now(UTC)
    fleet = Fleet(region, SEED, FleetSize(vehicles=4, meters=4, machines=4, cameras=4))
    batches = fleet.tick((now - _EPOCH) // timedelta(microseconds=1), 60.0)
    if event.name in batches and len(batches[event.name]):
        row = batches[event.name].slice(0, 1).to_pylist()[0]
    else:
        plain = {field.name: simplest(field) for field in event.own_fields}
        row = {"source": "example-0001", "jurisdiction": CITIES[region][0].jurisdiction, **plain}
    return {**row, "event_time": now}


def simplest(field: EventField) -> Any:
    """A value the field may hold: its first symbol, its name, or the number in range nearest to one."""
    if field.nullable:
        return None
    if field.symbols:
        return field.symbols[0]
    kind = field.kind
    if kind == "boolean":
        return True
    if kind in ("int", "long", "float", "double"):
        low = field.minimum if field.minimum is not None else float("-inf")
        high = field.maximum if field.maximum is not None else float("inf")
        number = min(max(1.0, low), high)
        return int(number) if kind in ("int", "long") else number
    if kind in ("array", "record"):
        return (
            []
            if kind == "array"
            else {child.name.rpartition(".")[2]: simplest(child) for child in field.children()}
        )
    return 0 if kind.startswith(("timestamp", "date")) else f"{field.name}-1"
