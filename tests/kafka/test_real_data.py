"""Real recordings through the whole way, by ``pipeline replay`` with the shipped mappings: to row and value.

A sensor whose clock steps back, a fleet of engines, and a car in California whose places must not be found in
its region's store by anyone who searches the bytes.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
import struct
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import h3ronpy
import h3ronpy.vector
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.kafka_scan import LogScanner
from pipeline.framing import unframe
from tests.local_stack import LocalStack
from tests.shared_data import shared_data

pytestmark = pytest.mark.kafka
NAB_ROWS, NAB_DOUBLED_TIMES, FD001_ROWS = 22_695, 12, 20_631
PRECISE_KM2 = 0.9989  # Cal. Civ. Code 1798.140(w): a circle of 1,850 feet
GNSS_COLUMNS = ("latitude", "longitude", "speed", "utc_timestamp", "altitude", "bearing")
SPEED = 20.0  # times the recorded pace


def replayed(stack: LocalStack, file: Path, *options: str) -> dict[str, Any]:
    """What ``pipeline replay`` says of a file."""
    return json.loads(stack.done("--json", "replay", str(file), *options))


# --- machines ---------------------------------------------------------------------------------------------


def test_a_sensor_whose_clock_steps_back_keeps_every_row_and_both_values_of_a_moment(stack):
    file = shared_data("nab", "realKnownCause", "machine_temperature_system_failure.csv")
    options = ("--event", "machine_reading", "--mapping", "nab_machine_temperature", "--jurisdiction", "DE")
    assert replayed(stack, file, *options) == {"read": NAB_ROWS, "sent": NAB_ROWS, "skipped": 0, "bad": {}}
    stack.settle("eu")
    rows = stack.rows(
        "eu", "SELECT event_time, sensor_1 FROM machine_reading WHERE event_time < '2015-01-01'"
    )
    with file.open() as lines:
        recorded = sorted(
            (datetime.fromisoformat(row["timestamp"]), (float(row["value"]) - 32) / 1.8)
            for row in csv.DictReader(lines)
        )
    stored = sorted(zip(rows["event_time"].to_pylist(), rows["sensor_1"].to_pylist(), strict=True))
    assert len(stored) == NAB_ROWS
    assert [moment for moment, _ in stored] == [moment for moment, _ in recorded]
    np.testing.assert_allclose([v for _, v in stored], [v for _, v in recorded], rtol=0, atol=1e-9)
    twice = stack.rows(
        "eu",
        "SELECT event_time, count(DISTINCT sensor_1) AS readings FROM machine_reading "
        "WHERE event_time < '2015-01-01' GROUP BY event_time HAVING count(*) > 1",
    )
    assert twice["readings"].to_pylist() == [2] * NAB_DOUBLED_TIMES


def test_every_cycle_of_a_fleet_of_engines_is_stored_with_all_its_channels(stack):
    file = shared_data("cmapss", "train_FD001.txt.gz")
    options = ("--event", "machine_reading", "--mapping", "cmapss", "--jurisdiction", "DE")
    assert replayed(stack, file, *options) == {
        "read": FD001_ROWS,
        "sent": FD001_ROWS,
        "skipped": 0,
        "bad": {},
    }
    stack.settle("eu")
    channels = [f"setting_{n}" for n in range(1, 4)] + [f"sensor_{n}" for n in range(1, 22)]
    during = "event_time >= '2026-01-01' AND event_time < '2026-01-02' AND setting_1 IS NOT NULL"
    rows = stack.rows(
        "eu", f"SELECT machine, cycle, {', '.join(channels)} FROM machine_reading WHERE {during}"
    )
    stored = np.column_stack([rows[name].to_numpy() for name in ["cycle", *channels]])
    with gzip.open(file, "rt") as lines:
        recorded = np.loadtxt(lines)
    assert len(stored) == FD001_ROWS
    np.testing.assert_array_equal(ordered(stored), ordered(recorded[:, 1:]))
    engines = rows.group_by("machine").aggregate([("cycle", "max")])
    longest = [recorded[recorded[:, 0] == unit, 1].max() for unit in np.unique(recorded[:, 0])]
    assert sorted(engines["cycle_max"].to_pylist()) == sorted(longest)


def ordered(rows: np.ndarray) -> np.ndarray:
    """Rows in an order that depends on nothing but their values."""
    return rows[np.lexsort(rows.T)]


# --- a car in California ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drive(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The car's speed and two receivers, replayed at SPEED times their own pace; by name what was read."""
    logs, folder = shared_data("comma2k19", "processed_log"), tmp_path_factory.mktemp("drive")
    t, speed = (np.load(logs / "CAN" / "speed" / part) for part in ("t", "value"))
    recorded = {"speed": np.column_stack([t, speed])}
    write_csv(folder / "speed.csv", ("t", "speed"), recorded["speed"])
    for receiver in ("ublox", "qcom"):
        recorded[receiver] = np.load(logs / "GNSS" / f"live_gnss_{receiver}" / "value")
        write_csv(folder / f"{receiver}.csv", GNSS_COLUMNS, recorded[receiver])
    for name, rows in recorded.items():
        mapping = "comma2k19_speed" if name == "speed" else "comma2k19_gnss"
        options = ("--event", "vehicle_telemetry", "--mapping", mapping, "--speed", f"{SPEED:g}x")
        assert replayed(stack, folder / f"{name}.csv", *options)["sent"] == len(rows)
    stack.settle("us-ca")
    return recorded


def write_csv(path: Path, names: tuple[str, ...], rows: np.ndarray) -> None:
    """Every number with all its digits."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([[repr(float(value)) for value in row] for row in rows])


async def raw_events(stack: LocalStack) -> tuple[pa.Table, list[bytes]]:
    """The region's raw vehicle events in log order, decoded and as they are."""
    return await records(stack, stack.project.topics.raw("us-ca", "vehicle_telemetry"))


