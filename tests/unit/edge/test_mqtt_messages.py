"""Plain JSON as rows: where each value comes from, in which unit, and what is refused."""

from __future__ import annotations

import json
import time

import pytest

from connectors.mqtt_messages import ROWS_MAX, JsonReader, Message
from pipeline.errors import RecordError
from pipeline.mqtt_config import MqttRoute
from tests.edge_world import schemas
from tests.mqtt_world import ROUTE

MAPPED = {
    "source": {"property": "device"},
    "jurisdiction": {"field": "where.code"},
    "event_time": {"field": "at", "scale": "ms"},
    "fields": {
        "vin": {"topic_level": 1},
        "speed_m_s": {"field": "motion.speed", "unit": "km/h"},
        "heading_deg": {"property": "heading"},
        "trip": {"value": "daily"},
    },
}


def read(body, properties=(), **changes):
    route = MqttRoute.model_validate(ROUTE | changes)
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    (part,) = JsonReader(route, schemas().events).read(
        Message("vehicles/v7/telemetry", payload, properties=tuple(properties))
    )
    return part.rows


def test_values_come_from_topic_properties_and_fields_within_fields():
    body = {
        "at": 1_790_000_000_123,
        "where": {"code": "DE"},
        "motion": {"speed": 36, "else": 1},
        "other": [1],
    }
    (row,) = read(body, [("device", "box-1"), ("heading", "90.5"), ("x", "1"), ("x", "2")], **MAPPED)
    assert row == {
        "vin": "v7", "speed_m_s": 10.0, "heading_deg": 90.5, "trip": "daily", "source": "box-1",
        "jurisdiction": "DE", "event_time": 1_790_000_000_123_000,
    }  # fmt: skip


def test_what_is_absent_is_null_and_what_has_another_shape_too():
    (row,) = read({"at": 1, "where": "x", "motion": [1]}, **MAPPED)
    assert (row["source"], row["jurisdiction"], row["speed_m_s"], row["heading_deg"]) == (None,) * 4


@pytest.mark.parametrize(
    ("way", "value", "micros"),
    [
        ({"field": "t", "scale": "s"}, 1_790_000_000.5, 1_790_000_000_500_000),
        ({"field": "t", "scale": "us"}, 1_790_000_000_000_001, 1_790_000_000_000_001),
        ({"field": "t", "scale": "ms"}, "1790000000123", 1_790_000_000_123_000),
        ({"field": "t"}, "2026-09-21T12:26:40.5+02:00", 1_789_986_400_500_000),
        ({"property": "t", "scale": "s"}, None, 5_000_000),
    ],
)
def test_times_in_every_scale(way, value, micros):
    (row,) = read({"t": value, "vin": "v"} if value else {"vin": "v"}, [("t", "5")], event_time=way)
    assert row["event_time"] == micros


def test_a_device_without_a_clock_gets_the_moment_of_arrival():
    before = time.time_ns() // 1000
    (row,) = read({"vin": "v"}, event_time={"arrival": True})
    assert before <= row["event_time"] <= time.time_ns() // 1000


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ([{}] * (ROWS_MAX + 1), "oversize"),
        ([{"event_time": 1}, 7], "type"),
        ({"event_time": 1, "source": "x"}, "field_unknown"),
        ({"event_time": True}, "type"),
        ({}, "field_missing"),
        (b'{"event_time": 1e400}', "range"),
        (b'{"event_time": Infinity}', "undecodable"),
        (b"\xc3\x28", "undecodable"),
    ],
)
def test_what_is_no_row_is_refused(body, reason):
    with pytest.raises(RecordError) as caught:
        read(body)
    assert str(caught.value.reason) == reason


def test_a_property_that_is_asked_for_occurs_once_and_numbers_are_numbers():
    body = {"at": 1, "where": {"code": "DE"}}
    for properties in ([("device", "a"), ("device", "b")], [("heading", "x")], [("heading", "1" * 65)]):
        with pytest.raises(RecordError) as caught:
            read(body, properties, **MAPPED)
        assert str(caught.value.reason) == "type"
    with pytest.raises(RecordError):
        read(b'{"at": 1, "motion": {"speed": 1' + b"0" * 400 + b"}}", **MAPPED)
