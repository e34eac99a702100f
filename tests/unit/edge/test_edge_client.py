"""The client: good events arrive as given, bad ones are refused while the caller waits, all or nothing."""

from __future__ import annotations

import contextlib
import math
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone

import pyarrow as pa
import pytest

from pipeline.config import Config
from pipeline.edge.client import EdgeClient
from pipeline.edge.partition import positive_murmur2
from pipeline.errors import ConfigError, RecordError, TransientError
from tests.edge_world import (
    EVENT,
    JURISDICTIONS,
    as_batch,
    decoded,
    open_spool,
    schemas,
    split,
    stored,
    vehicle,
    vehicles,
)
from tests.raw_events import raw_batch

SECRET = "value-that-must-not-be-told"


@pytest.fixture
def spool(tmp_path):
    with open_spool(tmp_path / "spool.sqlite") as opened:
        yield opened


@pytest.fixture
def client(spool):
    return EdgeClient(Config(), schemas(), spool, JURISDICTIONS.get)


def emit(client, row, event=EVENT, **more):
    fields, given = split(row)
    return client.emit(event, fields, **given, **more)


def rows_of(spool):
    """All stored events by sequence."""
    found = {}
    for block in (b for region in sorted(set(JURISDICTIONS.values())) for b in stored(spool, region)):
        for row in decoded(block.values).to_pylist():
            found[row["sequence"]] = (block, row)
    return [found[sequence] for sequence in sorted(found)]


