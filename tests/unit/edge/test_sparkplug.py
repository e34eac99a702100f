"""The Sparkplug B host: what nodes send becomes rows by what their births declared, and by nothing else."""

from __future__ import annotations

import base64
import contextlib
import csv
import json
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

import connectors.sparkplug as sparkplug
from connectors.mqtt_messages import Message
from connectors.sparkplug import SparkplugHost
from connectors.sparkplug_values import metric_value
from connectors.wire.sparkplug_b_pb2 import Payload
from pipeline.errors import ConfigError, RecordError
from pipeline.metrics import MqttMetrics
from pipeline.mqtt_config import MqttRoute
from tests.edge_world import schemas
from tests.shared_data import shared_data

FILTER = "spBv1.0/#"
NODE = ("plant", "press")
NOW_MS = 1_750_855_643_474
SIGNED, UNSIGNED = {1: 8, 2: 16, 3: 32, 4: 64}, {5: 8, 6: 16, 7: 32, 8: 64}
DOUBLE = 10
THING = {"topic_level": 4}
WRONG_TOPICS = (
    "spBv1.0/a/NDATA", "spBv1.0/a/NDATA/b/c", "spBv1.0/a/DDATA/b", "x/a/NDATA/b", "a", "spBv1.0/a/NDATA/",
    "spBv1.0//NDATA/b", "spBv1.0/a/XDATA/b",
)  # fmt: skip


class World:
    """A host with its own clock, and nodes that count as they should."""

    def __init__(self, **changes):
        rules = changes.pop("rules", {"rebirth": True})
        given = {
            "filter": FILTER, "payload": "sparkplug-b", "event": "machine_reading",
            "jurisdiction": {"value": "DE"}, "sparkplug": rules,
            "fields": {
                "machine": {"topic_level": 3},
                "sensor_1": {"metric": "Temperature", "unit": "Cel", "to": "K"},
                "sensor_2": "Pressure",
                "cycle": "Cycles",
            },
        }  # fmt: skip
        self.registry = CollectorRegistry()
        self.clock = 0.0
        route = MqttRoute.model_validate(given | changes)
        self.host = SparkplugHost(route, schemas().events, MqttMetrics(self.registry), lambda: self.clock)

    def told(self, kind: str) -> int:
        labels = {"route": FILTER, "kind": kind}
        return int(self.registry.get_sample_value("pipeline_sparkplug_notices_total", labels) or 0)

    def send(self, kind: str, payload: Payload | bytes, device: str = "", node=NODE, **flags):
        topic = "/".join(("spBv1.0", node[0], kind, node[1], *([device] if device else ())))
        body = payload if isinstance(payload, bytes) else payload.SerializeToString()
        return self.host.read(Message(topic, body, **flags))

    def refusal(self, *args, **flags) -> str:
        with pytest.raises(RecordError) as caught:
            self.send(*args, **flags)
        return str(caught.value.reason)

    def birth(self, seq: int = 0, bd_seq: int = 0, device: str = "", **metrics):
        """``name=(alias, datatype, value)``."""
        payload = Payload(timestamp=NOW_MS, seq=seq)
        if not device:
            payload.metrics.add(name="bdSeq", datatype=4, long_value=bd_seq)
        for name, (alias, datatype, value) in metrics.items():
            metric = payload.metrics.add(name=name, alias=alias, datatype=datatype)
            put(metric, datatype, value)
        return self.send("DBIRTH" if device else "NBIRTH", payload, device)


def put(metric, datatype: int, value) -> None:
    if datatype == DOUBLE:
        metric.double_value = value
    elif datatype == 12:
        metric.string_value = value
    else:
        metric.int_value = value


def data(seq: int, alias: int = 1, value: float = 1.0, **changes) -> Payload:
    payload = Payload(timestamp=NOW_MS, seq=seq)
    payload.metrics.add(alias=alias, double_value=value, **changes)
    return payload


def rows(parts):
    return [row for part in parts for row in part.rows]


@pytest.fixture
def world():
    made = World()
    made.birth(Temperature=(1, DOUBLE, 20.0), Pressure=(2, DOUBLE, 3.5), Other=(9, 12, "x"))
    return made


# -- values


