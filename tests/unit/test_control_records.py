"""Control records: every field written, none ignored, times as µs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codec import decode_control, encode_control, frame
from pipeline.errors import ConfigError, RecordError
from pipeline.reasons import Reason
from pipeline.schemas import SchemaStore
from tests.unit.schema_samples import NOW_US, SCHEMAS

STORE = SchemaStore.load(SCHEMAS)
STATS = {
    "raw_topic": "eu.raw.meter_reading", "raw_topic_id": "AAAA", "raw_partition": 3,
    "first_offset": 2**40, "next_offset": 2**40 + 10, "event": "meter_reading", "region": "eu",
    "policy_hash": "0f", "processed_time": NOW_US,
    "counts": [
        {"outcome": "passed", "reason": "", "count": 9},
        {"outcome": "repeat", "reason": "seen", "count": 1},
    ],
    "runs": [{"first": 2**40, "next": 2**40 + 1, "outcome": "repeat", "reason": "seen"}],
    "foreign": [{"first": 2**40 + 2, "next": 2**40 + 4}],
    "waited_us": 2**40,
}  # fmt: skip


def test_a_record_comes_back_with_times_as_they_were() -> None:
    value = encode_control(STORE, "stats", STATS)
    assert value[:5] == frame(STORE.latest("control.stats").id)
    assert decode_control(STORE, value) == ("stats", STATS)


def test_times_beyond_the_calendar_come_back_too() -> None:
    far = STATS | {"processed_time": 2**62}
    assert decode_control(STORE, encode_control(STORE, "stats", far))[1] == far


@pytest.mark.parametrize(
    "record",
    [
        {k: v for k, v in STATS.items() if k != "runs"},
        STATS | {"extra": 1},
        STATS | {"first_offset": "SECRET"},
        STATS | {"first_offset": None},
        STATS | {"counts": [{"outcome": "passed"}]},
        STATS | {"raw_partition": 2**40},
    ],
)
def test_a_record_that_does_not_fit_is_refused_without_quoting_it(record: dict) -> None:
    with pytest.raises(ConfigError) as caught:
        encode_control(STORE, "stats", record)
    assert "SECRET" not in str(caught.value)
    assert "control.stats" in str(caught.value)


def test_what_is_no_control_record_is_refused() -> None:
    good = encode_control(STORE, "stats", STATS)
    event_id = STORE.events["meter_reading"].schema_id
    for value, reason in (
        (b"", Reason.FRAMING),
        (b"\1\0\0\0\1", Reason.FRAMING),
        (frame(2**31) + good[5:], Reason.UNKNOWN_SCHEMA),
        (frame(event_id) + good[5:], Reason.UNKNOWN_SCHEMA),
        (good[:-1], Reason.UNDECODABLE),
        (good + b"\0", Reason.UNDECODABLE),
    ):
        with pytest.raises(RecordError) as caught:
            decode_control(STORE, value)
        assert caught.value.reason == reason


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=60), name=st.sampled_from(["stats", "quarantine", "edge_ledger"]))
def test_random_bytes_are_a_record_or_refused(body: bytes, name: str) -> None:
    try:
        found, record = decode_control(STORE, frame(STORE.latest(f"control.{name}").id) + body)
    except RecordError:
        return
    assert found == name
    assert decode_control(STORE, encode_control(STORE, name, record)) == (name, record)
