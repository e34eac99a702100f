"""Replay: all rows of a file become events in their order, or are counted with row number and field."""

from __future__ import annotations

import csv
import gzip
import json
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.replay import Replay, replay
from pipeline.errors import ConfigError, RecordError
from pipeline.events import EventType
from pipeline.mapping import Mapping, find_mapping, load_mapping
from pipeline.pacing import Clock, pace, parse_speed
from pipeline.schemas import source_schemas
from pipeline.units import UNITS, conversion
from tests.shared_data import PROJECT, shared_data

SCHEMAS = PROJECT / "schemas"
SECRET = "s3cret-value"


@pytest.fixture(scope="module")
def events() -> dict[str, EventType]:
    schemas = source_schemas(SCHEMAS).items()
    return {name: EventType(name, 1, 1, schema) for name, schema in schemas if "." not in name}


def machine_mapping(**changes) -> Mapping:
    plain = {
        "event": "machine_reading",
        "source": "m-{id}",
        "event_time": {"from": "at"},
        "fields": {"machine": "id", "cycle": "n", "sensor_1": "v"},
    }
    return Mapping.model_validate({**plain, **changes})


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def rows_of(replayed) -> list[dict]:
    return [row for batch in replayed for row in batch.to_pylist()]


# --- the real files -------------------------------------------------------------------------------------


def test_every_row_of_the_nab_machine_arrives_in_order_though_its_clock_steps_back(events):
    path = shared_data("nab", "realKnownCause", "machine_temperature_system_failure.csv")
    with path.open() as file:
        expected = [(row["timestamp"], float(row["value"])) for row in csv.DictReader(file)]
    mapping = find_mapping("nab_machine_temperature", SCHEMAS)
    table = pa.Table.from_batches(replay(path, events["machine_reading"], "DE", mapping))
    times = [t.isoformat(" ") for t in table.column("event_time").to_pylist()]
    assert len(table) == 22_695
    assert times == [timestamp for timestamp, _ in expected]
    assert sum(later < earlier for earlier, later in pairwise(times)) >= 1
    assert len(times) - len(set(times)) == 12
    celsius = [(value - 32) * 5 / 9 for _, value in expected]
    assert table.column("sensor_1").to_pylist() == pytest.approx(celsius, abs=1e-9)


@pytest.mark.parametrize(("name", "rows"), [("train_FD001", 20_631), ("train_FD004", 61_249)])
def test_a_turbofan_file_without_header_becomes_readings_of_every_channel(events, name, rows):
    path = shared_data("cmapss", f"{name}.txt.gz")
    batches = replay(path, events["machine_reading"], "DE", find_mapping("cmapss", SCHEMAS))
    table = pa.Table.from_batches(batches)
    expected = np.loadtxt(path)
    assert len(table) == rows
    for column, name in enumerate(["cycle", "setting_1", "setting_2", "setting_3"], 1):
        np.testing.assert_array_equal(table.column(name).to_numpy(), expected[:, column])
    for sensor in range(1, 22):
        np.testing.assert_array_equal(table.column(f"sensor_{sensor}").to_numpy(), expected[:, 4 + sensor])
    first = table.slice(0, 1).to_pylist()[0]
    assert (first["source"], first["machine"]) == ("turbofan-1", "turbofan-1")
    assert first["event_time"] == datetime(2026, 1, 1, 0, 1)


def test_ways_through_aracaju_are_read_in_local_time(events):
    path = shared_data("go_track", "go_track_trackspoints.csv")
    table = pa.Table.from_batches(
        replay(path, events["vehicle_telemetry"], mapping=find_mapping("go_track", SCHEMAS))
    )
    first = table.slice(0, 1).to_pylist()[0]
    assert len(table) == 18_107
    assert first["event_time"] == datetime(2014, 9, 13, 10, 24, 32)  # 07:24:32 there
    assert set(table.column("jurisdiction").to_pylist()) == {"BR-SE"}
    assert table.column("latitude").null_count == 0