@given(st.sampled_from(sorted(SIGNED)), st.data(), st.sampled_from(["own", "int", "long"]))
@settings(max_examples=300, deadline=None)
def test_signed_numbers_come_back_whatever_width_their_sender_filled(datatype, draw, filled):
    bits = SIGNED[datatype]
    value = draw.draw(st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1))
    width = {"own": bits, "int": max(32, bits), "long": 64}[filled]
    metric = Payload.Metric()
    setattr(metric, "long_value" if width == 64 else "int_value", value % (1 << width))
    assert metric_value(metric, datatype, "m") == value


@given(st.sampled_from(sorted(UNSIGNED)), st.data())
@settings(max_examples=200, deadline=None)
def test_unsigned_numbers_stay_unsigned_and_within_their_type(datatype, draw):
    bits = UNSIGNED[datatype]
    value = draw.draw(st.integers(0, (1 << bits) - 1))
    assert metric_value(Payload.Metric(long_value=value), datatype, "m") == value
    if bits < 64:
        with pytest.raises(RecordError):
            metric_value(Payload.Metric(long_value=value + (1 << bits)), datatype, "m")


def test_the_other_types_and_null():
    one = struct.unpack("f", struct.pack("f", 1.1))[0]
    assert metric_value(Payload.Metric(float_value=1.1), 9, "m") == one
    assert metric_value(Payload.Metric(boolean_value=True), 11, "m") is True
    assert metric_value(Payload.Metric(long_value=NOW_MS), 13, "m") == NOW_MS * 1000
    assert [metric_value(Payload.Metric(string_value="a"), kind, "m") for kind in (12, 14, 15)] == ["a"] * 3
    assert metric_value(Payload.Metric(is_null=True), 10, "m") is None
    assert metric_value(Payload.Metric(is_null=True, double_value=2), 10, "m") is None


@pytest.mark.parametrize(
    ("metric", "datatype"),
    [
        (Payload.Metric(), 10),  # no value and not null
        (Payload.Metric(string_value="5"), 10),
        (Payload.Metric(double_value=5), 3),
        (Payload.Metric(bytes_value=b"x"), 17),
        (Payload.Metric(dataset_value=Payload.DataSet()), 16),
        (Payload.Metric(int_value=1 << 20), 1),
        (Payload.Metric(int_value=5), 13),
        (Payload.Metric(double_value=5), 9),
    ],
)
def test_a_value_is_never_read_as_another_type(metric, datatype):
    with pytest.raises(RecordError):
        metric_value(metric, datatype, "m")


# -- rows


def test_a_birth_and_its_data_become_events(world):
    (row,) = rows(world.send("NDATA", data(1, value=25.0)))
    assert row == {
        "machine": "press", "sensor_1": 298.15, "event_time": NOW_MS * 1000, "jurisdiction": "DE",
        "source": "plant/press",
    }  # fmt: skip
    (at_birth,) = rows(world.birth(bd_seq=1, Temperature=(5, DOUBLE, 20.0), Pressure=(1, DOUBLE, 3.5)))
    assert (at_birth["sensor_1"], at_birth["sensor_2"]) == (293.15, 3.5)
    (row,) = rows(world.send("NDATA", data(1, alias=1, value=7.0)))
    assert row["sensor_2"] == 7.0  # the alias means what the last birth says
    assert world.send("NDATA", Payload(seq=2, metrics=[Payload.Metric(name="Elsewhere", int_value=1)])) == []


def test_births_may_be_no_events():
    world = World(rules={"births": False})
    assert world.birth(Temperature=(1, DOUBLE, 20.0)) == []
    assert len(rows(world.send("NDATA", data(1)))) == 1


