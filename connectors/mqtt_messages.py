"""A message of MQTT 5 as rows of events: CloudEvents in both of its modes, and plain JSON.

Comes in: a :class:`Message` and the route that takes it. Goes out: :class:`Part` per event type, or a
RecordError that names the field and never its value. Sources: CloudEvents MQTT protocol binding 1.0.2
(content type decides the mode; user properties are attributes under their own names), MQTT 5.0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from connectors.cloudevents import (
    Incoming,
    Unsupported,
    decode_json,
    is_batch,
    moment_us,
    parse,
    parse_attributes,
)
from pipeline.errors import ConfigError, RecordError
from pipeline.events import EventField, EventType
from pipeline.mqtt_config import MqttRoute, TimeFrom, ValueFrom
from pipeline.reasons import MICROS, Reason
from pipeline.units import conversion

ROWS_MAX = 10_000  # of one JSON array
NUMBER_CHARACTERS_MAX = 64
_STRUCTURED = "application/cloudevents"
_ATTRIBUTES = ("specversion", "id", "source", "type", "time", "jurisdiction", "datacontenttype")
_SCALE = {"s": MICROS, "ms": 1000, "us": 1}


@dataclass(frozen=True, slots=True)
class Message:
    """What a broker delivered."""

    topic: str
    payload: bytes
    qos: int = 0
    mid: int = 0
    repeated: bool = False  # the broker may have sent it before (DUP)
    retained: bool = False
    oversize: bool = False  # the payload was larger than we take, and is not here
    content_type: str = ""
    properties: tuple[tuple[str, str], ...] = ()

    @property
    def levels(self) -> list[str]:
        """The topic's levels."""
        return self.topic.split("/")

    def property(self, name: str) -> str | None:
        """A user property; RecordError when it occurs twice."""
        found = [value for key, value in self.properties if key == name]
        if len(found) > 1:
            refuse("property", Reason.TYPE, "a user property that is asked for occurs twice")
        return found[0] if found else None


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one event type as ``submit_many`` takes them."""

    event: str
    lane: str | None
    rows: list[dict[str, Any]]


Get: TypeAlias = Callable[[Message, Mapping[str, Any]], Any]


def refuse(field: str, reason: str, problem: str) -> NoReturn:
    """Raise the RecordError."""
    raise RecordError(problem, reason=reason, field=field)


class CloudEventReader:
    """One CloudEvent per message. The route may fix the jurisdiction: who contradicts it is refused."""

    def __init__(self, route: MqttRoute, _events: Mapping[str, EventType]) -> None:
        self._route = route
        self._jurisdiction = getter(route.jurisdiction, None, route) if route.jurisdiction else None

    def read(self, message: Message) -> list[Part]:
        """The event. Raises RecordError."""
        try:
            event = self._parse(message)
        except Unsupported:
            refuse("content-type", "content_type", "expected a CloudEvent as JSON")
        if self._route.event and event.event != self._route.event:
            refuse("type", Reason.UNKNOWN_SCHEMA, "not the event of this route")
        row = event.row()
        if self._jurisdiction is not None:
            stated = self._jurisdiction(message, {})
            if event.jurisdiction is not None and event.jurisdiction != stated:
                refuse("jurisdiction", Reason.JURISDICTION_ELSEWHERE, "the route's is another")
            row["jurisdiction"] = stated
        return [Part(event.event, self._route.lane, [row])]

    @staticmethod
    def _parse(message: Message) -> Incoming:
        structured = message.content_type.strip().lower().startswith(_STRUCTURED)
        bare = not message.content_type and message.property("specversion") is None  # MQTT 3.1.1
        if is_batch(message.content_type):
            raise Unsupported  # the MQTT binding has no batches
        if structured or bare:
            (event,) = parse(message.content_type or "application/cloudevents+json", (), message.payload)
            return event
        for name in _ATTRIBUTES:
            message.property(name)  # refuses what occurs twice
        return parse_attributes(message.content_type, dict(message.properties), message.payload)


class JsonReader:
    """One object, or an array of them, as rows of the route's event."""

    def __init__(self, route: MqttRoute, events: Mapping[str, EventType]) -> None:
        assert route.source is not None
        assert route.jurisdiction is not None
        assert route.event_time is not None
        event = events[route.event]
        self._route = route
        self._envelope = {
            "source": getter(route.source, None, route),
            "jurisdiction": getter(route.jurisdiction, None, route),
            "event_time": time_getter(route.event_time),
        }
        self._fields = field_getters(route.fields, event, route)
        ways = (route.source, route.jurisdiction, route.event_time)
        self._taken = {way.json_field.split(".")[0] for way in ways if way.json_field is not None}

    def read(self, message: Message) -> list[Part]:
        """The rows. Raises RecordError."""
        found = decode_json(message.payload)
        objects = found if isinstance(found, list) else [found]
        if len(objects) > ROWS_MAX:
            refuse("", Reason.OVERSIZE, f"more than {ROWS_MAX} objects in one message")
        return [Part(self._route.event, self._route.lane, [self._row(message, one) for one in objects])]

    def _row(self, message: Message, found: Any) -> dict[str, Any]:
        if not isinstance(found, dict):
            refuse("", Reason.TYPE, "expected a JSON object, or an array of them")
        if self._fields:
            row = {name: get(message, found) for name, get in self._fields.items()}
        else:
            row = {name: value for name, value in found.items() if name not in self._taken}
            if row.keys() & self._envelope.keys():
                refuse("", Reason.FIELD_UNKNOWN, "an attribute of the envelope is repeated in the object")
        for name, get in self._envelope.items():
            row[name] = get(message, found)
        return row


