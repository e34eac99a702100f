"""policy plan: what it says changes is what changes, and no value is ever printed."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from connectors.lake import Lake
from pipeline.config import FlushConfig
from pipeline.errors import ConfigError
from pipeline.policy_comparison import proposed
from pipeline.store.account import RawPartition, Source, StatsRecord
from pipeline.store.buffer import Buffer, Rows
from tests.raw_events import raw_batch, replaced
from tests.unit.policy.cases import NOW_US
from tests.unit.policy.policy_files import CANARY, EVENT, PolicyFiles

LOW_SCORE = 'op = "<", value = 0.05'
HOURLY = 'operator = "truncate_time"\nwith = { to = "hour" }'


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> PolicyFiles:
    return PolicyFiles(tmp_path_factory.mktemp("files"))


def plan(
    files: PolicyFiles, new: Path, *more: str | Path, file: Path | None = None
) -> dict[str, dict[str, Any]]:
    """The legs by destination; what is printed for people is looked at too."""
    arguments = ("policy", "plan", "--new", new, "--event", EVENT, "--region", "eu", *more)
    if "--snapshot" not in more:
        arguments += ("--file", file or files.raw)
    told = files.json(*arguments)
    return {leg["to"]: leg for leg in told["legs"]}


def packs(files: PolicyFiles) -> Path:
    """The packs in use."""
    return files.folder / "schemas" / "policies"


def column(leg: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (c for c in leg["columns"] if c["column"] == name)
    return found


def test_the_same_packs_change_nothing(files):
    legs = plan(files, packs(files))
    assert legs["eu"]["keys"] == "real"
    for leg in legs.values():
        assert leg["status"] == "permitted"
        assert leg["moved"] == []
        assert leg["rows"] == 3_000
        for c in leg["columns"]:
            assert (c["kinds"], c["changed"], c["newly_null"]) == ([], 0.0, 0.0)
            assert c["distinct"][0] == c["distinct"][1]


def test_a_stricter_filter_takes_exactly_the_rows_between_the_two_bounds(files):
    strict = files.pack(LOW_SCORE, 'op = "<", value = 0.9')
    legs = plan(files, strict)
    person = pc.equal(files.batch.column("label"), "person")
    between = pc.and_(
        pc.greater_equal(files.batch.column("score"), 0.05), pc.less(files.batch.column("score"), 0.9)
    )
    wanted = pc.sum(pc.and_(between, pc.invert(person))).as_py()
    assert wanted > 0
    for leg in (legs["eu"], legs["core"]):
        assert leg["newly_dropped"] == {"filtered: low_score": wanted}
        assert leg["newly_passing"] == {}
        assert leg["passed"][0] - leg["passed"][1] == wanted
    back = plan(files, packs(files), "--old", files.pack(LOW_SCORE, 'op = "<", value = 0.9'))
    assert back["eu"]["newly_passing"] == {"filtered: low_score": wanted}


def test_a_changed_parameter_is_told_with_the_share_of_values_it_changes(files):
    leg = plan(files, files.pack(HOURLY, HOURLY.replace("hour", "day")))["eu"]
    found = column(leg, "event_time")
    kept = files.project.plan("eu", "eu", files.event).apply(files.batch).batch.column("event_time")
    days = kept.cast(pa.int64()).to_numpy() % 86_400_000_000 != 0
    assert found["kinds"] == ["parameters"]
    assert found["operator"] == ["truncate_time (to = hour)", "truncate_time (to = day)"]
    assert found["changed"] == pytest.approx(np.mean(days), abs=1e-5)
    assert found["distinct"][1] == 1 <= found["distinct"][0]
    assert column(leg, "camera")["changed"] == 0.0


def test_added_removed_nulled_and_another_operator(files):
    camera = '\n[landing.events.object_detection.fields.camera]\noperator = "null"\nsource = "a test"\n'
    width = '\n[landing.events.object_detection.fields.box_width_px]\noperator = "drop"\nsource = "a test"\n'
    frame = '[landing.events.object_detection.fields.frame]\noperator = "drop"'
    changed = files.pack(frame, frame.replace('"drop"', '"keep"'))
    changed.write_text(changed.read_text() + camera + width)
    leg = plan(files, changed)["eu"]
    assert column(leg, "frame")["kinds"] == ["added"]
    assert column(leg, "frame")["distinct"][0] is None
    assert column(leg, "box_width_px")["kinds"] == ["removed"]
    assert column(leg, "camera")["kinds"] == ["tags", "operator"]
    assert column(leg, "camera")["tags"] == [["pseudonym"], ["category"]]
    assert (column(leg, "camera")["changed"], column(leg, "camera")["newly_null"]) == (1.0, 1.0)
    assert column(leg, "camera")["distinct"] == [7, 0]


def test_a_border_that_closes_or_opens_is_told(files):
    closed = files.pack("[transfers.core]", '[transfers.core]\nonly_events = ["machine_reading"]')
    leg = plan(files, closed, "--to", "core", file=curated(files))["core"]
    assert leg["status"] == "no longer permitted"
    assert leg["newly_dropped"] == {"denied: no such leg": leg["passed"][0]}
    assert leg["passed"][0] > 0
    opened = plan(files, packs(files), "--to", "core", "--old", closed, file=curated(files))
    assert opened["core"]["status"] == "newly permitted"
    assert opened["core"]["newly_passing"] == {"denied: no such leg": leg["passed"][0]}


def test_a_jurisdiction_that_moves_away_is_refused_after(files):
    moved = files.pack('"DE", ', "")
    leg = plan(files, moved)["eu"]
    german = pc.sum(pc.equal(files.batch.column("jurisdiction"), "DE")).as_py()
    dropped = sum(move["rows"] for move in leg["moved"] if "jurisdiction" in move["after"])
    assert dropped == german > 0


def test_packs_that_do_not_type_check_end_with_1_and_their_violations(files):
    bad = files.pack('operator = "pseudonymise"\nwith = { purpose = "maintenance" }', 'operator = "keep"')
    result = files.call(
        "policy", "plan", "--new", bad, "--event", EVENT, "--region", "eu", "--file", files.raw
    )
    assert result.exit_code == 1
    assert f"{EVENT}.camera [identifier.device] | to eu" in result.output
    as_json = files.call(
        "--json", "policy", "plan", "--new", bad, "--event", EVENT, "--region", "eu", "--file", files.raw
    )
    assert as_json.exit_code == 1
    assert "violations" in as_json.output


def test_without_the_regions_keys_both_sides_run_under_example_keys(files, tmp_path):
    moved = files.folder / "state" / "keys"
    shutil.move(moved, tmp_path / "keys")
    try:
        leg = plan(files, packs(files))["eu"]
    finally:
        shutil.move(tmp_path / "keys", moved)
    assert leg["keys"] == "example"
    assert column(leg, "camera")["changed"] == 0.0


def curated(files: PolicyFiles) -> Path:
    """What eu lands of the events, as a file."""
    out = files.folder / "curated.parquet"
    if not out.exists():
        files.json("policy", "apply", files.raw, "--event", EVENT, "--region", "eu", "--out", out)
    return out


def test_curated_rows_cannot_say_what_another_landing_would_do(files):
    constant = 'operator = "constant"\nwith = { value = "x" }\nsource = "a test"\n'
    changed = files.pack(HOURLY, HOURLY)
    text = changed.read_text()
    changed.write_text(f"{text}\n[landing.events.object_detection.fields.box_x_px]\n{constant}")
    result = files.call(
        "policy", "plan", "--new", changed, "--event", EVENT, "--region", "eu", "--to", "core",
        "--file", curated(files),
    )  # fmt: skip
    assert isinstance(result.exception, ConfigError)
    assert "compare from raw events" in str(result.exception)


def test_a_snapshot_of_the_store_serves_the_borders(files):
    rows = pq.read_table(curated(files)).combine_chunks().to_batches()[0]
    rows = rows.replace_schema_metadata(None)
    count = len(rows)
    rows = rows.append_column("raw_partition", pa.array([0] * count, pa.int32()))
    rows = rows.append_column("raw_offset", pa.array(range(count), pa.int64()))
    path = files.project.config.store_path("eu")
    with closing(Lake(path, "eu")) as lake:
        lake.ensure_table(EVENT, rows.schema)
        buffer = Buffer(FlushConfig())
        source, stats = Source("c", f"eu.curated.{EVENT}", "i1", 0), Source("c", "eu.stats", "i2", 0)
        buffer.add_rows(source, Rows(EVENT, [rows], count, 0))
        buffer.advance(source, 0, count, 0.0)
        raw = RawPartition(f"eu.raw.{EVENT}", "i3", 0)
        buffer.add_stats(stats, [StatsRecord(raw, EVENT, 0, count, {("passed", ""): count}, (), "p")])
        buffer.advance(stats, 0, count, 0.0)
        snapshot = lake.commit(buffer.tables(), buffer.account(1), buffer.expected).snapshot
    legs = plan(files, packs(files), "--snapshot", str(snapshot))
    assert "eu" not in legs
    assert (legs["core"]["rows"], legs["core"]["passed"]) == (count, [count, count])


def test_a_null_is_a_value_like_any_other(files, tmp_path):
    """Samples hold null for what was not new: the same packs make none of them new, one that drops does."""
    batch = raw_batch(files.project.schemas, "vehicle_telemetry", 500)
    speeds = [None if i % 4 == 0 else float(i % 50) for i in range(500)]
    pq.write_table(pa.Table.from_batches([replaced(batch, "speed_m_s", speeds)]), tmp_path / "raw.parquet")
    speed = '[landing.events.vehicle_telemetry.fields.speed_m_s]\noperator = "null"\nsource = "a test"\n'
    changed = files.pack(HOURLY, HOURLY)
    changed.write_text(f"{changed.read_text()}\n{speed}")
    for new, share in ((packs(files), 0.0), (changed, 0.75)):
        (leg, *_) = files.json(
            "policy", "plan", "--new", new, "--event", "vehicle_telemetry", "--region", "eu",
            "--file", tmp_path / "raw.parquet",
        )["legs"]  # fmt: skip
        found = column(leg, "speed_m_s")
        assert (found["changed"], found["newly_null"]) == (share, share)


def test_people_read_the_same_without_a_value(files):
    strict = files.pack(HOURLY, HOURLY.replace("hour", "day"))
    shown = files.call(
        "policy", "plan", "--new", strict, "--event", EVENT, "--region", "eu", "--file", files.raw
    )
    assert shown.exit_code == 0
    assert CANARY not in shown.output
    assert "eu to eu: permitted; 3,000 events" in shown.output
    assert "event_time: parameters: truncate_time (to = hour) -> truncate_time (to = day)" in shown.output


def test_the_limit_bounds_the_events(files):
    assert plan(files, packs(files), "--limit", "70")["eu"]["rows"] == 70


@pytest.mark.parametrize(("more", "says"), [
    ((), "expected one of --topic"), (("--topic", "--snapshot", "1"), "expected one of --topic"),
    (("--file", "x", "--new", "nowhere.toml"), "no such file"),
])  # fmt: skip
def test_wrong_use_is_a_config_error(files, more, says):
    result = files.call("policy", "plan", "--new", packs(files), "--event", EVENT, "--region", "eu", *more)
    assert isinstance(result.exception, ConfigError)
    assert says in str(result.exception)


def test_one_proposed_pack_takes_its_regions_place_by_what_it_says_of_itself(files, tmp_path):
    renamed = tmp_path / "draft.toml"
    shutil.copy(files.pack(LOW_SCORE, 'op = "<", value = 0.5'), renamed)
    found = proposed(files.project, renamed, NOW_US)
    assert found.violations == ()
    assert found.packs.regions == files.project.packs.regions
    assert found.packs.pack("eu").hash != files.project.packs.pack("eu").hash
    assert found.packs.pack("br").hash == files.project.packs.pack("br").hash
