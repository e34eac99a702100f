"""CloudEvents in all three modes become our events, or a refusal that names the attribute."""

from __future__ import annotations

import json
import re
from email.parser import Parser

import pytest

from connectors.cloudevents import BATCH, STRUCTURED, Unsupported, parse
from pipeline.errors import RecordError
from tests.shared_data import shared_data

GOOD = {
    "specversion": "1.0",
    "id": "1",
    "source": "vehicle-1",
    "type": "vehicle_telemetry",
    "time": "2026-01-01T00:00:00.000001Z",
    "jurisdiction": "DE",
    "data": {"vin": "V"},
}
SECRET = "value-that-must-not-be-told"


def structured(**changes):
    event = {name: value for name, value in (GOOD | changes).items() if value is not ...}
    return parse(STRUCTURED, [], json.dumps(event).encode())


def test_the_three_modes_say_the_same():
    (first,) = structured()
    assert (first.event, first.source, first.jurisdiction) == ("vehicle_telemetry", "vehicle-1", "DE")
    assert first.fields == {"vin": "V"}
    assert first.event_time == 1_767_225_600_000_001
    headers = [(f"Ce-{name.title()}", value) for name, value in GOOD.items() if name != "data"]
    assert parse("application/json; charset=UTF-8", headers, b'{"vin": "V"}') == [first]
    body = json.dumps([GOOD, GOOD]).encode()
    assert parse(BATCH, [], body) == [first, first]
    assert parse(f"{STRUCTURED}; charset=utf-8", [], json.dumps(GOOD).encode()) == [first]


def test_header_values_are_percent_decoded():
    headers = [(f"ce-{name}", value) for name, value in GOOD.items() if name != "data"]
    headers = [(n, "caf%C3%A9 %E2%82%AC" if n == "ce-source" else v) for n, v in headers]
    assert parse("application/json", headers, b"{}")[0].source == "café €"
    broken = [(n, "%FF" if n == "ce-source" else v) for n, v in headers]
    with pytest.raises(RecordError) as caught:
        parse("application/json", broken, b"{}")
    assert caught.value.reason == "utf8"


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:00z", 0),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01T00:00:00.5-00:30", 1_800_500_000),
        ("1970-01-01T00:00:00.123456789Z", 123_456),
        ("2018-04-05T03:56:24Z", 1_522_900_584_000_000),
    ],
)
def test_times(text, micros):
    assert structured(time=text)[0].event_time == micros


@pytest.mark.parametrize(
    "text",
    ["2026-01-01T00:00:00", "2026-01-01", "now", "2026-01-01 00:00:00Z", "2026-W01-1T00:00:00Z", 0, "", True],
)
def test_times_without_an_offset_or_in_other_forms_are_refused(text):
    with pytest.raises(RecordError) as caught:
        structured(time=text)
    assert (caught.value.field, caught.value.reason) == ("time", "type")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("specversion", "0.3", "range"),
        ("specversion", ..., "range"),
        ("id", ..., "field_missing"),
        ("id", "", "field_missing"),
        ("source", 5, "field_missing"),
        ("type", None, "field_missing"),
        ("time", ..., "field_missing"),
        ("time", "2026-13-01T00:00:00Z", "range"),
        ("data", ..., "type"),
        ("data", [SECRET], "type"),
        ("data_base64", "eA==", "type"),
        ("datacontenttype", "application/xml", "type"),
        ("dataclassification", "restricted", "field_unknown"),
        ("dataregulation", SECRET, "field_unknown"),
    ],
)
def test_what_is_wrong_is_named_and_its_value_is_not(field, value, reason):
    with pytest.raises(RecordError) as caught:
        structured(**{field: value})
    assert (caught.value.field, caught.value.reason) == (field, reason)
    assert SECRET not in str(caught.value)


def test_a_bad_event_in_a_batch_is_named_by_its_row():
    with pytest.raises(RecordError, match="row 2"):
        parse(BATCH, [], json.dumps([GOOD, GOOD, GOOD | {"id": ""}]).encode())


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": NaN}', b"9" * 10_000, b'{"specversion": Infinity}', b"null"],
)
def test_hostile_bodies_are_refused(body):
    for content_type in (STRUCTURED, BATCH):
        with pytest.raises(RecordError):
            parse(content_type, [], body)


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "application/json", "a/xml", f"{STRUCTURED}; charset=latin-1", "multipart/x"],
)
def test_other_content_types_are_unsupported(content_type):
    with pytest.raises(Unsupported):
        parse(content_type, [], json.dumps(GOOD).encode())


def test_the_data_may_not_pose_as_the_envelope():
    (event,) = structured(data={"source": "other"})
    with pytest.raises(RecordError, match="repeated"):
        event.row()


def test_the_specifications_own_examples():
    """The requests of the conformance suite; it has no jurisdiction, which the edge client will ask for."""
    text = shared_data("vectors", "cloudevents", "features", "http-protocol-binding.feature").read_text()
    scenarios = text.split("Scenario Outline:")[1:]
    assert len(scenarios) == 2
    for scenario in scenarios:
        request = re.search(r'"""\n(.*?)"""', scenario, re.DOTALL)[1]
        request = "\n".join(line.strip() for line in request.splitlines())
        for content_type in re.findall(r"\| (application/\S+.*?) +\|", scenario.split("Examples:")[1]):
            head, _, body = request.replace("<contentType>", content_type).partition("\n\n")
            headers = Parser().parsestr(head.partition("\n")[2])
            (event,) = parse(headers["Content-Type"], headers.items(), body.encode())
            assert event.event == "com.example.someevent"
            assert event.source == "/mycontext/subcontext"
            assert event.event_time == 1_522_900_584_000_000
            assert event.fields == {"message": "Hello World!"}