def test_one_event_arrives_as_given(client, spool):
    moment = datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    row = vehicle(random.Random(1), event_time=moment, speed_m_s=12)
    before = datetime.now(UTC).replace(tzinfo=None)
    receipt = emit(client, row)
    ((block, event),) = rows_of(spool)
    assert (receipt.spool, receipt.lane, receipt.first_sequence, receipt.count) == (spool.spool, 1, 1, 1)
    assert (event["spool"], event["lane"], event["sequence"]) == (spool.spool, 1, 1)
    assert event["event_time"] == datetime(2026, 3, 1, 10)
    assert before <= event["received_time"] <= datetime.now(UTC).replace(tzinfo=None)
    assert event["speed_m_s"] == 12.0
    assert event["fault_code"] is None
    assert {name: event[name] for name in ("source", "jurisdiction", "vin", "driver", "latitude")} == {
        name: row[name] for name in ("source", "jurisdiction", "vin", "driver", "latitude")
    }
    assert block.received_ms == int(event["received_time"].replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize("shape", [list, as_batch, lambda rows: pa.Table.from_batches([as_batch(rows)])])
def test_many_events_arrive_in_order_each_in_its_region_and_partition(client, spool, shape):
    rows = vehicles(500, jurisdictions=("DE", "BR", "US-CA", "FR"))
    assert client.emit_many(EVENT, shape(rows)).count == 500
    found = rows_of(spool)
    assert [event["sequence"] for _, event in found] == list(range(1, 501))
    for row, (block, event) in zip(rows, found, strict=True):
        assert all(event[name] == value for name, value in row.items() if name != "event_time")
        assert block.region == JURISDICTIONS[row["jurisdiction"]]
        assert block.partition == positive_murmur2(row["source"]) % 4
        assert block.first_sequence <= event["sequence"] <= block.last_sequence
    for block, _ in found:
        sequences = decoded(block.values).column("sequence").to_pylist()
        assert sequences == sorted(sequences)
        assert (sequences[0], sequences[-1]) == (block.first_sequence, block.last_sequence)


def test_columns_in_neighbouring_types_are_taken(client, spool):
    batch = pa.RecordBatch.from_pydict(
        {
            "speed_m_s": pa.array([3, None], pa.int8()),
            "vin": pa.array(["a", "b"]).dictionary_encode(),
            "source": pa.array(["s", "s"], pa.large_string()),
            "jurisdiction": pa.array(["DE", "DE"], pa.string_view()),
            "event_time": pa.array([1_700_000_000_000] * 2, pa.timestamp("ms", "Asia/Tokyo")),
            "latitude": pa.array([1.5, 2.5], pa.float32()),
            "fault_code": pa.nulls(2),
        }
    )
    client.emit_many(EVENT, batch)
    first, second = (event for _, event in rows_of(spool))
    assert (first["speed_m_s"], second["speed_m_s"]) == (3.0, None)
    assert first["event_time"] == datetime(2023, 11, 14, 22, 13, 20)


@pytest.mark.parametrize(
    ("name", "column", "reason"),
    [
        ("speed_m_s", pa.array(["1.0"]), "type"),
        ("speed_m_s", pa.array([True]), "type"),
        ("vin", pa.array([1]), "type"),
        ("vin", pa.array([b"x"]), "type"),
        ("event_time", pa.array(["2026-01-01"]), "type"),
        ("event_time", pa.array([1.0]), "type"),
        ("event_time", pa.array([10**18 + 1], pa.timestamp("ns")), "range"),
    ],
)
def test_columns_of_other_types_are_refused(client, name, column, reason):
    batch = as_batch(vehicles(1))
    batch = batch.set_column(batch.schema.get_field_index(name), name, column)
    with pytest.raises(RecordError) as caught:
        client.emit_many(EVENT, batch)
    assert (caught.value.reason, caught.value.field) == (reason, name)


BAD = {
    "range": ("speed_m_s", 151.0, "range"),
    "negative": ("odometer_km", -0.1, "range"),
    "nan": ("latitude", math.nan, "not_finite"),
    "infinite": ("longitude", math.inf, "not_finite"),
    "missing": ("vin", None, "field_missing"),
    "no source": ("source", None, "field_missing"),
    "no time": ("event_time", None, "field_missing"),
    "future": ("event_time", 4_000_000_000_000_000, "time_future"),
    "ancient": ("event_time", 0, "time_ancient"),
    "unknown place": ("jurisdiction", "XX", "jurisdiction_unknown"),
    "no place": ("jurisdiction", "", "jurisdiction_missing"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("shape", ["one", "rows", "columns"])
def test_a_bad_value_is_refused_with_row_field_and_reason_and_nothing_is_taken(client, spool, case, shape):
    field, value, reason = BAD[case]
    rows = vehicles(100)
    rows[70][field] = value
    rows[90]["speed_m_s"] = -1.0  # the first bad row counts
    calls = {
        "one": lambda: emit(client, rows[70]),
        "rows": lambda: client.emit_many(EVENT, rows),
        "columns": lambda: client.emit_many(EVENT, as_batch(rows)),
    }
    with pytest.raises(RecordError) as caught:
        calls[shape]()
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert shape == "one" or "row 70:" in str(caught.value)
    assert spool.ledger() == []
    assert emit(client, rows[0]).first_sequence == 1


def test_single_rows_and_columns_agree_on_what_they_refuse(client):
    seed = 7311
    rng = random.Random(seed)
    taken = 0
    for _ in range(300):
        row = vehicle(rng)
        name = rng.choice(["latitude", "speed_m_s", "vin", "event_time", "jurisdiction", "source"])
        choices = [None, "", "XX", "DE", 0, -1, 90.0, 90.1, 1e300, math.nan, 1_750_000_000_000_000]
        row[name] = value = rng.choice(choices)
        answers = [answer(emit, client, row), answer(client.emit_many, EVENT, [row])]
        if name == "event_time" and isinstance(value, float):
            continue  # the column would hold a whole number
        with contextlib.suppress(ValueError, TypeError):  # no column can hold it
            answers.append(answer(client.emit_many, EVENT, as_batch([row])))
        assert len(set(answers)) == 1, f"seed {seed}: {name} gave {answers}"
        taken += answers[0] == "taken"
    assert 30 < taken < 270


def answer(call, *arguments):
    try:
        call(*arguments)
    except RecordError as error:
        return f"{error.reason} {error.field}"
    return "taken"


@pytest.mark.parametrize("shape", ["one", "rows", "columns"])
def test_an_unknown_field_is_refused_without_telling_its_name(client, shape):
    row = vehicle(random.Random(1)) | {SECRET: 1.0}
    batch = as_batch([vehicle(random.Random(1))]).append_column(SECRET, pa.array([1.0]))
    calls = {
        "one": lambda: emit(client, row),
        "rows": lambda: client.emit_many(EVENT, [row]),
        "columns": lambda: client.emit_many(EVENT, batch),
    }
    with pytest.raises(RecordError) as caught:
        calls[shape]()
    assert caught.value.reason == "field_unknown"
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["vin", "jurisdiction", "source", "speed_m_s", "event_time"])
def test_errors_do_not_tell_values(client, name):
    for value in ([SECRET], {SECRET: SECRET}, SECRET + "\ud800"):
        row = vehicle(random.Random(1)) | {name: value}
        for call in (lambda row=row: emit(client, row), lambda row=row: client.emit_many(EVENT, [row])):
            with pytest.raises(RecordError) as caught:
                call()
            assert SECRET not in str(caught.value)


def test_the_envelope_is_not_the_producers_to_fill(client):
    with pytest.raises(RecordError, match="does not have"):
        client.emit_many(EVENT, [vehicle(random.Random(1)) | {"sequence": 1}])
    batch = as_batch(vehicles(1)).append_column("spool", pa.array([1]))
    with pytest.raises(RecordError, match="does not have"):
        client.emit_many(EVENT, batch)


def test_an_unknown_event_lists_the_known_ones(client):
    with pytest.raises(RecordError, match=f"known: .*{EVENT}"):
        client.emit(SECRET, {}, source="s", event_time=0, jurisdiction="DE")
    with pytest.raises(RecordError, match=EVENT) as caught:
        client.emit_many(SECRET, [])
    assert SECRET not in str(caught.value)


def test_a_region_without_configuration_is_no_region(spool):
    client = EdgeClient(Config(), schemas(), spool, {"JP": "jp", "DE": "eu"}.get)
    for rows in (vehicles(3, jurisdictions=("DE", "JP")), as_batch(vehicles(9, jurisdictions=("DE", "JP")))):
        with pytest.raises(RecordError) as caught:
            client.emit_many(EVENT, rows)
        assert caught.value.reason == "jurisdiction_unknown"


def test_an_oversize_record_fails_its_call_and_no_other(client, spool):
    rows = vehicles(30)
    big = vehicles(10, seed=2)
    big[7]["fault_code"] = "x" * 70_000
    barrier = threading.Barrier(3)

    def together(rows):
        barrier.wait()
        return client.submit_many(EVENT, rows)

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(together, part).result for part in (rows[:15], big, rows[15:])]
        first, refused, second = (future() for future in futures)
    assert first.result(10).count == second.result(10).count == 15
    error = refused.exception(10)
    assert isinstance(error, RecordError)
    assert error.reason == "oversize"
    assert "row 7:" in str(error)
    assert "xxx" not in str(error)
    assert [event["sequence"] for _, event in rows_of(spool)] == list(range(1, 31))
    with pytest.raises(RecordError, match="record_bytes_max"):
        emit(client, big[7])


def test_no_rows_are_a_receipt_for_nothing(client, spool):
    batch = as_batch(vehicles(1)).slice(0, 0)
    for nothing in ([], batch, pa.Table.from_batches([batch])):
        assert client.emit_many(EVENT, nothing).count == 0
    assert spool.ledger() == []


def test_more_rows_than_the_queue_holds_are_refused(tmp_path):
    edge = Config().edge.model_copy(update={"queue_events_max": 100})
    config = Config().model_copy(update={"edge": edge})
    with open_spool(tmp_path / "s.sqlite") as spool:
        client = EdgeClient(config, schemas(), spool, JURISDICTIONS.get)
        with pytest.raises(RecordError, match="queue_events_max"):
            client.emit_many(EVENT, vehicles(101))


def test_lanes_by_event_and_by_call(tmp_path):
    edge = Config().edge.model_copy(update={"event_lanes": {EVENT: "bulk"}})
    config = Config().model_copy(update={"edge": edge})
    with open_spool(tmp_path / "s.sqlite") as spool:
        client = EdgeClient(config, schemas(), spool, JURISDICTIONS.get)
        row = vehicle(random.Random(1))
        assert emit(client, row).lane == 2
        assert emit(client, row, lane="urgent").lane == 0
        assert client.emit_many(EVENT, [row], lane="normal").lane == 1
        with pytest.raises(ConfigError, match="known: urgent, normal, bulk"):
            emit(client, row, lane="fast")


def test_a_lane_for_an_unknown_event_is_a_configuration_error(spool):
    edge = Config().edge.model_copy(update={"event_lanes": {"no_such_event": "bulk"}})
    with pytest.raises(ConfigError, match="no_such_event"):
        EdgeClient(Config().model_copy(update={"edge": edge}), schemas(), spool, JURISDICTIONS.get)


def test_a_closed_client_takes_nothing(client):
    with client:
        emit(client, vehicle(random.Random(1)))
    with pytest.raises(TransientError, match="closed"):
        emit(client, vehicle(random.Random(1)))


def test_every_event_of_the_project_can_be_emitted(spool):
    client = EdgeClient(Config(), schemas(), spool, lambda _: "eu")
    for event in client.events:
        batch = raw_batch(schemas(), event, 50)
        batch = batch.drop_columns(["spool", "lane", "sequence", "received_time"])
        assert client.emit_many(event, batch).count == 50
    wanted = dict.fromkeys(client.events, 50)
    found = dict.fromkeys(client.events, 0)
    for block in stored(spool):
        found[block.event] += len(decoded(block.values))
    assert found == wanted