def test_one_event_per_moment_and_none_is_lost_when_a_metric_occurs_twice(world):
    payload = Payload(timestamp=NOW_MS, seq=1)
    for offset, alias, value, late in (
        (0, 1, 1.0, True),
        (5, 1, 2.0, True),
        (5, 2, 9.0, False),
        (5, 1, 3.0, False),
    ):
        payload.metrics.add(
            alias=alias, double_value=value, timestamp=NOW_MS - 10 + offset, is_historical=late
        )
    found = rows(world.send("NDATA", payload))
    times = [(row["event_time"] - NOW_MS * 1000) // 1000 for row in found]
    assert times == [-10, -5, -5]
    assert [round(row["sensor_1"] - 273.15) for row in found] == [1, 2, 3]
    assert [row.get("sensor_2") for row in found] == [None, 9.0, None]
    assert world.told("historical") == 2


def test_groups_make_events_of_their_own():
    world = World(
        event="", fields={},
        groups=[
            {"event": "machine_reading", "fields": {"machine": THING, "sensor_1": "Temperature"}},
            {"event": "vehicle_telemetry", "lane": "urgent",
             "fields": {"vin": THING, "speed_m_s": {"metric": "Speed", "unit": "km/h"}}},
        ],
    )  # fmt: skip
    world.birth()
    world.birth(seq=1, device="truck", Temperature=(1, DOUBLE, 1.0), Speed=(2, DOUBLE, 2.0))
    payload = data(2)
    payload.metrics.add(alias=2, double_value=36.0)
    first, second = world.send("DDATA", payload, "truck")
    assert (first.event, first.lane, second.event, second.lane) == (
        "machine_reading", None, "vehicle_telemetry", "urgent",
    )  # fmt: skip
    assert second.rows[0]["speed_m_s"] == 10.0
    assert second.rows[0]["source"] == "plant/press/truck"


@pytest.mark.parametrize(
    "fields",
    [
        {"sensor_1": "Temperature"},  # machine is not nullable
        {"machine": {"topic_level": 3}, "nothing": "Temperature"},
        {"machine": {"topic_level": 3}, "sensor_1": {"metric": "T", "unit": "Cel", "to": "km"}},
        {"machine": {"topic_level": 3}, "cycle": {"metric": "T", "unit": "s", "to": "h"}},
    ],
)
def test_a_mapping_that_does_not_fit_stops_at_the_start(fields):
    with pytest.raises(ConfigError):
        World(fields=fields)


# -- sessions


def test_data_before_birth_is_refused_and_a_birth_asked_for_once_per_pause(world):
    other = ("plant", "lathe")
    assert world.refusal("NDATA", data(3), node=other) == "before_birth"
    assert world.refusal("NDATA", data(4), node=other) == "before_birth"
    ((topic, body),) = world.host.commands()
    command = Payload.FromString(body)
    assert topic == "spBv1.0/plant/NCMD/lathe"
    (metric,) = command.metrics
    assert (metric.name, metric.datatype, metric.boolean_value) == ("Node Control/Rebirth", 11, True)
    world.clock += 10.0
    assert world.refusal("NDATA", data(5), node=other) == "before_birth"
    assert len(world.host.commands()) == 1
    assert world.refusal("DDATA", data(1), "unborn") == "before_birth"


def test_without_leave_nothing_is_asked():
    world = World(rules={})
    assert world.refusal("NDATA", data(3)) == "before_birth"
    assert world.host.commands() == []


def test_the_sequence_goes_round_and_a_hole_is_a_gap(world):
    for seq in (*range(1, 256), 0, 1, 2):
        assert rows(world.send("NDATA", data(seq)))
    assert world.told("gap") == 0
    assert rows(world.send("NDATA", data(5)))  # values go on by what is known
    assert (world.told("gap"), len(world.host.commands())) == (1, 1)
    assert rows(world.send("NDATA", data(5), repeated=True))  # the broker sends it again: no gap
    assert (world.told("gap"), world.told("repeat")) == (1, 1)


def test_after_a_gap_values_by_alias_may_wait_for_a_birth():
    world = World(rules={"rebirth": True, "after_gap": "drop"})
    world.birth(Temperature=(1, DOUBLE, 20.0))
    assert world.refusal("NDATA", data(7)) == "after_gap"
    named = Payload(timestamp=NOW_MS, seq=8)
    named.metrics.add(name="Temperature", double_value=1.0)
    assert rows(world.send("NDATA", named))
    world.birth(Temperature=(1, DOUBLE, 20.0))
    assert rows(world.send("NDATA", data(1)))


def test_deaths_end_sessions_but_a_will_of_an_earlier_one_does_not(world):
    def death(bd_seq):
        payload = Payload(timestamp=NOW_MS)
        payload.metrics.add(name="bdSeq", long_value=bd_seq)
        return payload

    world.birth(bd_seq=4, Temperature=(1, DOUBLE, 1.0))
    world.birth(seq=1, device="pump", Temperature=(1, DOUBLE, 1.0))
    assert rows(world.send("DDATA", data(2), "pump"))
    world.send("DDEATH", Payload(timestamp=NOW_MS, seq=3), "pump")
    assert world.refusal("DDATA", data(4), "pump") == "before_birth"
    world.send("NDEATH", death(3))
    assert world.told("stale_death") == 1
    assert rows(world.send("NDATA", data(5)))
    world.send("NDEATH", death(4))
    assert world.refusal("NDATA", data(6)) == "before_birth"


def test_unknown_aliases_and_changed_types_are_refused(world):
    assert world.refusal("NDATA", data(1, alias=77)) == "unknown_metric"
    assert len(world.host.commands()) == 1
    assert world.refusal("NDATA", data(2, datatype=9)) == "type"
    assert (
        world.refusal("NDATA", Payload(seq=3, metrics=[Payload.Metric(double_value=1)])) == "unknown_metric"
    )
    assert world.refusal("NDATA", Payload(timestamp=1, metrics=[Payload.Metric(alias=1)])) == "field_missing"
    assert world.refusal("NDATA", data(256)) == "range"
    timeless = Payload(seq=4)
    timeless.metrics.add(alias=1, double_value=1)
    assert world.refusal("NDATA", timeless) == "field_missing"


def test_an_alias_given_twice_names_nothing(world):
    world.birth(Temperature=(1, DOUBLE, 20.0), Pressure=(1, DOUBLE, 3.5), Other=(9, 12, "x"), More=(9, 3, 1))
    assert world.refusal("NDATA", data(1, alias=1)) == "alias_twice"
    assert world.send("NDATA", data(2, alias=9)) == []
    named = Payload(timestamp=NOW_MS, seq=3)
    named.metrics.add(name="Temperature", double_value=1.0)
    assert rows(world.send("NDATA", named))


def test_commands_and_states_are_not_data(world):
    assert world.send("NCMD", b"\xff") == world.send("DCMD", b"", "pump") == []
    assert world.host.read(Message("spBv1.0/STATE/host", b"{}")) == []


@pytest.mark.parametrize("topic", WRONG_TOPICS)
def test_topics_of_another_form_are_refused(world, topic):
    with pytest.raises(RecordError) as caught:
        world.host.read(Message(topic, data(1).SerializeToString()))
    assert caught.value.reason == "topic"


def test_a_retained_birth_is_of_any_age(world):
    assert world.refusal("NBIRTH", Payload(seq=0), retained=True) == "retained"


# -- hostile


def test_bytes_that_are_no_payload_change_nothing(world):
    rng = random.Random(7)
    good = data(1).SerializeToString()
    nested = b""
    for _ in range(500):  # a template in a metric in a template …
        inner = b"\x12" + _size(len(nested)) + nested
        nested = b"\x92\x01" + _size(len(inner)) + inner
    junk = [b"\xff" * 64, good[:-3], b"\x12" + _size(len(nested)) + nested, b"\x12\x02\x0a\xff"]
    for body in [*junk, *(rng.randbytes(rng.randrange(1, 200)) for _ in range(300))]:
        with contextlib.suppress(RecordError):
            world.send("NDATA", body)
    world.birth(Temperature=(1, DOUBLE, 20.0))
    assert rows(world.send("NDATA", data(1)))


def _size(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def test_counts_are_bounded(world, monkeypatch):
    monkeypatch.setattr(sparkplug, "METRICS_MAX", 50)
    assert world.refusal("NDATA", b"\x12\x00" * 51 + b"\x18\x01") == "oversize"
    monkeypatch.setattr(sparkplug, "DEFINITIONS_MAX", 40)
    many = Payload(seq=1)
    for number in range(39):
        many.metrics.add(name=f"m{number}", alias=number, datatype=3, int_value=1)
    assert world.refusal("DBIRTH", many, "pump") == "oversize"
    monkeypatch.setattr(sparkplug, "NODES_MAX", 2)
    world.send("NBIRTH", Payload(seq=0), node=("plant", "2"))
    assert world.refusal("NBIRTH", Payload(seq=0), node=("plant", "3")) == "oversize"
    for number in range(5):
        world.refusal("NDATA", data(1), node=("plant", f"unborn-{number}"))
    assert len(world.host.commands()) <= 2


def test_what_is_known_is_given_back_by_deaths_and_births(world):
    for _ in range(3):
        world.birth(Temperature=(1, DOUBLE, 1.0), Pressure=(2, DOUBLE, 1.0))
        for number in range(3):
            world.birth(seq=number + 1, device="pump", Temperature=(3, DOUBLE, 1.0))
    node = world.host._nodes[NODE]
    assert world.host._definitions == node.definitions
    world.send("DDEATH", Payload(seq=4), "pump")
    assert world.host._definitions == node.definitions
    world.send("NDEATH", Payload())
    assert world.host._definitions == 0


# -- data of others


def vectors() -> dict[str, bytes]:
    found = json.loads(shared_data("vectors", "sparkplug", "payload_vectors.json").read_text())
    return {one["name"]: base64.b64decode(one["base64"]) for one in found["vectors"]}


def test_the_payloads_of_another_implementation():
    found = json.loads(shared_data("vectors", "sparkplug", "payload_vectors.json").read_text())["vectors"]
    for one in found:
        payload = Payload.FromString(base64.b64decode(one["base64"]))
        told = {"timestamp": payload.timestamp, "seq": payload.seq, "metrics": len(payload.metrics)}
        assert told == one["decoded"], one["name"]


def test_a_session_of_another_implementation():
    bodies, world = vectors(), World()
    assert world.refusal("NDATA", bodies["NDATA_BEFORE_BIRTH"]) == "before_birth"
    (birth,) = rows(world.send("NBIRTH", bodies["NBIRTH_V1"]))
    assert birth["sensor_1"] == 21.5 + 273.15
    (row,) = rows(world.send("NDATA", bodies["NDATA_V1"]))
    assert (row["sensor_1"], row["event_time"]) == (22.5 + 273.15, NOW_MS * 1000)
    assert rows(world.send("NDATA", bodies["NDATA_GAP"]))
    assert world.told("gap") == 1
    world.send("NDEATH", bodies["NDEATH_V1"])  # its bdSeq is 0, that of the birth 88
    assert (world.told("stale_death"), world.told("death")) == (1, 0)
    world.send("NBIRTH", bodies["NBIRTH_LARGE"])
    world.host._nodes[NODE].sequence = 255
    world.send("NBIRTH", bodies["NBIRTH_V1"])
    world.host._nodes[NODE].sequence = 255
    assert rows(world.send("NDATA", bodies["NDATA_WRAPAROUND"]))
    assert world.told("gap") == 1


def test_gaps_of_a_capture_from_production_are_counted_and_nothing_is_thrown_away():
    """Topics, sequence numbers and metric counts are the capture's; births and values are made here."""
    path = shared_data("vectors", "sparkplug", "benthos-umh", "pcap_patterns.csv")
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    world = World(rules={"rebirth": True, "rebirth_pause_s": 1e9})
    gaps = wrong_topic = taken = 0
    last: dict[tuple[str, str], int] = {}
    for line in csv.DictReader(lines):
        node = (line["group_id"], line["edge_node_id"])
        if (line["msg_type"] == "NDATA") == bool(line["device_id"]):
            wrong_topic += 1
            assert world.refusal(line["msg_type"], data(1), line["device_id"], node) == "topic"
            continue
        seq = int(line["seq"] or 0)
        if node not in last:
            _be_born(world, node, (seq - 1) % 256)
            last[node] = (seq - 1) % 256
        if line["device_id"] and line["device_id"] not in world.host._nodes[node].devices:
            table = dict(world.host._nodes[node].metrics)
            world.host._nodes[node].devices[line["device_id"]] = table
        payload = Payload(timestamp=NOW_MS, seq=seq)
        for number in range(int(line["metric_count"])):
            payload.metrics.add(alias=number, double_value=1.0)
        taken += len(rows(world.send(line["msg_type"], payload, line["device_id"], node)))
        gaps += seq != (last[node] + 1) % 256
        last[node] = seq
    assert (world.told("gap"), len(world.host.commands())) == (gaps, 1)
    assert gaps == 19  # a node that counts like this must not be asked for births without end
    assert wrong_topic == 10
    assert taken > 500


def _be_born(world: World, node, seq: int) -> None:
    payload = Payload(timestamp=NOW_MS, seq=seq)
    payload.metrics.add(name="Temperature", alias=0, datatype=DOUBLE, double_value=1.0)
    for number in range(1, 40):
        payload.metrics.add(name=f"m{number}", alias=number, datatype=DOUBLE, double_value=1.0)
    world.send("NBIRTH", payload, node=node)
