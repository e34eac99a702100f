"""The checks of a batch, and of one event at the edge's door: the same rules, told per row and per caller."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.checks import Checks, Findings, Reason, validate_one
from pipeline.config import LimitsConfig
from pipeline.errors import RecordError
from pipeline.reasons import MICROS, TIMESTAMP_MAX_US
from pipeline.schemas import SchemaStore
from tests.unit.schema_samples import (
    NOW_US,
    SCHEMAS,
    event,
    event_schema,
    every_type,
    random_batch,
    tagged,
)

STORE = SchemaStore.load(SCHEMAS)
TELEMETRY = STORE.events["vehicle_telemetry"]
METER = STORE.events["meter_reading"]
EVERY = event(every_type())
HERE = frozenset({"DE", "FR"})
KNOWN = HERE | {"BR"}


def checks(of=TELEMETRY, limits: LimitsConfig | None = None) -> Checks:
    return Checks(of, limits or LimitsConfig(), HERE, KNOWN)


def with_column(batch: pa.RecordBatch, name: str, values: list[Any]) -> pa.RecordBatch:
    index = batch.schema.get_field_index(name)
    field = batch.schema.field(index)
    return batch.set_column(index, field, pa.array(values, field.type))


def found(findings: Findings) -> dict[tuple[str, str], list[int]]:
    return {(str(reason), field): rows.tolist() for (reason, field), rows in findings.failed().items()}


# -- batches


@pytest.mark.parametrize("name", sorted(STORE.events))
def test_plausible_rows_pass(name: str) -> None:
    batch = random_batch(STORE.events[name], 300, seed=3)
    findings = checks(STORE.events[name]).run(batch, NOW_US)
    assert findings.all_good
    assert findings.codes.dtype == np.int16
    assert (findings.codes == -1).all()
    assert findings.reasons == []


def test_no_rows_no_findings() -> None:
    findings = checks().run(random_batch(TELEMETRY, 0, 1), NOW_US)
    assert findings.all_good
    assert len(findings.codes) == 0


def test_bounds_are_inclusive_and_nulls_pass() -> None:
    batch = with_column(random_batch(TELEMETRY, 6, 1), "latitude", [90.0, -90.0, None, 90.1, -90.1, None])
    assert found(checks().run(batch, NOW_US)) == {("range", "latitude"): [3, 4]}
    batch = with_column(random_batch(TELEMETRY, 3, 1), "latitude", [None] * 3)
    assert checks().run(batch, NOW_US).all_good


def test_what_is_not_finite_has_its_own_reason() -> None:
    values = [math.nan, math.inf, -math.inf, 1.0, None, 1e9]
    batch = with_column(random_batch(TELEMETRY, 6, 1), "speed_m_s", values)
    assert found(checks().run(batch, NOW_US)) == {
        ("not_finite", "speed_m_s"): [0, 1, 2],
        ("range", "speed_m_s"): [5],
    }


def test_infinity_in_a_field_without_bounds_is_seen() -> None:
    batch = with_column(random_batch(EVERY, 3, 1), "real", [math.inf, 1e300, None])
    assert found(checks(EVERY).run(batch, NOW_US)) == {("not_finite", "real"): [0]}
    huge = with_column(random_batch(EVERY, 3, 1), "real", [1.7e308, 1.7e308, 1.0])
    assert checks(EVERY).run(huge, NOW_US).all_good


def test_times_are_bounded_by_the_clock_given() -> None:
    limits = LimitsConfig(event_future_max_s=10, event_age_max_s=60)
    offsets_s = [10, 11, -60, -61, 0]
    times = [NOW_US + s * MICROS for s in offsets_s]
    batch = with_column(random_batch(TELEMETRY, 5, 1), "event_time", times)
    assert found(checks(limits=limits).run(batch, NOW_US)) == {
        ("time_future", "event_time"): [1],
        ("time_ancient", "event_time"): [3],
    }


def test_times_at_the_ends_of_64_bits_do_not_wrap() -> None:
    batch = with_column(random_batch(TELEMETRY, 3, 1), "event_time", [2**63 - 1, -(2**63), NOW_US])
    assert found(checks().run(batch, NOW_US)) == {
        ("time_future", "event_time"): [0],
        ("time_ancient", "event_time"): [1],
    }
    batch = with_column(random_batch(TELEMETRY, 2, 1), "received_time", [2**62, TIMESTAMP_MAX_US])
    assert found(checks().run(batch, NOW_US)) == {("range", "received_time"): [0]}


def test_a_jurisdiction_is_missing_unknown_or_elsewhere() -> None:
    batch = with_column(random_batch(TELEMETRY, 5, 1), "jurisdiction", ["DE", "", "XX", "BR", "FR"])
    assert found(checks().run(batch, NOW_US)) == {
        ("jurisdiction_missing", "jurisdiction"): [1],
        ("jurisdiction_unknown", "jurisdiction"): [2],
        ("jurisdiction_elsewhere", "jurisdiction"): [3],
    }


def test_an_empty_source_and_a_negative_sequence_are_refused() -> None:
    batch = with_column(random_batch(TELEMETRY, 3, 1), "source", ["", "a", "b"])
    batch = with_column(batch, "sequence", [1, -1, 0])
    batch = with_column(batch, "lane", [0, 0, 256])
    assert found(checks().run(batch, NOW_US)) == {
        ("range", "source"): [0],
        ("range", "sequence"): [1],
        ("range", "lane"): [2],
    }


def test_the_first_failing_check_wins() -> None:
    batch = random_batch(TELEMETRY, 2, 1)
    batch = with_column(batch, "latitude", [math.nan, 1.0])
    batch = with_column(batch, "jurisdiction", ["BR", "DE"])
    batch = with_column(batch, "fuel_percent", [101.0, 101.0])
    assert found(checks().run(batch, NOW_US)) == {
        ("jurisdiction_elsewhere", "jurisdiction"): [0],
        ("range", "fuel_percent"): [1],
    }


def test_nulls_where_the_schema_has_none_are_found() -> None:
    batch = with_column(random_batch(TELEMETRY, 3, 1), "vin", ["a", None, "b"])
    batch = with_column(batch, "event_time", [None, NOW_US, NOW_US])
    assert found(checks().run(batch, NOW_US)) == {
        ("field_missing", "event_time"): [0],
        ("field_missing", "vin"): [1],
    }
    for name in ("event_time", "received_time", "spool", "lane", "source"):
        whole = with_column(random_batch(TELEMETRY, 2, 1), name, [None, None])
        assert found(checks().run(whole, NOW_US)) == {("field_missing", name): [0, 1]}
    empty = with_column(random_batch(TELEMETRY, 1, 1), "jurisdiction", [None])
    assert found(checks().run(empty, NOW_US)) == {("jurisdiction_missing", "jurisdiction"): [0]}


def test_unknown_symbols_are_refused() -> None:
    batch = with_column(random_batch(METER, 2, 1), "tariff", ["peak", "free"])
    assert found(checks(METER).run(batch, NOW_US)) == {("range", "tariff"): [1]}


def test_values_inside_lists_and_records_are_checked_row_by_row() -> None:
    batch = random_batch(EVERY, 5, 1)
    point = {"x": 0.5, "note": None}
    rows = [
        [point],
        [],
        [point, {"x": 2.0, "note": None}],
        [{"x": math.nan, "note": "n"}],
        [{"x": None, "note": ""}],
    ]
    batch = with_column(batch, "points", rows)
    expected = {
        ("range", "points.x"): [2],
        ("not_finite", "points.x"): [3],
        ("field_missing", "points.x"): [4],
    }
    assert found(checks(EVERY).run(batch, NOW_US)) == expected
    sliced = checks(EVERY).run(batch.slice(2, 2), NOW_US)
    assert found(sliced) == {("range", "points.x"): [0], ("not_finite", "points.x"): [1]}


def test_bounds_of_a_list_speak_of_its_items() -> None:
    numbers = tagged("numbers", ["null", {"type": "array", "items": ["null", "long"]}], unit="1", minimum=0)
    of = event(event_schema(numbers))
    batch = with_column(random_batch(of, 4, 1), "numbers", [[1, None], None, [0, -1], []])
    assert found(checks(of).run(batch, NOW_US)) == {("range", "numbers"): [2]}


# -- one event


def fields(**changed: Any) -> dict[str, Any]:
    return {"vin": "WVWZZZ1JZXW000001", "latitude": 48.1, "longitude": 11.6, "speed_m_s": 12.5} | changed


def refused(of, given_fields: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(RecordError) as caught:
        validate_one(of, given_fields)
    return str(caught.value.reason), caught.value.field


def test_a_good_event_comes_back_whole_typed_and_in_schema_order() -> None:
    values = validate_one(TELEMETRY, fields(speed_m_s=12, fuel_percent=None))
    assert list(values) == [f.name for f in TELEMETRY.own_fields]
    assert values["speed_m_s"] == 12.0
    assert type(values["speed_m_s"]) is float
    assert values["driver"] is None
    assert values["fuel_percent"] is None


@pytest.mark.parametrize(
    ("changed", "reason", "field"),
    [
        ({"vin": None}, "field_missing", "vin"),
        ({"vin": 5}, "type", "vin"),
        ({"vin": b"bytes"}, "type", "vin"),
        ({"vin": "\ud800"}, "utf8", "vin"),
        ({"latitude": 90.5}, "range", "latitude"),
        ({"latitude": math.nan}, "not_finite", "latitude"),
        ({"latitude": math.inf}, "not_finite", "latitude"),
        ({"latitude": "48.1"}, "type", "latitude"),
        ({"latitude": True}, "type", "latitude"),
        ({"latitude": 10**400}, "range", "latitude"),
        ({"latitude": [1.0]}, "type", "latitude"),
        ({"fault_code": 1}, "type", "fault_code"),
    ],
)
def test_a_bad_event_is_refused_with_reason_and_field(
    changed: dict[str, Any], reason: str, field: str
) -> None:
    assert refused(TELEMETRY, fields(**changed)) == (reason, field)


def test_integers_take_no_booleans_no_fractions_and_no_overflow() -> None:
    machine = STORE.events["machine_reading"]
    assert validate_one(machine, {"machine": "m", "cycle": np.int64(5)})["cycle"] == 5
    assert type(validate_one(machine, {"machine": "m", "cycle": np.int32(5)})["cycle"]) is int
    for value, reason in (
        (True, "type"),
        (1.0, "type"),
        (np.bool_(True), "type"),
        (2**31, "range"),
        (-1, "range"),
    ):
        assert refused(machine, {"machine": "m", "cycle": value}) == (reason, "cycle")
    of = event(event_schema(tagged("big", "long", unit="1")))
    assert validate_one(of, {"big": 2**63 - 1}) == {"big": 2**63 - 1}
    assert refused(of, {"big": 2**63}) == ("range", "big")


def test_numpy_numbers_and_booleans_count_as_what_they_hold() -> None:
    values = validate_one(TELEMETRY, fields(speed_m_s=np.float32(1.5), heading_deg=np.int16(3)))
    assert (values["speed_m_s"], values["heading_deg"]) == (1.5, 3.0)
    assert type(values["heading_deg"]) is float
    output = STORE.events["inference_output"]
    base = {"model": "m", "release": "1", "subject": "s", "target": "t"}
    assert validate_one(output, base | {"acted": np.bool_(True)})["acted"] is True
    assert refused(output, base | {"acted": 1}) == ("type", "acted")


def test_an_unknown_field_is_refused_and_its_name_is_not_repeated() -> None:
    with pytest.raises(RecordError) as caught:
        validate_one(TELEMETRY, fields(**{"Erika Mustermann": 1}))
    assert caught.value.reason == Reason.FIELD_UNKNOWN
    assert "Erika" not in str(caught.value)
    assert "fuel_percent" in str(caught.value)  # what is known instead


def test_the_envelope_is_not_the_producers_to_set() -> None:
    assert refused(TELEMETRY, fields(sequence=1))[0] == "field_unknown"


@settings(max_examples=100, deadline=None)
@given(value=st.one_of(st.text(min_size=6), st.integers(10**6), st.binary(min_size=6)))
def test_messages_never_hold_the_value(value: Any) -> None:
    with pytest.raises(RecordError) as caught:
        validate_one(METER, {"meter": "m", "tariff": value, "energy_kwh": value})
    assert str(value) not in str(caught.value)


def test_moments_are_ints_or_datetimes_with_a_zone() -> None:
    of = event(event_schema(tagged("moment", {"type": "long", "logicalType": "timestamp-micros"})))
    for value in (
        NOW_US,
        datetime.fromtimestamp(NOW_US / MICROS, UTC),
        datetime.fromtimestamp(NOW_US / MICROS, timezone(timedelta(hours=5))),
    ):
        assert validate_one(of, {"moment": value}) == {"moment": NOW_US}
    precise = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    assert validate_one(of, {"moment": precise})["moment"] % MICROS == 678901
    assert refused(of, {"moment": datetime(2026, 1, 1)}) == ("type", "moment")
    assert refused(of, {"moment": 1.5}) == ("type", "moment")
    assert refused(of, {"moment": True}) == ("type", "moment")
    assert refused(of, {"moment": 2**62}) == ("range", "moment")


def test_lists_and_records_are_checked_inside() -> None:
    base = random_batch(EVERY, 1, 2).to_pylist()[0]
    own = {f.name: base[f.name] for f in EVERY.own_fields} | {
        "moment": None,
        "millis": NOW_US // 1000,
        "day": 9,
    }
    assert validate_one(EVERY, own | {"points": [{"x": 1}]})["points"] == [{"x": 1.0, "note": None}]
    for changed, reason, field in (
        ({"words": "abc"}, "type", "words"),
        ({"words": ["a", None]}, "field_missing", "words"),
        ({"words": [1]}, "type", "words"),
        ({"points": [{"x": 2.0}]}, "range", "points.x"),
        ({"points": [{"note": "n"}]}, "field_missing", "points.x"),
        ({"points": [5]}, "type", "points"),
        ({"kind": "GREY"}, "range", "kind"),
        ({"single": 1e300}, "range", "single"),
    ):
        assert refused(EVERY, own | changed) == (reason, field)
    assert refused(EVERY, own | {"points": [{"x": 1.0, "secret": 1}]})[0] == "field_unknown"


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(["latitude", "speed_m_s", "fuel_percent", "battery_v"]),
    value=st.one_of(st.none(), st.floats(), st.floats(-1000, 1000), st.integers(-(10**6), 10**6)),
)
def test_the_door_and_the_batch_agree(name: str, value: Any) -> None:
    batch = with_column(random_batch(TELEMETRY, 1, 1), name, [value if value is None else float(value)])
    batch_says = {reason for reason, _ in found(checks().run(batch, NOW_US))}
    try:
        validate_one(TELEMETRY, fields(**{name: value}))
        door_says = set()
    except RecordError as error:
        door_says = {str(error.reason)}
    assert door_says == batch_says
