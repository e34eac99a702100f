"""The whole way as its users know it: events in at an edge, rows out of a query, honest exit codes."""

from __future__ import annotations

import hmac
import shutil
import threading
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipeline.edge import read_ledger
from pipeline.edge_session import drained_edge
from pipeline.evidence import spools
from tests.local_stack import LocalStack
from tests.waiting import PAUSE

pytestmark = pytest.mark.kafka
MOMENT = datetime(2026, 5, 17, 13, 47, 31, 123456, tzinfo=UTC)

EVENTS: dict[str, dict[str, Any]] = {
    "vehicle_telemetry": {
        "vin": "WVWZZZ1JZXW000001", "driver": "Ada Ünal", "trip": "t-1", "latitude": 52.5186,
        "longitude": 13.4083, "speed_m_s": 13.9, "heading_deg": 270.0, "odometer_km": 123_456.7,
        "fault_code": "P0420",
    },
    "machine_reading": {"machine": "press-17", "cycle": 41, "setting_1": 0.5, "sensor_1": 21.75},
    "meter_reading": {
        "meter": "1EMH0012345678", "household": "Kim", "contract": "C-9", "tariff": "peak",
        "energy_kwh": 17.25, "power_w": 420.0, "interval_s": 900,
    },
    "object_detection": {
        "camera": "gate-3", "frame": 90_001, "label": "parcel", "score": 0.75, "box_x_px": 10.0,
        "box_y_px": 20.0, "box_width_px": 30.0, "box_height_px": 40.0, "barcode": "4006381333931",
        "model": "boxes", "release": "3",
    },
    "inference_output": {
        "model": "wear", "release": "7", "subject": "press-17", "target": "failure", "score": 0.125,
        "predicted": 88.0, "threshold": 0.5, "acted": False, "latency_ms": 3.5,
    },
}  # fmt: skip


def pseudonym(stack: LocalStack, value: str) -> str:
    """What the policy of eu makes of a device's identifier in the quarter of MOMENT."""
    keys = stack.project.keys.store("eu")
    digest = hmac.digest(
        keys.key("eu", "maintenance", "2026-q2"), b"identifier.device\0" + value.encode(), "sha256"
    )
    return digest[:16].hex()


def curated(stack: LocalStack) -> dict[str, dict[str, Any]]:
    """The rows that eu may hold of EVENTS, from its policy pack by hand."""

    def device(value: str) -> str:
        return pseudonym(stack, value)

    hour, minute = datetime(2026, 5, 17, 13), datetime(2026, 5, 17, 13, 47)
    second = datetime(2026, 5, 17, 13, 47, 31)
    vehicle = {
        "event_time": hour, "vin": device("WVWZZZ1JZXW000001"), "speed_m_s": 13.9, "heading_deg": 270.0,
        "odometer_km": 123_000.0, "fault_code": "P0420", "engine_rpm": None,
        "location_cell": 0x871F1D489FFFFFF,  # the H3 cell of resolution 7 that holds the place
    }  # fmt: skip
    machine = {
        "event_time": second, "machine": device("press-17"), "cycle": 41, "setting_1": 0.5,
        "sensor_1": 21.75, "sensor_21": None,
    }  # fmt: skip
    meter = {
        "event_time": hour, "meter": device("1EMH0012345678"), "tariff": "peak", "energy_kwh": 17.25,
        "power_w": 420.0, "interval_s": 900,
    }  # fmt: skip
    detection = {
        "event_time": hour, "camera": device("gate-3"), "label": "parcel", "score": 0.75, "box_x_px": 10.0,
        "box_height_px": 40.0, "model": "boxes", "release": "3",
    }  # fmt: skip
    inference = {
        "event_time": minute, "model": "wear", "release": "7", "subject": device("press-17"),
        "target": "failure", "score": 0.125, "predicted": 88.0, "acted": False, "latency_ms": 3.5,
    }  # fmt: skip
    return {
        "vehicle_telemetry": vehicle, "machine_reading": machine, "meter_reading": meter,
        "object_detection": detection, "inference_output": inference,
    }  # fmt: skip


DROPPED = {
    "driver", "trip", "latitude", "longitude", "household", "contract", "frame", "barcode", "spool", "lane",
    "sequence",
}  # fmt: skip


def test_one_event_of_each_type_lands_in_the_form_its_region_may_hold(stack):
    with drained_edge(stack.project, "each") as client:
        for event, fields in EVENTS.items():
            client.emit(event, fields, source=f"source of {event}", event_time=MOMENT, jurisdiction="DE")
    stack.settle("eu")
    for event, expected in curated(stack).items():
        source = pseudonym(stack, f"source of {event}")
        [row] = stack.rows("eu", f"SELECT * FROM {event} WHERE source = '{source}'").to_pylist()
        assert {name: row[name] for name in expected} == expected
        assert row["jurisdiction"] == "DE"
        assert not DROPPED & row.keys()
        assert row["raw_offset"] >= 0


def readings(first: int, number: int) -> list[dict[str, Any]]:
    """``number`` readings of a few machines; ``cycle`` counts on from ``first``."""
    return [
        {
            "source": f"gateway-{cycle % 7}", "event_time": MOMENT + timedelta(seconds=cycle),
            "jurisdiction": "FR", "machine": f"press-{cycle % 7}", "cycle": cycle,
        }
        for cycle in range(first, first + number)
    ]  # fmt: skip


