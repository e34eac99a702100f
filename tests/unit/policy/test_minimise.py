"""Minimisation at the edge: the schema holds, landing is not weakened, and single events go the same way."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.checks import Checks
from pipeline.config import Config, LimitsConfig
from pipeline.edge import EdgeClient, NoMetrics
from pipeline.edge.minimising import Minimiser
from pipeline.edge.routes import Routes
from pipeline.errors import ConfigError, RecordError
from pipeline.events import EventType
from pipeline.policy import Packs, compile_plan
from pipeline.policy.cells import SMALLEST_CELL_KM2, to_cells
from pipeline.policy.edge_check import STAMPED, edge_faults
from pipeline.policy.minimise import EdgePlan, compile_edge, edge_plans
from pipeline.policy.operators.edge_places import snap
from pipeline.policy.operators.places import CellParameters
from pipeline.policy.pack import Pack
from tests.edge_world import JURISDICTIONS, decoded, open_spool, schemas, split, stored
from tests.edge_world import vehicles as vehicle_rows
from tests.unit.policy.cases import EVENTS, NOW_US, Keys, event, pack, small_batch

SEED = random.SystemRandom().randrange(2**32)
VEHICLE = EVENTS["vehicle_telemetry"]
PLACE = {"operator": "snap_location", "with": {"cell_km2": 1.0}, "source": "a test"}


def rule(operator: str, source: str = "a test", **parameters: Any) -> dict[str, Any]:
    return {"operator": operator, "with": parameters, "source": source}


def edge(
    fields: dict[str, Any], filters: tuple = (), name: str = "small", landing: dict | None = None
) -> Pack:
    """The small pack with these rules at the edge, and this for the event in landing."""
    return pack({
        "edge": {"events": {name: {"fields": fields, "filters": list(filters)}}},
        ("landing", "events"): {name: landing or {}},
    })  # fmt: skip


def compiled(pack: Pack, of: EventType | None = None) -> EdgePlan:
    plan = compile_edge(pack, of or event(), Keys(), NOW_US)
    assert plan is not None
    return plan


def faults(pack: Pack) -> list[str]:
    return [violation.line for violation in edge_faults(pack, event())]


# --- what it does


def test_each_operator_leaves_the_fields_own_type_and_says_less():
    rules = {
        "person": rule("drop"), "pulse": rule("null"), "event_time": rule("truncate_time", to="hour"),
        "latitude": PLACE, "longitude": PLACE, "load": rule("top_code", maximum=100.0),
        "count": rule("top_code", maximum=5),
    }  # fmt: skip
    batch = small_batch([
        {"event_time": NOW_US + 1, "person": "A", "latitude": 52.5, "longitude": 13.4, "pulse": 60.0,
         "load": 900.0, "count": 90},
        {"latitude": 10.0, "longitude": None, "load": 7.0},
    ])  # fmt: skip
    made = compiled(edge(rules)).minimise(batch).batch
    assert made.schema == batch.schema
    rows = made.to_pylist()
    assert rows[0]["person"] is rows[0]["pulse"] is None
    assert pc.equal(made.column("event_time").cast(pa.int64()), NOW_US).to_pylist() == [True, True]
    assert (rows[0]["load"], rows[1]["load"], rows[0]["count"]) == (100.0, 7.0, 5)
    assert rows[0]["latitude"] != 52.5
    assert abs(rows[0]["latitude"] - 52.5) < 0.05
    assert (rows[1]["latitude"], rows[1]["longitude"]) == (None, None)
    assert rows[0]["source"] == "press-1"


def test_a_pack_without_an_edge_asks_for_nothing():
    assert compile_edge(pack(), event(), None, NOW_US) is None


def test_filtered_rows_are_counted_by_filter_and_not_taken():
    plan = compiled(edge({"person": rule("drop")}, (
        {"name": "light", "drop_when": [{"field": "load", "op": "<", "value": 2.0}], "source": "a test"},
        {"name": "busy", "drop_when": [{"field": "phase", "op": "==", "value": "busy"}], "source": "a test"},
    )))  # fmt: skip
    batch = small_batch([{"load": 1.0, "phase": "busy"}, {"load": 5.0}, {"load": 5.0, "phase": "busy"}])
    made = plan.minimise(batch)
    assert made.kept.tolist() == [1]
    assert {name: rows.tolist() for name, rows in made.filtered.items()} == {"light": [0], "busy": [2]}


def test_a_keyed_operator_at_the_edge_needs_a_key_store_that_has_the_key():
    wanted = edge({"person": rule("pseudonymise", purpose="care")})
    with pytest.raises(ConfigError, match="no key store"):
        compile_edge(wanted, event(), None, NOW_US)
    with pytest.raises(ConfigError, match="no key here"):
        compile_edge(wanted, event(), Keys(frozenset({"2026-01"})), NOW_US)
    made = compiled(wanted).minimise(small_batch([{"person": "A"}, {"person": "A"}, {}]))
    first, second, third = made.batch.column("person").to_pylist()
    assert first == second != "A"
    assert third is None


def test_a_failing_operator_stops_and_its_message_holds_no_value():
    plan = compiled(edge({"latitude": PLACE, "longitude": PLACE}))
    with pytest.raises(ConfigError) as caught:
        plan.minimise(small_batch([{"latitude": 4711.5, "longitude": 0.0}]))
    assert "4711" not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_plan_with_keys_serves_several_threads():
    plan = compiled(edge({"person": rule("pseudonymise", purpose="care")}))
    batch = small_batch([{"person": f"p{i}"} for i in range(200)])
    wanted, wrong = plan.minimise(batch).batch, []

    def work() -> None:
        for _ in range(20):
            if not plan.minimise(batch).batch.equals(wanted):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not wrong


# --- what it refuses to be


@pytest.mark.parametrize(("fields", "says"), [
    ({"load": rule("drop")}, "never null"),
    ({"load": rule("null")}, "never null"),
    ({"source": rule("truncate", characters=2)}, "it decides the partition"),
    ({"event_time": rule("generalise_date", to="year")}, "it decides the epoch"),
    ({"event_time": rule("generalise_date", to="week")}, "it decides the epoch"),
    ({"count": rule("generalise_number", step=10)}, "outside the field's range"),
    ({"load": rule("bottom_code", minimum=2000.0)}, "outside the field's range"),
    ({"load": rule("constant", value=-1.0)}, "outside the field's range"),
    ({"count": rule("constant", value=1)}, "leaves long, the field is int"),
    ({"phase": rule("constant", value="sleeping")}, "leaves string, the field is enum"),
    ({"load": rule("noise", epsilon=1.0, lower=0.0, upper=900.0)}, "range"),
    ({"latitude": rule("coarsen_location", cell_km2=1.0)}, "makes another column"),
    ({"latitude": PLACE}, "exactly one field per role"),
    ({"latitude": PLACE, "longitude": PLACE | {"with": {"cell_km2": 9.0}}}, "with the same parameters"),
    ({"load": PLACE}, "takes doubles in the roles"),
    ({"latitude": rule("snap_location", cell_km2=0.5), "longitude": PLACE}, "parameters"),
    ({"load": rule("truncate_time", to="hour")}, "works on"),
    ({"pulse": rule("top_code", maximum=9.0)}, "takes none of its tags"),
    ({"nothing": rule("drop")}, "no such field"),
    ({"load": rule("nothing")}, "unknown operator"),
])  # fmt: skip
def test_a_rule_after_which_the_event_would_not_be_one_is_a_violation(fields, says):
    wanted = edge(fields)
    assert says in "; ".join(faults(wanted))
    with pytest.raises(ConfigError, match="edge minimisation"):
        compile_edge(wanted, event(), Keys(), NOW_US)


def test_a_violation_names_field_tags_rule_and_law():
    (line,) = faults(edge({"load": rule("drop", source="GDPR 5(1)(c)")}))
    for part in ("small.load", "[measurement]", "edge.events.small.fields.load", "GDPR 5(1)(c)", "mend: "):
        assert part in line


def test_a_constant_among_the_symbols_of_an_enum_is_fine():
    assert faults(edge({"phase": rule("constant", value="busy")})) == []


@pytest.mark.parametrize("landing", [
    {"filters": [{"name": "f", "source": "a test", "drop_when": [
        {"field": "count", "op": ">", "value": 9, "on_null": "pass"}]}]},
    {"consent": {"purpose": "care", "subject": "count", "mode": "opt-out", "source": "a test"}},
    {"crowd": {"k": 2, "subject": "person", "fields": ["count"], "window": "day", "source": "a test"}},
    {"crowd": {"k": 2, "subject": "count", "fields": ["person"], "window": "day", "source": "a test"}},
])  # fmt: skip
def test_what_a_later_rule_decides_by_stays_as_it_is(landing):
    """Nulled at the edge, a row that landing would have dropped would pass."""
    assert "would decide otherwise" in "; ".join(faults(edge({"count": rule("drop")}, landing=landing)))
    assert faults(edge({"count": rule("drop")})) == []


def test_a_filter_on_what_the_spool_writes_and_landings_own_words_are_refused():
    stamped = {"name": "s", "drop_when": [{"field": "lane", "op": "==", "value": 1}], "source": "a test"}
    wanted = pack({"edge": {"events": {"vehicle_telemetry": {
        "filters": [stamped, stamped], "also_allowed": {"tags": ["quasi"], "source": "a test"},
    }}}})  # fmt: skip
    told = "; ".join(violation.line for violation in edge_faults(wanted, VEHICLE))
    for part in ("which the spool writes afterwards", "two are named s", "also_allowed has no place"):
        assert part in told


def test_snap_location_is_no_operator_of_a_leg():
    from pipeline.policy.typecheck import judge_flow

    wanted = pack({("landing", "rules", "location.precise"): PLACE})
    told = "; ".join(str(fault) for fault in judge_flow(Packs([wanted]).terms("eu", "eu"), event())[1])
    assert "at the edge alone" in told


# --- landing afterwards


def places(rng: np.random.Generator, count: int) -> tuple[pa.Array, pa.Array]:
    """All over the Earth, poles and date line included, and nulls."""
    latitude = np.degrees(np.arcsin(rng.uniform(-1, 1, count)))
    longitude = rng.uniform(-180, 180, count)
    latitude[:4], longitude[:4] = (90, -90, 0, 0), (180, -180, 180, -180)
    return pa.array(latitude), pa.array(longitude, mask=rng.random(count) < 0.05)


@pytest.mark.parametrize("resolution", range(8))
def test_coarsening_a_snapped_place_is_coarsening_the_place(resolution):
    print("seed", SEED)
    latitude, longitude = places(np.random.default_rng(SEED), 20_000)
    parameters = CellParameters(cell_km2=max(1.0, SMALLEST_CELL_KM2[resolution] * 0.99))
    snapped = snap(latitude, longitude, parameters)
    assert to_cells(*snapped, resolution).equals(to_cells(latitude, longitude, resolution))
    again = snap(*snapped, parameters)
    assert again[0].equals(snapped[0])


def vehicles(rng: np.random.Generator, count: int) -> pa.RecordBatch:
    latitude, longitude = places(rng, count)
    made: dict[str, Any] = {
        "latitude": latitude, "longitude": longitude,
        "event_time": pa.array(NOW_US + rng.integers(0, 10**10, count), pa.int64()).cast(pa.timestamp("us")),
        "source": pa.array([f"s{i}" for i in rng.integers(0, 9, count)]),
        "jurisdiction": pa.array([["DE", "FR", "US-CA"][i] for i in rng.integers(0, 3, count)]),
        "vin": pa.array([f"v{i}" for i in rng.integers(0, 9, count)]),
        "driver": pa.array([None if i == 0 else f"d{i}" for i in rng.integers(0, 5, count)]),
        "speed_m_s": pa.array(rng.uniform(0, 60, count), mask=rng.random(count) < 0.2),
        "odometer_km": pa.array(rng.uniform(0, 10**6, count)),
    }  # fmt: skip
    columns = [
        made.get(
            f.name,
            pa.nulls(count, f.type)
            if f.nullable
            else pa.array(np.zeros(count)).cast(pa.int64()).cast(f.type),
        )
        for f in VEHICLE.arrow
    ]
    return pa.RecordBatch.from_arrays(columns, schema=VEHICLE.arrow)


EDGE_OF_VEHICLES = {
    "latitude": PLACE, "longitude": PLACE, "driver": rule("drop"), "trip": rule("drop"),
    "event_time": rule("truncate_time", to="hour"), "speed_m_s": rule("top_code", maximum=40.0),
}  # fmt: skip
SLOW = {"name": "slow", "source": "a test", "drop_when": [
    {"field": "odometer_km", "op": "<", "value": 1000.0, "on_null": "pass"}]}  # fmt: skip


def test_landing_after_the_edge_holds_no_more_than_landing_alone():
    print("seed", SEED)
    rng = np.random.default_rng(SEED)
    wanted = pack({
        "edge": {"events": {"vehicle_telemetry": {"fields": EDGE_OF_VEHICLES}}},
        ("landing", "rules", "jurisdiction"): rule("drop"),
        ("landing", "rules", "transport"): rule("drop"),
        ("landing", "events"): {"vehicle_telemetry": {"filters": [SLOW]}},
    })  # fmt: skip
    plan = compile_plan(Packs([wanted]).terms("eu", "eu"), VEHICLE, Keys(), now_us=NOW_US)
    batch = vehicles(rng, 3_000)
    alone = plan.apply(batch)
    less = compiled(wanted, VEHICLE).minimise(batch)
    after = plan.apply(less.batch)
    assert after.kept.tolist() == alone.kept.tolist()  # no filter was weakened
    for name in alone.batch.schema.names:
        before, now = alone.batch.column(name), after.batch.column(name)
        assert now.null_count >= before.null_count
        assert len(now.unique()) <= len(before.unique())
        if name in ("driver", "trip"):
            assert now.null_count == len(now)
        elif name != "speed_m_s":  # beside those the only one that the edge cuts further than landing does
            assert now.equals(before), name
    assert (
        pc.max(after.batch.column("speed_m_s")).as_py()
        <= 40.0
        < pc.max(alone.batch.column("speed_m_s")).as_py()
    )


def test_what_the_edge_leaves_still_passes_every_check():
    print("seed", SEED)
    batch = vehicles(np.random.default_rng(SEED), 2_000)
    known = frozenset({"DE", "FR", "US-CA"})
    checks = Checks(VEHICLE, LimitsConfig(), known, known)
    assert checks.run(batch, NOW_US + 10**11).all_good
    plan = compiled(edge(EDGE_OF_VEHICLES, name="vehicle_telemetry"), VEHICLE)
    assert checks.run(plan.minimise(batch).batch, NOW_US + 10**11).all_good


# --- in the gate


def minimiser() -> Minimiser:
    """eu keeps less, us-ca everything."""
    heavy = {"name": "fast", "source": "a test", "drop_when": [
        {"field": "odometer_km", "op": ">", "value": 500_000.0, "on_null": "pass"}]}  # fmt: skip
    wanted = edge(EDGE_OF_VEHICLES, (heavy,), name="vehicle_telemetry")
    routes = Routes({"DE": "eu", "FR": "eu", "US-CA": "us-ca"}.get, {"eu": 4, "us-ca": 4})
    return Minimiser(VEHICLE, routes, {"eu": compiled(wanted, VEHICLE)})


def rows_of(batch: pa.RecordBatch) -> list[tuple[Any, ...]]:
    """As the gate makes them: times as microseconds, without what the spool writes."""
    columns = [
        (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
        if name not in STAMPED
    ]
    return list(zip(*columns, strict=True))


def test_one_by_one_and_all_at_once_give_the_same_in_the_same_order():
    print("seed", SEED)
    batch = vehicles(np.random.default_rng(SEED), 600)
    gate = minimiser()
    many = gate.many(batch)
    singles = [gate.one(row) for row in rows_of(batch)]
    assert rows_of(many.rows) == [admitted.rows for admitted in singles if admitted.rows is not None]
    assert many.filtered == sum((admitted.filtered for admitted in singles), start=type(many.filtered)())
    assert set(many.filtered) == {("eu", "fast")}
    assert 0 < many.filtered.total() < 600


class Noted(NoMetrics):
    """Remembers what was filtered."""

    def __init__(self) -> None:
        self.filtered: list[tuple[str, str, str, int]] = []

    def minimised(self, event: str, region: str, rule: str, count: int) -> None:
        self.filtered.append((event, region, rule, count))


def test_the_spool_holds_only_what_is_left_and_receipt_and_metric_say_what_is_not(tmp_path):
    heavy = {"name": "fast", "source": "a test", "drop_when": [
        {"field": "speed_m_s", "op": ">", "value": 50.0, "on_null": "pass"}]}  # fmt: skip
    plan = compiled(edge({"driver": rule("drop")}, (heavy,), name="vehicle_telemetry"), VEHICLE)
    rows = [
        {**row, "speed_m_s": speed}
        for row, speed in zip(vehicle_rows(4), (10.0, 60.0, None, 60.0), strict=True)
    ]
    metrics = Noted()
    with open_spool(tmp_path / "spool.sqlite") as spool:
        client = EdgeClient(
            Config(), schemas(), spool, JURISDICTIONS.get, metrics, {"vehicle_telemetry": {"eu": plan}}
        )
        receipt = client.emit_many("vehicle_telemetry", rows)
        assert (receipt.count, receipt.filtered) == (2, 2)
        fields, given = split(rows[1])
        alone = client.emit("vehicle_telemetry", fields, **given)
        assert (alone.count, alone.filtered) == (0, 1)
        taken = client.emit("vehicle_telemetry", *[split(rows[0])[0]], **split(rows[0])[1])
        assert (taken.count, taken.filtered, taken.first_sequence) == (1, 0, 3)
        held = [row for block in stored(spool) for row in decoded(block.values).to_pylist()]
    assert len(held) == 3
    assert {row["driver"] for row in held} == {None}
    assert {row["speed_m_s"] for row in held} == {10.0, None}
    assert metrics.filtered == [
        ("vehicle_telemetry", "eu", "fast", 2),
        ("vehicle_telemetry", "eu", "fast", 1),
    ]
    for file in tmp_path.iterdir():
        assert b"driver " not in file.read_bytes()  # the dropped value is nowhere on the device


def test_a_call_that_fails_counts_nothing_as_filtered(tmp_path):
    heavy = {"name": "fast", "source": "a test", "drop_when": [
        {"field": "speed_m_s", "op": ">", "value": 50.0, "on_null": "pass"}]}  # fmt: skip
    plan = compiled(edge({}, (heavy,), name="vehicle_telemetry"), VEHICLE)
    rows = [{**row, "speed_m_s": 60.0} for row in vehicle_rows(2)]
    rows[1] |= {"speed_m_s": 1.0, "vin": "v" * 100_000}  # larger than a record may be
    metrics = Noted()
    with open_spool(tmp_path / "spool.sqlite") as spool:
        client = EdgeClient(
            Config(), schemas(), spool, JURISDICTIONS.get, metrics, {"vehicle_telemetry": {"eu": plan}}
        )
        with pytest.raises(RecordError):
            client.emit_many("vehicle_telemetry", rows)
    assert metrics.filtered == []


def test_an_agent_gets_the_plans_of_every_region_and_opens_no_key_store_for_plain_ones():
    def no_keys(region: str) -> Keys:
        raise ConfigError("this agent has no keys")

    plain = edge({"driver": rule("drop")}, name="vehicle_telemetry")
    assert set(edge_plans(Packs([plain]), ["eu"], EVENTS, no_keys)["vehicle_telemetry"]) == {"eu"}
    keyed = edge({"driver": rule("pseudonymise", purpose="care")}, name="vehicle_telemetry")
    with pytest.raises(ConfigError, match="this agent has no keys"):
        edge_plans(Packs([keyed]), ["eu"], EVENTS, no_keys)


def test_a_region_that_asks_for_nothing_is_left_alone():
    batch = vehicles(np.random.default_rng(1), 50)
    californian = batch.filter(pc.equal(batch.column("jurisdiction"), "US-CA"))
    assert minimiser().many(californian).rows is californian
    row = rows_of(californian)[0]
    assert minimiser().one(row).rows is row