def test_both_clocks_of_the_car_fall_into_the_same_minute(events, tmp_path):
    log = shared_data("comma2k19", "processed_log")
    speed = np.column_stack([np.load(log / "CAN/speed/t"), np.load(log / "CAN/speed/value")[:, 0]])
    names = "latitude,longitude,speed,utc_timestamp,altitude,bearing"
    gnss = np.load(log / "GNSS/live_gnss_ublox/value")
    np.savetxt(tmp_path / "speed.csv", speed, "%.17g", ",", header="t,speed", comments="")
    np.savetxt(tmp_path / "gnss.csv", gnss, "%.17g", ",", header=names, comments="")
    event = events["vehicle_telemetry"]
    bus = pa.Table.from_batches(
        replay(tmp_path / "speed.csv", event, None, find_mapping("comma2k19_speed", SCHEMAS))
    )
    fixes = pa.Table.from_batches(
        replay(tmp_path / "gnss.csv", event, None, find_mapping("comma2k19_gnss", SCHEMAS))
    )
    np.testing.assert_array_equal(bus.column("speed_m_s").to_numpy(), speed[:, 1])
    np.testing.assert_array_equal(fixes.column("latitude").to_numpy(), gnss[:, 0])
    starts = [table.column("event_time")[0].as_py() for table in (bus, fixes)]
    assert abs((starts[0] - starts[1]).total_seconds()) < 1
    assert starts[0].year == 2018


# --- formats --------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**8),
            st.floats(allow_nan=False, allow_infinity=False),
            st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_csv_parquet_and_json_lines_give_the_same_events(tmp_path_factory, rows):
    schema = source_schemas(SCHEMAS)["machine_reading"]
    event = EventType("machine_reading", 1, 1, schema)
    folder = tmp_path_factory.mktemp("formats")
    named = [{"id": f"a{n % 3}", "n": n, "v": v, "at": t} for n, v, t in rows]
    text = [{**row, "at": row["at"].isoformat()} for row in named]
    with (folder / "f.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "n", "v", "at"])
        writer.writeheader()
        writer.writerows(text)
    (folder / "f.jsonl").write_text("\n".join(map(json.dumps, text)))
    pq.write_table(pa.Table.from_pylist(named), folder / "f.parquet")
    found = [rows_of(replay(folder / f"f.{kind}", event, "DE", machine_mapping())) for kind in
             ("csv", "jsonl", "parquet")]  # fmt: skip
    assert found[0] == found[1] == found[2]
    assert [(row["cycle"], row["sensor_1"], row["event_time"]) for row in found[0]] == rows


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blanks_between_numbers_may_be_any_many_and_at_both_ends(events, tmp_path, end):
    text = end.join(["  1 \t 2   3.5 ", "", "\t1 3  4.5", "2 1 5.5"])
    reading = {"format": "csv", "delimiter": "whitespace", "columns": ["id", "n", "v"]}
    clock = {"start": "2026-01-01T00:00:00Z", "step_s": 0.5}
    mapping = machine_mapping(read=reading, event_time=clock)
    rows = rows_of(replay(written(tmp_path / "f.txt", text), events["machine_reading"], "DE", mapping))
    assert [(r["machine"], r["cycle"], r["sensor_1"]) for r in rows] == [
        ("1", 2, 3.5), ("1", 3, 4.5), ("2", 1, 5.5)]  # fmt: skip
    assert [r["event_time"].microsecond for r in rows] == [0, 500_000, 0]


def test_a_file_in_the_events_own_names_needs_no_mapping(events, tmp_path):
    text = "source,event_time,jurisdiction,machine,sensor_2,other\ns1,2026-03-01T00:00:00Z,DE,m1,2.5,x\n"
    (row,) = rows_of(replay(written(tmp_path / "f.csv", text), events["machine_reading"]))
    assert (row["source"], row["jurisdiction"], row["sensor_2"]) == ("s1", "DE", 2.5)
    assert list(row) == [
        name for name in events["machine_reading"].arrow.names
        if name not in ("spool", "lane", "sequence", "received_time")
    ]  # fmt: skip


def test_memory_stays_at_a_few_blocks_however_long_the_file(events, tmp_path):
    lines = "".join(f"a,{n},{n}.5,2026-01-01T00:00:00Z\n" for n in range(10_000))
    path = tmp_path / "long.csv.gz"
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write("id,n,v,at\n")
        for _ in range(60):
            file.write(lines)
    peak = rows = 0
    before = pa.total_allocated_bytes()
    for batch in replay(path, events["machine_reading"], "DE", machine_mapping()):
        rows += len(batch)
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert rows == 600_000
    assert peak < 48 << 20, f"{peak >> 20} MiB held for a file of {60 * len(lines) >> 20} MiB"


# --- values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "to", "value", "expected"),
    [
        ("degF", "Cel", 212.0, 100.0), ("K", "Cel", 273.15, 0.0), ("km/h", "m/s", 36.0, 10.0),
        ("mph", "km/h", 1.0, 1.609344), ("[psi]", "kPa", 14.5, 99.973980), ("ft", "m", 1.0, 0.3048),
        ("mi", "km", 1.0, 1.609344), ("Hz", "1/min", 50.0, 3000.0), ("[degR]", "K", 491.67, 273.15),
    ],
)  # fmt: skip
def test_units_convert(unit, to, value, expected):
    step = conversion(unit, to)
    assert value * step.factor + step.offset == pytest.approx(expected, abs=1e-6)