def test_a_query_beside_the_writer_sees_whole_commits_and_never_fewer_rows(stack):
    sql = (
        "SELECT count(*) AS rows, count(DISTINCT raw_partition * 1e12 + raw_offset) AS positions "
        "FROM machine_reading WHERE cycle >= 1000000"
    )
    enough, sent = threading.Event(), 0

    def emit() -> None:
        nonlocal sent
        with drained_edge(stack.project, "beside") as client:
            while not enough.is_set():
                sent += client.emit_many("machine_reading", readings(1_000_000 + sent, 200)).count
                PAUSE.wait(0.05)

    producer = threading.Thread(target=emit)
    producer.start()
    seen: list[int] = []
    try:
        for _ in range(30):
            [answer] = stack.answers("eu", sql)
            assert answer["rows"] == answer["positions"]
            seen.append(answer["rows"])
            if len(set(seen) - {0}) >= 3:
                break
    finally:
        enough.set()
        producer.join()
    stack.settle("eu")
    assert stack.answers("eu", sql) == [{"rows": sent, "positions": sent}]
    assert seen == sorted(seen)
    assert len(set(seen) - {0}) >= 3


def test_an_edge_takes_events_while_the_broker_is_away_and_delivers_them_when_it_is_back(stack):
    broker, cycles = stack.project.broker(), count(3_000_000, 100)
    path = stack.project.config.spool_path("outage")
    try:
        with drained_edge(stack.project, "outage") as client:
            client.emit_many("machine_reading", readings(next(cycles), 100))
            broker.kill9()
            for _ in range(20):
                assert client.emit_many("machine_reading", readings(next(cycles), 100)).count == 100
            assert not broker.alive()
            waiting = sum(lane.pending for lane in read_ledger(path))
            assert 2000 <= waiting <= 2100
            stack.done("up")  # starts what does not run
    finally:
        stack.done("up")
    assert sum(lane.pending for lane in read_ledger(path)) == 0
    stack.settle("eu")
    cycles_there = stack.rows("eu", "SELECT cycle FROM machine_reading WHERE cycle >= 3000000 ORDER BY cycle")
    assert cycles_there["cycle"].to_pylist() == list(range(3_000_000, 3_002_100))


# --- exit codes -------------------------------------------------------------------------------------------


def copy_of(stack: LocalStack, folder: Path) -> Path:
    """A state folder with the spools and stores of the stack, to be spoilt; its broker is the stack's."""
    state = folder / "copy"
    for part in ("edge", "store"):
        shutil.copytree(stack.state / part, state / part)
    config = folder / "copy.toml"
    regions = "".join(
        f'[regions.{name}]\ncluster = {{ bootstrap = "{stack.project.broker().bootstrap}" }}\n'
        for name in stack.project.config.regions
    )
    config.write_text(regions, encoding="utf-8")
    return state


def test_balance_ends_with_1_when_a_row_is_doubled_by_hand(stack, tmp_path):
    stack.settle("eu")
    state, config = copy_of(stack, tmp_path), tmp_path / "copy.toml"
    sound = stack.run("balance", "--region", "eu", "--wait", "30", config=config, state=state)
    assert sound.returncode == 0, sound.stderr
    with open_to_write(state / "store" / "eu") as connection:
        connection.execute("INSERT INTO lake.machine_reading SELECT * FROM lake.machine_reading LIMIT 1")
    off = stack.run("balance", "--region", "eu", config=config, state=state)
    assert off.returncode == 1
    assert "doubled" in off.stdout


def open_to_write(store: Path) -> duckdb.DuckDBPyConnection:
    """The catalogue of a store, past the pipeline."""
    from connectors.lake.session import DuckLimits, StoreFolder, attach, connect

    connection = connect(DuckLimits())
    attach(connection, StoreFolder(store), "DATA_INLINING_ROW_LIMIT 0")
    return connection


def test_balance_ends_with_1_when_a_spool_with_its_ledger_is_gone(stack, tmp_path):
    stack.settle("eu")
    state = copy_of(stack, tmp_path)
    for path in spools(state):
        if any(lane.region == "eu" and lane.accepted for lane in read_ledger(path)):
            shutil.rmtree(path.parent)
    off = stack.run("balance", "--region", "eu", config=tmp_path / "copy.toml", state=state)
    assert off.returncode == 1
    assert "beyond those accepted" in off.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("balance", "--region", "atlantis"),
        ("query", "--region", "atlantis", "SELECT 1"),
        ("process", "--region", "atlantis"),
        ("store", "--region", "atlantis"),
        ("emit", "no_such_event"),
        ("query", "--region", "eu", "DROP TABLE machine_reading"),
        ("no-such-command",),
    ],
    ids=lambda arguments: " ".join(arguments[:3]),
)
def test_wrong_use_ends_with_2_and_names_what_is_known(stack, arguments):
    ended = stack.run(*arguments)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_wrong_configuration_ends_with_2_and_names_every_fault(stack, tmp_path):
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("no_such_key = 1\n[regions.eu]\npartitions = 0\n", encoding="utf-8")
    for command in (("balance",), ("up",), ("process", "--region", "eu")):
        ended = stack.run(*command, config=wrong)
        assert ended.returncode == 2
        assert "no_such_key" in ended.stderr
        assert "partitions" in ended.stderr
