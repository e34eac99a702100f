"""A host of Sparkplug B: what edge nodes send, as rows of events.

Comes in: messages of ``spBv1.0/group/TYPE/node[/device]``. Goes out: rows, one per group of metrics and
moment in a message; requests for a rebirth. Invariants: a value is only read by the name and type that a
birth of the same session declared; state is bounded; gaps, deaths and refusals are counted. A birth is asked
for when data comes before it or names an alias that it has not, or when a sequence number is missing; once
per node and pause (a node that counts wrongly would be asked for ever), and only where the route allows it.
Source: Sparkplug 3.0.0 (edge node sessions 5 and 6, payload 6.4).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError

from connectors.mqtt_messages import Get, Message, Part, field_getters, getter, refuse
from connectors.sparkplug_values import BOOLEAN, TYPE_MAX, metric_value
from connectors.wire.sparkplug_b_pb2 import Payload
from pipeline.errors import ConfigError
from pipeline.events import EventType
from pipeline.metrics import MqttMetrics
from pipeline.mqtt_config import MqttRoute
from pipeline.reasons import Reason

NAMESPACE = "spBv1.0"
REBIRTH = "Node Control/Rebirth"
METRICS_MAX = 20_000  # of one message
NODES_MAX = 10_000
DEFINITIONS_MAX = 500_000  # of all nodes of a route
SEQUENCES = 256
_BIRTHS, _NODE_TYPES = ("NBIRTH", "DBIRTH"), ("NBIRTH", "NDATA", "NDEATH")
_READ = (*_BIRTHS, "NDATA", "DDATA", "NDEATH", "DDEATH")
_OTHERS = ("NCMD", "DCMD", "STATE")  # of hosts, not of nodes


@dataclass(frozen=True, slots=True)
class Definition:
    """What a birth says of one metric."""

    name: str
    datatype: int


OTHER = Definition("", 0)  # known, and of no event: all such share this one
AMBIGUOUS = Definition("", -1)  # an alias that a birth gave to two metrics, as real senders do
_Table = dict[int | str, Definition]  # by alias, and by name


@dataclass
class Node:
    """The session of one edge node, from its birth to its death."""

    birth_sequence: int | None
    sequence: int
    doubtful: bool = False  # a message is missing, and it may have been a birth
    metrics: _Table = field(default_factory=dict)
    devices: dict[str, _Table] = field(default_factory=dict)

    def find(self, device: str, key: int | str) -> Definition | None:
        """An alias is one of the node's, whoever of it was born with it."""
        found = self.devices.get(device, {}).get(key) if device else None
        return found or self.metrics.get(key)

    @property
    def definitions(self) -> int:
        """How many metrics and devices are known."""
        return len(self.metrics) + sum(1 + len(table) for table in self.devices.values())


@dataclass(frozen=True)
class _Wanted:
    """One group of metrics of the route."""

    event: str
    lane: str | None
    metrics: dict[str, list[tuple[str, Get]]]  # metric -> (field, its conversion)
    others: dict[str, Get]