@given(st.data(), st.floats(-1e6, 1e6))
def test_a_unit_there_and_back_is_where_it_was(data, value):
    units = data.draw(st.sampled_from([list(group) for group in UNITS.values()]))
    here, there = data.draw(st.sampled_from(units)), data.draw(st.sampled_from(units))
    out, back = conversion(here, there), conversion(there, here)
    assert (value * out.factor + out.offset) * back.factor + back.offset == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    ("clock", "text", "expected"),
    [
        ({}, "2026-07-01T12:00:00.123456Z", datetime(2026, 7, 1, 12, 0, 0, 123456)),
        ({}, "2026-07-01 12:00:00+02:00", datetime(2026, 7, 1, 10)),
        ({}, "2026-07-01T12:00:00.123456789", datetime(2026, 7, 1, 12, 0, 0, 123456)),
        ({"timezone": "Europe/Berlin"}, "2026-07-01 12:00", datetime(2026, 7, 1, 10)),
        ({"timezone": "Europe/Berlin"}, "2026-10-25 02:30:00", datetime(2026, 10, 25, 0, 30)),  # twice there
        ({"format": "%d.%m.%Y %H:%M"}, "01.07.2026 12:00", datetime(2026, 7, 1, 12)),
        ({"unit": "s"}, "1533226490.25", datetime(2018, 8, 2, 16, 14, 50, 250_000)),
        ({"unit": "ms"}, "1533226490250", datetime(2018, 8, 2, 16, 14, 50, 250_000)),
        ({"unit": "us"}, "1533226490250001", datetime(2018, 8, 2, 16, 14, 50, 250_001)),
        ({"unit": "ns"}, "1533226490250001999", datetime(2018, 8, 2, 16, 14, 50, 250_001)),
        ({"unit": "s"}, "-1", datetime(1969, 12, 31, 23, 59, 59)),
    ],
)
def test_clocks_are_read_into_utc(events, tmp_path, clock, text, expected):
    path = written(tmp_path / "f.csv", f"id,n,v,at\na,1,1,{text}\n")
    mapping = machine_mapping(event_time={"from": "at", **clock})
    (row,) = rows_of(replay(path, events["machine_reading"], "DE", mapping))
    assert row["event_time"] == expected


def test_texts_that_stand_for_nothing_are_null(events, tmp_path):
    path = written(
        tmp_path / "f.csv", "id,n,v,at\na,-,NA,2026-01-01\nb, 7 ,1,2026-01-01\nc,8.0,,2026-01-01\n"
    )
    mapping = machine_mapping(read={"null_values": ["", "NA", "-"]})
    rows = rows_of(replay(path, events["machine_reading"], "DE", mapping))
    assert [(r["cycle"], r["sensor_1"]) for r in rows] == [(None, None), (7, 1.0), (8, None)]


def test_a_channel_lands_in_the_unit_the_mapping_names(events, tmp_path):
    path = written(tmp_path / "f.csv", "id,n,v,at\na,1,212,2026-01-01\n")
    fields = {"machine": {"value": "m"}, "sensor_1": {"from": "v", "unit": "degF", "to": "Cel"}}
    (row,) = rows_of(replay(path, events["machine_reading"], "DE", machine_mapping(fields=fields)))
    assert (row["machine"], row["sensor_1"]) == ("m", pytest.approx(100))


# --- faults ---------------------------------------------------------------------------------------------

