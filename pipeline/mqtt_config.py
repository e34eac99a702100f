"""Configuration of the MQTT bridge: ``[edge.mqtt]`` and its ``[[edge.mqtt.routes]]``.

Comes in: values of the configuration file. Goes out: frozen models. A route says which topics become which
event, and where source, jurisdiction, time and fields come from. Two routes never take the same topic: what a
message becomes must not depend on their order. Names of fields, lanes and units are checked by the bridge.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class ValueFrom(_Strict):
    """Where one value of an event comes from: exactly one of these, and the units of a number.

    ``field``: a key of a JSON object, dots for objects in it. ``metric``: a Sparkplug metric's name.
    ``topic_level``: from 0. ``property``: an MQTT 5 user property. ``unit`` is what is sent, ``to`` what the
    event holds (default: the unit of the event's field).
    """

    value: str | int | float | bool | None = None
    property: str | None = None
    topic_level: Annotated[int, Field(ge=0)] | None = None
    json_field: str | None = Field(default=None, alias="field")
    metric: str | None = None
    unit: str | None = None
    to: str | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = (self.value, self.property, self.topic_level, self.json_field, self.metric)
        if sum(way is not None for way in ways) != 1:
            raise ValueError("expected exactly one of value, property, topic_level, field, metric")
        if self.unit is not None and self.json_field is None and self.metric is None:
            raise ValueError("unit needs field or metric")
        if self.to is not None and self.unit is None:
            raise ValueError("to needs unit")
        return self


class TimeFrom(ValueFrom):
    """When it happened. ``scale`` of a number; ``iso`` is text, RFC 3339 with an offset.

    ``arrival`` is for devices without a clock: the moment at which the message was taken, which after an
    outage of the bridge is hours late.
    """

    scale: Literal["iso", "s", "ms", "us"] = "iso"
    arrival: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = (self.property, self.topic_level, self.json_field)
        if sum(way is not None for way in ways) + self.arrival != 1:
            raise ValueError("expected exactly one of property, topic_level, field, arrival")
        if self.value is not None or self.metric is not None or self.unit is not None:
            raise ValueError("a time has no value, metric or unit")
        return self


class Group(_Strict):
    """Metrics of one Sparkplug message that make one event."""

    event: str
    lane: str | None = None
    fields: dict[str, ValueFrom]

    @field_validator("fields", mode="before")
    @classmethod
    def _short_form(cls, fields: Any) -> Any:
        return _short(fields, "metric")


class SparkplugRules(_Strict):
    """How strict the host is. A rebirth request is written to the broker: only where it may be."""

    rebirth: bool = False
    rebirth_pause_s: Annotated[float, Field(gt=0)] = 10.0  # between two requests to one edge node
    after_gap: Literal["keep", "drop"] = "keep"  # drop: values by alias wait for the next birth
    births: bool = True  # the values in births are events as well

    @model_validator(mode="after")
    def _recovers(self) -> Self:
        if self.after_gap == "drop" and not self.rebirth:
            raise ValueError("after_gap = 'drop' needs rebirth = true: a silent node would never recover")
        return self


class MqttRoute(_Strict):
    """Topics that become one event (a Sparkplug route: one event per group)."""

    filter: Annotated[str, Field(min_length=1, max_length=1024)]
    payload: Literal["cloudevents-json", "json", "sparkplug-b"]
    event: str = ""
    lane: str | None = None
    source: ValueFrom | None = None  # Sparkplug default: group/node[/device]
    jurisdiction: ValueFrom | None = None
    event_time: TimeFrom | None = None  # json only
    fields: dict[str, ValueFrom] = {}  # json default: the object's keys are the event's fields
    groups: tuple[Group, ...] = ()
    sparkplug: SparkplugRules = SparkplugRules()

    @field_validator("fields", mode="before")
    @classmethod
    def _short_form(cls, fields: Any, info: Any) -> Any:
        return _short(fields, "metric" if info.data.get("payload") == "sparkplug-b" else "field")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        levels = filter_levels(self.filter)
        if "#" in levels[:-1] or any(level not in ("+", "#") and set(level) & set("+#") for level in levels):
            raise ValueError("filter: + stands for a whole level, # for all that follow, at the end")
        if self.payload == "cloudevents-json":
            unused = self.source or self.event_time or self.fields or self.groups
            if unused:
                raise ValueError("a CloudEvent says itself what source, event_time and fields are")
            return self
        if self.jurisdiction is None:
            raise ValueError("jurisdiction: expected where it comes from; it is never guessed")
        if bool(self.event) == bool(self.groups):
            raise ValueError("expected event, or groups")
        if self.payload == "json":
            if self.source is None or self.event_time is None:
                raise ValueError("a json route needs source and event_time")
            if self.groups:
                raise ValueError("groups are for sparkplug-b")
        self._ways_fit()
        return self

    def _ways_fit(self) -> None:
        foreign = "json_field" if self.payload == "sparkplug-b" else "metric"
        ways = [*self.fields.values(), self.source, self.jurisdiction, *self._grouped()]
        if any(way is not None and getattr(way, foreign) is not None for way in ways):
            raise ValueError(f"{foreign.removeprefix('json_')}: not in a {self.payload} payload")
        if self.payload == "sparkplug-b":
            if self.event_time is not None:
                raise ValueError("Sparkplug metrics bring their own time")
            if any(way is not None and way.metric is not None for way in (self.source, self.jurisdiction)):
                raise ValueError("source and jurisdiction cannot be metrics: they are not in every message")
            if not any(way.metric is not None for way in self._grouped()):
                raise ValueError("fields: expected at least one metric")

    def _grouped(self) -> list[ValueFrom]:
        return [way for group in self.all_groups for way in group.fields.values()]

    @property
    def all_groups(self) -> tuple[Group, ...]:
        """The groups, or the route's own event as the only one."""
        if self.groups or not self.event:
            return self.groups
        return (Group(event=self.event, lane=self.lane, fields=self.fields),)


class MqttConfig(_Strict):
    """One broker. The session outlives the bridge: what comes while it is away waits at the broker."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65_535)] = 1883
    client_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")] = "pipeline-edge"  # one per agent
    username: str = ""
    password: SecretStr = SecretStr("")
    password_file: Path | None = None
    tls: bool = False
    tls_ca: Path | None = None  # default: the system's authorities
    tls_cert: Path | None = None
    tls_key: Path | None = None
    plain_allowed: bool = False  # to another machine without TLS
    keepalive_s: Annotated[int, Field(ge=1, le=3600)] = 20
    session_expiry_s: Annotated[int, Field(ge=0, le=0xFFFFFFFF)] = 7 * 86_400
    receive_max: Annotated[int, Field(ge=1, le=65_535)] = 512  # messages in hand, not acknowledged
    message_bytes_max: Annotated[int, Field(ge=256, le=16 << 20)] = 262_144
    backoff_min_s: Annotated[float, Field(gt=0)] = 0.2
    backoff_max_s: Annotated[float, Field(gt=0)] = 30.0
    rejects_topic: str = ""  # where refused messages are published, whole; empty: counted and logged
    routes: Annotated[tuple[MqttRoute, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if self.backoff_min_s > self.backoff_max_s:
            raise ValueError("backoff_min_s must not be above backoff_max_s")
        if not self.tls and self.host not in LOOPBACK and not self.plain_allowed:
            raise ValueError("tls: another machine is reached with TLS, or with plain_allowed = true")
        if not self.tls and (self.tls_ca or self.tls_cert or self.tls_key):
            raise ValueError("tls_ca, tls_cert and tls_key need tls = true")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls_cert and tls_key belong together")
        if self.password_file and self.password.get_secret_value():
            raise ValueError("password or password_file, not both")
        if (self.password_file or self.password.get_secret_value()) and not self.username:
            raise ValueError("a password needs a username")
        for one, other in combinations(self.routes, 2):
            if overlap(filter_levels(one.filter), filter_levels(other.filter)):
                raise ValueError(f"routes: {one.filter!r} and {other.filter!r} can take the same topic")
        if self.rejects_topic:
            if set(self.rejects_topic) & set("+#"):
                raise ValueError("rejects_topic: a topic, not a filter")
            if any(matches(filter_levels(r.filter), self.rejects_topic.split("/")) for r in self.routes):
                raise ValueError("rejects_topic: a route takes it, refused messages would come back")
        return self

    @property
    def lanes(self) -> set[str]:
        """Every lane that a route names."""
        named = [lane for r in self.routes for lane in (r.lane, *(group.lane for group in r.groups))]
        return {lane for lane in named if lane is not None}


def filter_levels(topic_filter: str) -> tuple[str, ...]:
    """The levels that a topic is compared with; of a shared subscription those after its group."""
    levels = tuple(topic_filter.split("/"))
    return levels[2:] if levels[0] == "$share" and len(levels) > 2 else levels


def matches(levels: tuple[str, ...], topic: list[str]) -> bool:
    """Whether a filter's levels take a topic's (MQTT 5, section 4.7)."""
    if topic[0].startswith("$") and levels[0] in ("+", "#"):
        return False
    for index, level in enumerate(levels):
        if level == "#":
            return True
        if index >= len(topic) or level not in ("+", topic[index]):
            return False
    return len(levels) == len(topic)


def overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether some topic is taken by both."""
    for mine, theirs in zip(one, other, strict=False):
        if "#" in (mine, theirs):
            return True
        if mine != theirs and "+" not in (mine, theirs):
            return False
    if len(one) == len(other):
        return True
    longer = one if len(one) > len(other) else other
    return len(longer) == min(len(one), len(other)) + 1 and longer[-1] == "#"


def _short(fields: Any, way: str) -> Any:
    """``{name = "x"}`` is short for ``{name = {field = "x"}}``, in Sparkplug for a metric."""
    if not isinstance(fields, dict):
        return fields
    return {name: {way: rule} if isinstance(rule, str) else rule for name, rule in fields.items()}