async def records(stack: LocalStack, topic: str) -> tuple[pa.Table, list[bytes]]:
    """All records of a topic."""
    project = stack.project
    scan, values = LogScanner(project.cluster("us-ca"), project.config.limits), []
    for partition in range(project.config.region("us-ca").partitions):
        async for fetched in scan(topic, partition, 0):
            values += fetched.values.to_pylist()
    ids, bodies = unframe(pa.array(values, pa.binary()))
    batch, _, bad = project.schemas.codec(int(ids[0])).decode(bodies)
    assert not bad
    return pa.Table.from_batches([batch]), values


def test_each_device_keeps_its_own_clock_on_the_way_and_the_minute_in_the_store(stack, drive):
    events, _ = asyncio.run(raw_events(stack))
    for source, names in {"comma2k19-can": ["speed"], "comma2k19-gnss": ["ublox", "qcom"]}.items():
        mine = events.filter(pa.compute.equal(events["source"], source)).sort_by("sequence")
        times, received = (mine[name].cast(pa.int64()).to_numpy() for name in ("event_time", "received_time"))
        begin = 0
        for name in names:
            clock = drive[name][:, 0] * 1e6 if name == "speed" else drive[name][:, 3] * 1e3
            end = begin + len(clock)
            np.testing.assert_allclose(np.diff(times[begin:end]), np.diff(clock), rtol=0, atol=2)
            lasted_s = (received[end - 1] - received[begin]) / 1e6
            assert lasted_s >= (clock[-1] - clock[0]) / 1e6 / SPEED - 0.2
            begin = end
        assert begin == len(mine)
    stored = stack.rows("us-ca", "SELECT event_time, speed_m_s FROM vehicle_telemetry")
    assert len(stored) == sum(map(len, drive.values()))
    assert all(moment.second == moment.microsecond == 0 for moment in stored["event_time"].to_pylist())
    speeds = np.concatenate([drive["speed"][:, 1], drive["ublox"][:, 2], drive["qcom"][:, 2]])
    np.testing.assert_array_equal(np.sort(stored["speed_m_s"].to_numpy()), np.sort(speeds))


def test_no_stored_cell_is_a_precise_location(stack, drive):
    rows = stack.rows("us-ca", "SELECT location_cell FROM vehicle_telemetry WHERE location_cell IS NOT NULL")
    assert len(rows) == len(drive["ublox"]) + len(drive["qcom"])
    cells = pa.array(np.unique(rows["location_cell"].to_numpy()).astype(np.uint64))
    assert 1 <= len(cells) <= 3  # a minute on a motorway
    assert np.asarray(h3ronpy.cells_area_km2(cells)).min() >= PRECISE_KM2
    polygons = h3ronpy.vector.cells_to_wkb_polygons(cells)
    assert min(ellipsoid_area_km2(ring(wkb.as_py())) for wkb in pa.array(polygons)) >= PRECISE_KM2


def ring(wkb: bytes) -> np.ndarray:
    """Longitudes and latitudes of a WKB polygon's outer ring, in degrees."""
    order = "<" if wkb[0] == 1 else ">"
    kind, rings, points = struct.unpack_from(f"{order}III", wkb, 1)
    assert (kind, rings) == (3, 1)
    return np.frombuffer(wkb, f"{order}f8", 2 * points, 13).reshape(points, 2)


def ellipsoid_area_km2(points: np.ndarray) -> float:
    """Area on WGS 84 by Lambert's equal-area cylinder, independent of H3's own formula."""
    e2 = 0.00669437999014
    e, sine = np.sqrt(e2), np.sin(np.radians(points[:, 1]))
    q = (1 - e2) * (sine / (1 - e2 * sine**2) + np.arctanh(e * sine) / e)
    x, y = 6378.137 * np.radians(points[:, 0]), 6378.137 * q / 2
    return float(abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2)


def test_no_coordinate_is_anywhere_in_the_bytes_of_the_store(stack, drive):
    coordinates = np.concatenate([drive[name][:, :2].ravel() for name in ("ublox", "qcom")])
    needles = [struct.pack("<d", value) for value in np.unique(coordinates)]
    needles += sorted({f"{value:.4f}"[:-1].encode() for value in coordinates})  # as text, to three decimals
    _, raw = asyncio.run(raw_events(stack))
    assert found(needles[: len(np.unique(coordinates))], [b"".join(raw)]) == len(np.unique(coordinates))
    _, curated = asyncio.run(records(stack, stack.project.topics.curated("us-ca", "vehicle_telemetry")))
    assert found(needles, [b"".join(curated)]) == 0
    assert found(needles, everything_in(stack.project.config.store_path("us-ca"))) == 0


def found(needles: list[bytes], haystacks: Iterator[bytes] | list[bytes]) -> int:
    """How many of the needles are in any of the haystacks."""
    left = set(needles)
    for haystack in haystacks:
        left -= {needle for needle in left if needle in haystack}
    return len(needles) - len(left)


def everything_in(store: Path) -> Iterator[bytes]:
    """Every file as it is, and Parquet also unpacked: written again plain, and its statistics as text."""
    files = [path for path in store.rglob("*") if path.is_file()]
    assert any(path.suffix == ".parquet" for path in files)
    for path in files:
        yield path.read_bytes()
        if path.suffix == ".parquet":
            plain = pa.BufferOutputStream()
            table = pq.read_table(path)
            pq.write_table(table, plain, compression="none", use_dictionary=False)
            yield plain.getvalue().to_pybytes()
            yield repr(table.to_pylist()).encode()
            yield repr(pq.read_metadata(path).to_dict()).encode()