BAD = {
    "a number that is none": (f"a,1,{SECRET},2026-01-01", "sensor_1"),
    "a count that is broken": ("a,1.5,1,2026-01-01", "cycle"),
    "a count too large": ("a,99999999999,1,2026-01-01", "cycle"),
    "no time": (f"a,1,1,{SECRET}", "event_time"),
    "a time beyond the calendar": ("a,1,1,99999-01-01", "event_time"),
    "no machine": (",1,1,2026-01-01", "source"),
    "too few columns": ("a,1,1", ""),
    "too many columns": ("a,1,1,2026-01-01,5", ""),
    "bytes that are no text": (b"\xff\xfe,1,1,2026-01-01", "source"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_row_stops_with_its_number_and_field_and_no_value(events, tmp_path, bad):
    line, field = BAD[bad]
    line = line if isinstance(line, bytes) else line.encode()
    good = b"".join(b"a,%d,1,2026-01-01\n" % n for n in range(1, 100))
    path = written(tmp_path / "f.csv", b"id,n,v,at\n" + good + line + b"\n" + good)
    replayed = Replay(path, events["machine_reading"], machine_mapping(), jurisdiction="DE")
    taken: list[int] = []
    with pytest.raises(RecordError) as caught:
        taken.extend(n for batch in replayed for n in batch.column("cycle").to_pylist())
    assert taken == list(range(1, 100))
    assert "row 100" in str(caught.value)
    assert caught.value.field == field
    assert SECRET not in str(caught.value)
    assert (replayed.tally.read, replayed.tally.sent, replayed.tally.skipped) == (100, 99, 1)


def test_skipping_counts_every_bad_row_and_keeps_the_order_of_the_others(events, tmp_path):
    lines = [b"a,%d,1,2026-01-01" % n for n in range(60_000)]
    rng = np.random.default_rng(7)
    bad = list(BAD.values())
    places = sorted(rng.choice(len(lines), 300, replace=False).tolist())
    for i, place in enumerate(places):
        line = bad[i % len(bad)][0]
        lines[place] = line if isinstance(line, bytes) else line.encode()
    path = written(tmp_path / "f.csv", b"id,n,v,at\n" + b"\n".join(lines))
    replayed = Replay(path, events["machine_reading"], machine_mapping(), jurisdiction="DE", on_bad="skip")
    cycles = [n for batch in replayed for n in batch.column("cycle").to_pylist()]
    assert cycles == sorted(set(range(60_000)) - set(places))
    assert (replayed.tally.read, replayed.tally.sent, replayed.tally.skipped) == (60_000, 59_700, 300)
    by_field = {field for field, _ in replayed.tally.bad}
    assert by_field == {field for _, field in bad}


def test_lines_that_are_no_objects_and_values_of_the_wrong_kind_are_counted(events, tmp_path):
    lines = ['{"id":"a","n":1,"v":1,"at":"2026-01-01"}', "[1]",
             '{"id":"a","n":"x","v":1,"at":"2026-01-01"}',
             '{"id":"a","n":2,"v":true,"at":"2026-01-01"}', "{",
             '{"id":"a","n":3,"v":null,"at":"2026-01-01"}',
             '{"id":"a","n":4,"v":{"x":1},"at":"2026-01-01"}']  # fmt: skip
    path = written(tmp_path / "f.jsonl", "\n".join(lines))
    replayed = Replay(path, events["machine_reading"], machine_mapping(), jurisdiction="DE", on_bad="skip")
    assert [row["cycle"] for row in rows_of(replayed)] == [1, 3]
    assert replayed.tally.bad.total() == 5


@pytest.mark.parametrize("part", [0.99, 0.5, 0.1])
def test_a_file_that_breaks_off_gives_its_whole_rows_and_then_an_error(events, tmp_path, part):
    text = b"id,n,v,at\n" + b"".join(b"a,%d,1,2026-01-01\n" % n for n in range(300_000))
    whole = gzip.compress(text, compresslevel=1)
    path = written(tmp_path / "f.csv.gz", whole[: int(len(whole) * part)])
    cycles: list[int] = []
    batches = replay(path, events["machine_reading"], "DE", machine_mapping())
    with pytest.raises(RecordError, match="breaks off"):
        cycles.extend(n for batch in batches for n in batch.column("cycle").to_pylist())
    assert cycles == list(range(len(cycles)))
    assert len(cycles) > 300_000 * (part - 0.09)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"fields": {"machine": "who"}}, "column 'who' is not in the file"),
        ({"fields": {"machine": "id", "colour": "v"}}, "fields.colour: machine_reading has no such field"),
        ({"fields": {"sensor_1": "v"}}, "fields.machine: expected a rule"),
        ({"fields": {"machine": "id", "cycle": {"value": "x"}}}, "fields.cycle: expected int32"),
        ({"fields": {"machine": "id", "sequence": "n"}}, "fields.sequence"),
        ({"fields": {"machine": "id", "sensor_1": {"from": "v", "unit": "degF"}}}, "say which one with to"),
        ({"fields": {"machine": "id", "sensor_1": {"from": "v", "unit": "degF", "to": "m"}}}, "temperature"),
        ({"event": "meter_reading"}, "event: expected machine_reading"),
        ({"source": "{nobody}"}, "column 'nobody' is not in the file"),
    ],
)
def test_a_mapping_that_cannot_work_is_refused_before_the_first_row(events, tmp_path, changes, expected):
    path = written(tmp_path / "f.csv", "id,n,v,at\na,1,1,2026-01-01\n")
    with pytest.raises(ConfigError) as caught:
        Replay(path, events["machine_reading"], machine_mapping(**changes), jurisdiction="DE")
    assert expected in str(caught.value)


