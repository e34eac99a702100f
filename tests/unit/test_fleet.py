"""The simulated fleet behaves like one: nothing jumps, runs backwards or leaves its range."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.admission import validate_one
from pipeline.checks import Checks
from pipeline.config import LimitsConfig
from pipeline.demo.example import example, simplest
from pipeline.demo.fleet import Fleet, FleetSize
from pipeline.demo.meters import Meters
from pipeline.demo.places import CITIES
from pipeline.errors import ConfigError
from pipeline.events import EventField, EventType
from pipeline.schemas import source_schemas
from tests.shared_data import PROJECT

SCHEMAS = PROJECT / "schemas"
START_US = 1_780_000_000_000_000
SMALL = FleetSize(vehicles=60, meters=40, machines=30, cameras=8)
EDGE_GIVES = {"spool": 77, "lane": 1, "sequence": 1}


@pytest.fixture(scope="module")
def events() -> dict[str, EventType]:
    schemas = source_schemas(SCHEMAS).items()
    return {name: EventType(name, 1, 1, schema) for name, schema in schemas if "." not in name}


def run(region: str, seed: int, ticks: int, dt_s: float) -> dict[str, pa.Table]:
    """All events of a run, per type, in order."""
    print(f"seed {seed}")
    fleet, parts = Fleet(region, seed, SMALL), defaultdict(list)
    for tick in range(1, ticks + 1):
        for name, batch in fleet.tick(START_US + round(tick * dt_s * 1e6), dt_s).items():
            parts[name].append(batch)
    return {name: pa.Table.from_batches(batches) for name, batches in parts.items()}


@pytest.fixture(scope="module", params=[("eu", 0.1, 900), ("us-ca", 1.0, 400), ("br", 20.0, 400)],
                ids=["eu fine", "us-ca by the second", "br coarse"])  # fmt: skip
def day(request) -> tuple[str, float, dict[str, pa.Table]]:
    region, dt_s, ticks = request.param
    return region, dt_s, run(region, 11, ticks, dt_s)


def by_source(table: pa.Table, key: str, *columns: str):
    """Per device: numpy arrays of the columns, in order."""
    names = np.array(table.column(key).to_pylist(), dtype=object)
    values = [table.column(column).to_numpy() for column in columns]
    for name in np.unique(names):
        yield [value[names == name] for value in values]


def test_every_event_passes_the_checks_of_its_region(day, events):
    region, _, tables = day
    here = frozenset(city.jurisdiction for city in CITIES[region])
    for name, table in tables.items():
        event = events[name]
        columns = [
            pa.repeat(pa.scalar(EDGE_GIVES[field.name], field.type), len(table))
            if field.name in EDGE_GIVES
            else table.column("event_time" if field.name == "received_time" else field.name).combine_chunks()
            for field in event.arrow
        ]
        assert [c.type for c in columns] == event.arrow.types, name
        batch = pa.RecordBatch.from_arrays(columns, schema=event.arrow)
        batch.validate(full=True)
        findings = Checks(event, LimitsConfig(), here, here).run(batch, START_US + 9 * 10**9)
        assert findings.all_good, findings.failed().keys()
        assert len(table) > 0, name


def test_the_columns_are_the_envelope_and_the_events_own_fields(day, events):
    for name, table in day[2].items():
        own = [field.name for field in events[name].own_fields]
        assert table.schema.names == ["source", "event_time", "jurisdiction", *own]


def test_the_same_seed_gives_the_same_events_and_another_seed_others():
    first, again, other = (run("eu", seed, 30, 0.5) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_vehicles_move_no_farther_than_their_speed_and_their_odometers_agree(day):
    _, dt_s, tables = day
    table = tables["vehicle_telemetry"]
    found = 0
    for odometer, latitude, longitude, seconds, speed in by_source(
        with_seconds(table), "vin", "odometer_km", "latitude", "longitude", "seconds", "speed_m_s"
    ):
        driven_m = np.diff(odometer) * 1000
        assert np.all(driven_m >= 0)
        assert np.all(driven_m <= 25.0 * np.diff(seconds) + 1e-6)
        straight_m = metres_between(latitude, longitude)
        near = ~np.isnan(straight_m)
        assert np.all(straight_m[near] <= driven_m[near] + 15.0)  # and the receiver's error
        if dt_s <= 0.1:  # between samples a second apart, the speed is nearly the mean of both ends
            mean_m = (speed[1:] + speed[:-1]) / 2 * np.diff(seconds)
            np.testing.assert_allclose(driven_m, mean_m, atol=4.0)
        found += int((driven_m > 1).sum())
    assert found > 100


def test_turning_vehicles_stay_in_their_town(day):
    region, _, tables = day
    table = tables["vehicle_telemetry"]
    latitude = table.column("latitude").to_numpy()
    longitude = table.column("longitude").to_numpy()
    nearest = np.full(len(table), np.inf)
    for city in CITIES[region]:
        north = (latitude - city.latitude) * 111_195
        east = (longitude - city.longitude) * 111_195 * np.cos(np.radians(city.latitude))
        nearest = np.fmin(nearest, np.hypot(north, east) / (city.radius_m * 1.15 + 400))
    assert nearest[~np.isnan(latitude)].max() < 1.0


def test_engines_warm_up_and_tanks_run_down_and_are_filled():
    table = run("br", 3, 600, 20.0)["vehicle_telemetry"]
    refuelled = 0
    for fuel, rpm, speed, temperature, oil in by_source(
        table, "vin", "fuel_percent", "engine_rpm", "speed_m_s", "engine_temperature_c", "oil_pressure_kpa"
    ):
        change = np.diff(fuel)
        assert np.all((change <= 0) | (fuel[1:] > 90))
        refuelled += int((change > 0).sum())
        assert np.all((rpm == 0) == (oil == 0))
        assert np.all(speed[rpm == 0] == 0)
        assert np.all(rpm[rpm > 0] > 650)
        assert temperature.max() > 80
    assert refuelled > 0


def test_wear_only_grows_and_shows_as_fault_codes():
    fleet = Fleet("eu", 4, FleetSize(vehicles=300, meters=1, machines=1, cameras=1))
    wear = fleet.vehicles.wear.copy()
    faults: dict[str, str] = {}
    for tick in range(1, 60):
        batch = fleet.tick(START_US + tick * 30_000_000, 30.0)["vehicle_telemetry"]
        assert np.all(fleet.vehicles.wear >= wear)
        wear = fleet.vehicles.wear.copy()
        for vin, code in zip(batch["vin"].to_pylist(), batch["fault_code"].to_pylist(), strict=True):
            assert code is not None or vin not in faults  # once set, it stays
            if code is not None:
                assert faults.setdefault(vin, code) == code
    assert 0 < len(faults) < 150
    assert wear.max() <= 1


def test_meters_never_run_backwards_and_count_the_power_they_report(day):
    _, _, tables = day
    feeding = 0
    for energy, power, interval_s, tariff in by_source(
        tables["meter_reading"], "meter", "energy_kwh", "power_w", "interval_s", "tariff"
    ):
        counted = np.diff(energy)
        assert np.all(counted >= 0)
        sells = tariff[0] == "feed_in"
        feeding += sells
        one_way = power[1:] < 0 if sells else power[1:] > 0
        steady = one_way & (power[:-1] * power[1:] > 0)
        expected = np.abs(power[1:]) * interval_s[1:] / 3.6e6
        assert np.all(counted[steady] >= expected[steady] * 0.9 - 1e-9)
    assert feeding > 0


def test_a_day_of_load_has_its_peak_in_the_evening():
    meters = Meters("eu", 60, 300.0, np.random.default_rng(8))
    ticks = [meters.tick(START_US + tick * 300_000_000, 300.0) for tick in range(1, 24 * 12)]
    table = pa.Table.from_batches(ticks)
    table = table.filter(pc.not_equal(table["tariff"], "feed_in"))
    hour = np.array([(moment.hour + 1) % 24 for moment in table["event_time"].to_pylist()])
    power = table["power_w"].to_numpy()
    assert power[(hour >= 18) & (hour < 22)].mean() > 1.5 * power[(hour >= 1) & (hour < 5)].mean()


def test_machines_wear_until_they_are_replaced_and_their_channels_follow():
    fleet = Fleet("us-ca", 9, FleetSize(vehicles=1, meters=1, machines=40, cameras=1))
    readings, worn = [], {}
    for tick in range(1, 600):
        batches = fleet.tick(START_US + tick * 1_000_000, 1.0)
        readings.append(batches["machine_reading"])
        for name, wear in zip(fleet.machines.machines().to_pylist(), fleet.machines.wear, strict=True):
            assert wear >= worn.get(name, 0.0)
            worn[name] = wear
    assert len(worn) > 40  # some reached the end of their life
    table = pa.Table.from_batches(readings)
    late = rising = 0
    for cycle, temperature in by_source(table, "machine", "cycle", "sensor_4"):
        assert np.all(np.diff(cycle) == 1)
        if worn[table["machine"][0].as_py()] is not None and len(cycle) > 300:
            late += 1
            rising += temperature[-80:].mean() > temperature[:80].mean()
    assert rising > 0.8 * late > 0


def test_the_edges_verdict_is_about_a_machine_and_follows_the_truth():
    fleet = Fleet("br", 2, FleetSize(vehicles=1, meters=1, machines=1500, cameras=1))
    ticks = [fleet.tick(START_US + n * 1_000_000, 1.0) for n in (1, 2, 3)]
    remaining = dict(
        zip(fleet.machines.machines().to_pylist(), fleet.machines.remaining_cycles.tolist(), strict=True)
    )
    soon: dict[bool, list[float]] = {True: [], False: []}
    for row in pa.Table.from_batches([tick["inference_output"] for tick in ticks]).to_pylist():
        assert (row["score"] is None) != (row["predicted"] is None)
        if row["score"] is not None:
            assert row["acted"] == (row["score"] >= row["threshold"])
            soon[remaining.get(row["subject"], 0) < 15].append(row["score"])
    assert np.mean(soon[True]) > 0.5
    assert np.mean(soon[False]) < 0.05


def test_boxes_lie_in_the_frame_and_codes_stay_with_their_object(day):
    table = day[2]["object_detection"]
    right = pc.add(table["box_x_px"], table["box_width_px"]).to_numpy()
    bottom = pc.add(table["box_y_px"], table["box_height_px"]).to_numpy()
    assert right.max() <= 1920 + 1e-6
    assert bottom.max() <= 1080 + 1e-6
    assert table["box_width_px"].to_numpy().min() >= 0
    assert {"pallet", "box", "person", "forklift"} <= set(table["label"].to_pylist())
    coded = table.filter(table["barcode"].is_valid())
    assert set(coded["label"].to_pylist()) <= {"pallet", "box"}
    owners = {(row["barcode"], row["camera"]) for row in coded.select(["barcode", "camera"]).to_pylist()}
    assert len(owners) == len({barcode for barcode, _ in owners}) > 0
    for (frames,) in by_source(table, "camera", "frame"):
        assert np.all(np.diff(frames) >= 0)


@pytest.mark.parametrize("rate", [300, 3_000])
def test_a_fleet_offers_about_the_rate_it_is_asked_for(rate):
    fleet = Fleet("eu", 1, FleetSize().at_rate(rate))
    ticks = 200
    total = 0
    for tick in range(1, ticks + 1):
        total += sum(len(b) for b in fleet.tick(START_US + tick * 100_000, 0.1).values())
    assert total / (ticks * 0.1) == pytest.approx(rate, rel=0.25)


def test_a_region_without_places_is_refused():
    with pytest.raises(ConfigError, match="eu"):
        Fleet("atlantis")


@pytest.mark.parametrize("region", sorted(CITIES))
def test_an_example_of_every_event_is_accepted_as_it_is(events, region):
    now = datetime(2026, 6, 1, 12, tzinfo=UTC)
    for event in events.values():
        row = example(event, region, now)
        assert row == example(event, region, now)
        envelope = [row.pop(name) for name in ("source", "event_time", "jurisdiction")]
        assert envelope[1:] == [now, envelope[2]]
        assert validate_one(event, row) == row


def test_an_event_the_fleet_does_not_know_gets_the_simplest_values(events):
    for event in events.values():
        values = {field.name: simplest(field) for field in event.own_fields}
        validate_one(event, values)
    nested = {"name": "x", "type": {"type": "array", "items": "long"}}
    assert simplest(EventField.of(nested)) == []


def with_seconds(table: pa.Table) -> pa.Table:
    micros = table.column("event_time").cast(pa.int64()).to_numpy()
    return table.append_column("seconds", pa.array((micros - START_US) / 1e6))


def metres_between(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Great-circle distance of neighbours (haversine), NaN where one has no fix."""
    phi, lam = np.radians(latitude.astype(float)), np.radians(longitude.astype(float))
    a = np.sin(np.diff(phi) / 2) ** 2 + np.cos(phi[1:]) * np.cos(phi[:-1]) * np.sin(np.diff(lam) / 2) ** 2
    return 2 * 6_371_000 * np.arcsin(np.sqrt(a))