def field_getters(ways: Mapping[str, ValueFrom], event: EventType, route: MqttRoute) -> dict[str, Get]:
    """What fills each field; ConfigError for a field that the event has not, and for one left out."""
    fields = {field.name: field for field in event.own_fields}
    unknown = sorted(set(ways) - set(fields))
    missing = sorted(name for name, field in fields.items() if not field.nullable and name not in ways)
    if unknown or (ways and missing):
        problem = f"{event.name} has no {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}"
        raise ConfigError(problem, operation="mqtt route", place=route.filter, remedy="change its fields")
    return {name: getter(way, fields[name], route) for name, way in ways.items()}


def getter(way: ValueFrom, field: EventField | None, route: MqttRoute) -> Get:
    """A function of (message, JSON object or metrics by name); ``field`` None: text of the envelope."""
    if way.value is not None:
        return lambda _message, _found: way.value
    if way.property is not None:
        name, convert = way.property, _from_text(field)
        return lambda message, _found: convert(message.property(name))
    if way.topic_level is not None:
        level, convert = way.topic_level, _from_text(field)
        return lambda message, _found: convert(_level(message, level))
    change = unit_change(way, field, route)
    if way.metric is not None:
        metric = way.metric
        return lambda _message, found: change(found[metric]) if metric in found else None
    assert way.json_field is not None
    steps = tuple(way.json_field.split("."))
    return lambda _message, found: change(_inner(found, steps))


def unit_change(way: ValueFrom, field: EventField | None, route: MqttRoute) -> Callable[[Any], Any]:
    """The step from the sent unit to the field's; ConfigError when there is none."""
    if way.unit is None:
        return lambda value: value
    if field is None or field.kind not in ("double", "float"):
        problem = "a unit needs a field of float or double"
        raise ConfigError(problem, operation="mqtt route", place=route.filter)
    step = conversion(way.unit, way.to or field.unit or "")

    def change(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return value  # the gate says what is wrong with it
        try:
            return value * step.factor + step.offset
        except OverflowError:
            refuse(field.name, Reason.RANGE, "beyond what the field can hold")

    return change


def time_getter(way: TimeFrom) -> Get:
    """µs since the epoch."""
    if way.arrival:
        return lambda _message, _found: time.time_ns() // 1000
    plain = ValueFrom(property=way.property, topic_level=way.topic_level, field=way.json_field)
    steps = tuple(plain.json_field.split(".")) if plain.json_field is not None else ()

    def get(message: Message, found: Mapping[str, Any]) -> int:
        if plain.property is not None:
            value: Any = message.property(plain.property)
        elif plain.topic_level is not None:
            value = _level(message, plain.topic_level)
        else:
            value = _inner(found, steps)
        return _moment(value, way.scale)

    return get


def _moment(value: Any, scale: str) -> int:
    if scale == "iso":
        return moment_us(value)
    if isinstance(value, str):
        value = _number(value, "event_time")
    if value is None:
        refuse("event_time", Reason.FIELD_MISSING, "expected when it happened")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        refuse("event_time", Reason.TYPE, f"expected a number of {scale}")
    try:
        return round(value * _SCALE[scale])
    except (OverflowError, ValueError):
        refuse("event_time", Reason.RANGE, "no such moment")


def _inner(found: Any, steps: tuple[str, ...]) -> Any:
    for step in steps:
        if not isinstance(found, dict):
            return None
        found = found.get(step)
    return found


def _level(message: Message, level: int) -> str | None:
    levels = message.levels
    return levels[level] or None if level < len(levels) else None


def _from_text(field: EventField | None) -> Callable[[str | None], Any]:
    """Text off a topic or a property, as what the field holds."""
    if field is not None and field.kind in ("int", "long", "float", "double"):
        name = field.name
        return lambda text: None if text is None else _number(text, name)
    return lambda text: text


def _number(text: str, field: str) -> int | float:
    try:
        if len(text) > NUMBER_CHARACTERS_MAX:
            raise ValueError
        return float(text) if set(text) & set(".eE") else int(text)
    except ValueError:
        refuse(field, Reason.TYPE, "expected a number")