def test_all_faults_of_a_mapping_are_told_in_one_go(events, tmp_path):
    path = written(tmp_path / "f.csv", "id,n\na,1\n")
    with pytest.raises(ConfigError) as caught:
        Replay(path, events["machine_reading"], machine_mapping())
    for fault in ("jurisdiction: expected one", "column 'v'", "column 'at'"):
        assert fault in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "event = 1", "= x", 'event = "e"\nsource = "{}"\nevent_time = {from = "t"}',
        'event = "e"\nsource = "s"\nevent_time = {from = "t", format = "%H:%M:%S.%f"}',
        'event = "e"\nsource = "s"\nevent_time = {start = 2026-01-01}',
        'event = "e"\nsource = "s"\nevent_time = {from = "t"}\nfields.a = {from = "x", value = 1}',
        'event = "e"\nsource = "s"\nevent_time = {from = "t", timezone = "Mars/North"}',
    ],
)  # fmt: skip
def test_a_mapping_of_the_wrong_shape_is_a_config_error(tmp_path, text):
    with pytest.raises(ConfigError):
        load_mapping(written(tmp_path / "m.toml", text))


def test_an_unknown_mapping_names_the_shipped_ones():
    with pytest.raises(ConfigError, match="cmapss"):
        find_mapping("nothing", SCHEMAS)


@pytest.mark.parametrize("name", ["absent.csv", "empty.csv", "empty.jsonl", "no.parquet", "what.bin"])
def test_a_file_that_cannot_be_opened_is_a_config_error(events, tmp_path, name):
    path = tmp_path / name
    if "absent" not in name:
        written(path, "" if "empty" in name else "x")
    with pytest.raises(ConfigError):
        Replay(path, events["machine_reading"], machine_mapping(), jurisdiction="DE")


def test_every_shipped_mapping_fits_its_event(events):
    for path in sorted((SCHEMAS / "mappings").glob("*.toml")):
        mapping = load_mapping(path)
        own = {field.name for field in events[mapping.event].own_fields}
        assert set(mapping.fields) <= own, path.name


# --- pace -----------------------------------------------------------------------------------------------


class VirtualTime:
    """A clock that moves only by being waited on."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.clock = Clock(lambda: self.now, self._wait)

    def _wait(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def timed(seconds: list[float]) -> pa.RecordBatch:
    base = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    times = pa.array(np.rint((np.asarray(seconds) + base) * 1e6).astype(np.int64)).cast(pa.timestamp("us"))
    return pa.RecordBatch.from_arrays([times, pa.array(range(len(seconds)))], names=["event_time", "row"])


@pytest.mark.parametrize("speed", [0.5, 1.0, 20.0])
def test_rows_leave_at_recorded_pace_never_early_and_at_most_a_slice_late(speed):
    rng = np.random.default_rng(3)
    seconds = np.cumsum(rng.exponential(0.03, 5_000)).tolist()
    world = VirtualTime()
    left = []
    batches = [timed(seconds[i : i + 700]) for i in range(0, 5_000, 700)]
    for part in pace(batches, speed, world.clock):
        left += [world.now - 1000.0] * len(part)
    due = (np.asarray(seconds) - seconds[0]) / speed
    assert np.all(np.asarray(left) >= due - 1e-6)
    assert np.all(np.asarray(left) <= due + 0.1 / speed + 1e-6)


def test_a_clock_that_steps_back_keeps_every_row_and_waits_for_none_of_them():
    world = VirtualTime()
    seconds = [0, 300, 600, -3000, -2700, 900]
    rows = [
        row for part in pace([timed(seconds)], 1.0, world.clock) for row in part.column("row").to_pylist()
    ]
    assert rows == [0, 1, 2, 3, 4, 5]
    assert world.now == pytest.approx(1900.0)


def test_a_consumer_that_was_slow_catches_up_without_pauses():
    world = VirtualTime()
    parts = pace([timed([0, 1, 2, 3, 10])], 1.0, world.clock)
    next(parts)
    world.now += 5
    for _ in range(3):
        next(parts)
    assert world.now == 1005.0
    next(parts)
    assert world.now == pytest.approx(1010.0)


@pytest.mark.parametrize(("text", "speed"), [("max", None), ("recorded", 1.0), ("8x", 8.0), ("0.5×", 0.5)])
def test_speeds_are_read(text, speed):
    assert parse_speed(text) == speed


@pytest.mark.parametrize("text", ["", "fast", "0", "-1x", "inf", "nan"])
def test_other_speeds_are_refused(text):
    with pytest.raises(ConfigError):
        parse_speed(text)