class SparkplugHost:
    """The state of a route's nodes. ``now`` is a monotonic clock in seconds."""

    def __init__(
        self, route: MqttRoute, events: Mapping[str, EventType], metrics: MqttMetrics,
        now: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        assert route.jurisdiction is not None
        self._route, self._metrics, self._now = route, metrics, now
        self._source = getter(route.source, None, route) if route.source else None
        self._jurisdiction = getter(route.jurisdiction, None, route)
        self._groups = [
            _Wanted(group.event, group.lane, *_by_metric(group.fields, group.event, events, route))
            for group in route.all_groups
        ]
        self._names = {name for group in self._groups for name in group.metrics}
        self._nodes: dict[tuple[str, str], Node] = {}
        self._asked: dict[tuple[str, str], float] = {}
        self._commands: list[tuple[str, bytes]] = []
        self._definitions = 0

    def commands(self) -> list[tuple[str, bytes]]:
        """Topics and payloads to publish since the last call."""
        taken, self._commands = self._commands, []
        return taken

    def read(self, message: Message) -> list[Part]:
        """The rows of a message; none for one that only changes state. Raises RecordError."""
        levels = message.levels
        if len(levels) < 3 or levels[0] != NAMESPACE:
            refuse("topic", "topic", "not a topic of Sparkplug B")
        kind = "STATE" if levels[1] == "STATE" else levels[2]
        if kind in _OTHERS:
            return []
        if kind not in _READ or len(levels) != (4 if kind in _NODE_TYPES else 5) or "" in levels:
            refuse("topic", "topic", "not a topic of Sparkplug B")
        if message.retained:
            refuse("retain", "retained", "births and data are not retained: this one may be of any age")
        payload = _decode(message.payload)
        key, device = (levels[1], levels[3]), levels[4] if len(levels) == 5 else ""
        if kind == "NDEATH":
            self._node_death(key, payload)
            return []
        node = self._heard(key, kind, payload, message.repeated)
        if kind == "DDEATH":
            self._forget_device(node, device)
            return []
        if kind in _BIRTHS:
            self._learn(node, device, payload)
            if not self._route.sparkplug.births:
                return []
        elif device and device not in node.devices:
            self._ask(key)
            refuse("device", "before_birth", "data of a device before its birth")
        return self._parts(message, key, device, payload)

    # -- sessions

    def _heard(self, key: tuple[str, str], kind: str, payload: Payload, repeated: bool) -> Node:
        """The node's session, with the message counted into its sequence."""
        if not payload.HasField("seq"):
            refuse("seq", Reason.FIELD_MISSING, "a message without a sequence number")
        if payload.seq >= SEQUENCES:
            refuse("seq", Reason.RANGE, f"expected a sequence number below {SEQUENCES}")
        if kind == "NBIRTH":
            return self._born(key, payload)
        node = self._nodes.get(key)
        if node is None:
            self._ask(key)
            refuse("node", "before_birth", "a message before the edge node's birth")
        if payload.seq == node.sequence and repeated:
            self._metrics.sparkplug(self._route.filter, "repeat")
        elif payload.seq != (node.sequence + 1) % SEQUENCES:
            self._metrics.sparkplug(self._route.filter, "gap")
            node.doubtful = True
            self._ask(key)
        node.sequence = payload.seq
        return node

    def _born(self, key: tuple[str, str], payload: Payload) -> Node:
        self._drop(key)
        if len(self._nodes) >= NODES_MAX:
            refuse("node", Reason.OVERSIZE, f"more than {NODES_MAX} edge nodes on one route")
        node = self._nodes[key] = Node(_birth_sequence(payload), payload.seq)
        self._metrics.sparkplug(self._route.filter, "birth")
        self._metrics.nodes(self._route.filter, len(self._nodes))
        return node

    def _node_death(self, key: tuple[str, str], payload: Payload) -> None:
        """The will of a session. That of an earlier one, which came late, ends nothing."""
        node, told = self._nodes.get(key), _birth_sequence(payload)
        if node is None or (told is not None and node.birth_sequence not in (None, told)):
            self._metrics.sparkplug(self._route.filter, "stale_death")
            return
        self._drop(key)
        self._metrics.sparkplug(self._route.filter, "death")

    def _drop(self, key: tuple[str, str]) -> None:
        node = self._nodes.pop(key, None)
        if node is not None:
            self._definitions -= node.definitions
            self._metrics.nodes(self._route.filter, len(self._nodes))

    def _forget_device(self, node: Node, device: str) -> None:
        before = node.definitions
        node.devices.pop(device, None)
        self._definitions += node.definitions - before
        self._metrics.sparkplug(self._route.filter, "death")

    def _learn(self, node: Node, device: str, payload: Payload) -> None:
        """Take over what a birth declares, whole or not at all."""
        table: _Table = {}
        for metric in payload.metrics:
            if not metric.name or not 0 < metric.datatype <= TYPE_MAX:
                refuse("metric", Reason.FIELD_MISSING, "a birth's metric without name or data type")
            wanted = metric.name in self._names
            definition = Definition(metric.name, metric.datatype) if wanted else OTHER
            if wanted:
                table[metric.name] = definition
            if metric.HasField("alias"):
                twice = table.get(metric.alias, definition) != definition
                table[metric.alias] = AMBIGUOUS if twice else definition
        if self._definitions + len(table) >= DEFINITIONS_MAX:
            refuse("metric", Reason.OVERSIZE, f"more than {DEFINITIONS_MAX} metrics on one route")
        before = node.definitions
        if device:
            node.devices[device] = table
            self._metrics.sparkplug(self._route.filter, "birth")
        else:
            node.metrics = table
        self._definitions += node.definitions - before

    def _ask(self, key: tuple[str, str]) -> None:
        """Ask a node for its births, unless it was asked a moment ago."""
        rules, now = self._route.sparkplug, self._now()
        if not rules.rebirth or now < self._asked.get(key, now):
            return
        if len(self._asked) >= NODES_MAX:
            self._asked = {one: until for one, until in self._asked.items() if until > now}
            if len(self._asked) >= NODES_MAX:
                return
        self._asked[key] = now + rules.rebirth_pause_s
        self._commands.append(
            (f"{NAMESPACE}/{key[0]}/NCMD/{key[1]}", rebirth_command(int(time.time() * 1000)))
        )
        self._metrics.sparkplug(self._route.filter, "rebirth_request")

    # -- rows

    def _parts(self, message: Message, key: tuple[str, str], device: str, payload: Payload) -> list[Part]:
        rows: list[dict[tuple[int, int], dict[str, Any]]] = [{} for _ in self._groups]
        met: Counter[tuple[str, int]] = Counter()
        historical = 0
        for name, value, moment, late in self._values(key, device, payload):
            turn = met[name, moment]
            met[name, moment] += 1
            historical += late
            for group, found in zip(self._groups, rows, strict=True):
                for into, change in group.metrics.get(name, ()):
                    row = found.setdefault((moment, turn), {})
                    row[into] = change(message, {name: value})
        if historical:
            self._metrics.sparkplug(self._route.filter, "historical", historical)
        return [
            Part(
                group.event,
                group.lane,
                [self._row(message, key, device, group, at, row) for at, row in found.items()],
            )
            for group, found in zip(self._groups, rows, strict=True)
            if found
        ]

    def _row(
        self, message: Message, key: tuple[str, str], device: str, group: _Wanted, at: tuple[int, int],
        row: dict[str, Any],
    ) -> dict[str, Any]:  # fmt: skip
        for name, get in group.others.items():
            row[name] = get(message, {})
        row["event_time"] = at[0] * 1000
        row["jurisdiction"] = self._jurisdiction(message, {})
        row["source"] = (
            self._source(message, {}) if self._source else "/".join((*key, device) if device else key)
        )
        return row

    def _values(
        self, key: tuple[str, str], device: str, payload: Payload
    ) -> Iterable[tuple[str, Any, int, bool]]:
        """(metric's name, value, ms, sent late) of every metric that the route wants."""
        node = self._nodes[key]
        for metric in payload.metrics:
            by_name = bool(metric.name)
            if by_name and metric.name not in self._names:
                continue
            definition = node.find(device, metric.name if by_name else metric.alias)
            if definition is None or not (by_name or metric.HasField("alias")):
                self._ask(key)
                refuse("alias", "unknown_metric", "a metric that no birth of this session declares")
            if definition is OTHER:
                continue
            if definition is AMBIGUOUS:
                refuse("alias", "alias_twice", "the birth gave this alias to two metrics")
            if node.doubtful and not by_name and self._route.sparkplug.after_gap == "drop":
                refuse("seq", "after_gap", "a message is missing; values by alias wait for a birth")
            if metric.HasField("datatype") and metric.datatype != definition.datatype:
                self._ask(key)
                refuse("datatype", Reason.TYPE, "not the data type that the birth declared")
            moment = metric.timestamp or payload.timestamp
            if not moment:
                refuse("event_time", Reason.FIELD_MISSING, "neither metric nor payload has a time")
            yield (
                definition.name,
                metric_value(metric, definition.datatype, "metric"),
                moment,
                metric.is_historical,
            )


def rebirth_command(now_ms: int) -> bytes:
    """The payload that asks an edge node for its births."""
    command = Payload(timestamp=now_ms)
    command.metrics.add(name=REBIRTH, timestamp=now_ms, datatype=BOOLEAN, boolean_value=True)
    return command.SerializeToString()


def _decode(body: bytes) -> Payload:
    try:
        payload = Payload.FromString(body)
    except (DecodeError, RecursionError):
        refuse("", Reason.UNDECODABLE, "not a Sparkplug B payload")
    if len(payload.metrics) > METRICS_MAX:
        refuse("metric", Reason.OVERSIZE, f"more than {METRICS_MAX} metrics in one message")
    return payload


def _birth_sequence(payload: Payload) -> int | None:
    """``bdSeq``, which ties a death to its birth."""
    for metric in payload.metrics:
        if metric.name == "bdSeq":
            return metric.long_value if metric.WhichOneof("value") == "long_value" else metric.int_value
    return None


def _by_metric(
    ways: Mapping[str, Any], event: str, events: Mapping[str, EventType], route: MqttRoute
) -> tuple[dict[str, list[tuple[str, Get]]], dict[str, Get]]:
    if event not in events:
        raise ConfigError("no such event", operation="mqtt route", place=route.filter)
    getters = field_getters(ways, events[event], route)
    metrics: dict[str, list[tuple[str, Get]]] = {}
    for name, way in ways.items():
        if way.metric is not None:
            metrics.setdefault(way.metric, []).append((name, getters[name]))
    return metrics, {name: get for name, get in getters.items() if ways[name].metric is None}
