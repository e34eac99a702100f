"""Crossing a border on a real broker: each row once, nothing without a basis, no name of the origin."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from connectors.kafka import KafkaAdmin
from pipeline.balance import BALANCED
from pipeline.config import Config, FlushConfig, RegionConfig
from pipeline.errors import BasisEnded, ConfigError, StoreCorrupt, TransientError
from pipeline.evidence import weigh, weigh_settled
from pipeline.service import Project, started
from tests.border_world import CORE, DEADLINE_S, EVENT, ORIGINS, PARTITIONS, Borders, places
from tests.breaking import Breaking
from tests.conftest import PROJECT
from tests.raw_events import raw_batch


@pytest.fixture
async def borders(cluster, topic_prefix: str, tmp_path: Path) -> Borders:
    """Two origins and a core with two partitions each on the run's broker."""
    return await Borders(project(cluster, topic_prefix, tmp_path)).prepare()


def project(cluster, topic_prefix: str, state: Path, **more) -> Project:
    regions = {name: RegionConfig(cluster=cluster, partitions=PARTITIONS) for name in (*ORIGINS, CORE)}
    flush = FlushConfig(age_s=0.1, rows=700)
    config = Config(state=state, topic_prefix=topic_prefix, regions=regions, flush=flush, **more)
    return Project.open(config)


def rows_of(partition: int, *offsets: range) -> set[tuple[int, int]]:
    return {(partition, offset) for some in offsets for offset in some}


async def test_rows_cross_once_with_their_origin_and_raw_position(borders):
    async with borders.border():
        await borders.deliver("eu", 0, range(0, 200, 2))  # what was filtered at the origin is a hole
        await borders.deliver("eu", 1, range(50))
        counts = await borders.accounted(150)
    assert counts == {("passed", ""): 150}
    rows = await borders.crossed()
    assert sorted(places(rows)) == sorted(rows_of(0, range(0, 200, 2)) | rows_of(1, range(50)))
    assert {row["origin"] for row in rows} == {"eu"}
    pool = borders.pool("eu").to_pylist()
    for row in rows:
        there = pool[row["raw_offset"] * PARTITIONS + row["raw_partition"]]
        assert row["speed_m_s"] == there["speed_m_s"]
        assert row["jurisdiction"] == there["jurisdiction"]
        assert row["event_time"] == there["event_time"]
    assert await borders.records(borders.topics.border("us-ca", CORE).curated(EVENT)) == []
    labels = f'basis="{borders.project.packs.terms("eu", CORE).basis}",event="{EVENT}",from="eu",to="core"'
    assert f"pipeline_border_crossings_total{{{labels}}} 150.0" in borders.metrics()
    assert 'pipeline_transfer_valid_seconds{from="eu",to="core"}' in borders.metrics()


async def test_what_the_origin_delivers_again_is_dropped_also_after_a_restart(borders):
    async with borders.border():
        await borders.deliver("eu", 0, range(300))
        await borders.accounted(300)
        await borders.deliver("eu", 0, range(200, 400))
        await borders.accounted(500)
    async with borders.border():
        await borders.deliver("eu", 0, range(100, 500))
        counts = await borders.accounted(900)
    assert counts == {("passed", ""): 500, ("repeat", ""): 400}
    assert sorted(places(await borders.crossed())) == sorted(rows_of(0, range(500)))


async def test_a_record_that_cannot_be_read_or_is_out_of_place_is_quarantined_and_delays_nothing(borders):
    good = borders.values("eu", 0, range(20)).to_pylist()
    [elsewhere] = borders.values("eu", 1, [20]).to_pylist()
    other = borders.project.schemas
    raw_id = other.latest(EVENT).id.to_bytes(4, "big")
    bad = {
        3: (b"hello", "framing", ""),
        5: (b"\0" + raw_id + good[5][5:], "unknown_schema", ""),
        8: (good[8][:-2], "undecodable", ""),
        11: (elsewhere, "range", "raw_partition"),
    }
    for row, (value, _, _) in bad.items():
        good[row] = value
    async with borders.border():
        await borders.deliver("eu", 0, pa.array(good, pa.binary()))
        counts = await borders.accounted(20)
    assert counts[("passed", "")] == 16
    records = await borders.control("quarantine")
    found = {record["raw_offset"]: (record["reason"], record["field"]) for record in records}
    assert found == {row: (reason, name) for row, (_, reason, name) in bad.items()}
    assert {record["raw_topic"] for record in records} == {borders.topics.curated("eu", EVENT)}
    assert sorted(places(await borders.crossed())) == [(0, n) for n in range(20) if n not in bad]


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_an_interruption_at_each_write_changes_neither_rows_nor_account(borders, moment):
    breaks = Breaking()
    for part in ("stats", "curated", "quarantine", "watermarks"):
        getattr(breaks, moment)[f".{part}"] = [TransientError("broken by the test") for _ in range(2)]
    async with borders.border("eu", breaks):
        await borders.deliver("eu", 0, pa.array([b"rubbish"], pa.binary()))
        await borders.deliver("eu", 0, range(100))
        await borders.accounted(101)
        await borders.deliver("eu", 0, range(50, 250))  # 50 repeats
        await borders.until_crossed(rows_of(0, range(250)))
        counts = await borders.accounted(301)
    assert set(places(await borders.crossed())) == rows_of(0, range(250))
    assert counts == {("passed", ""): 250, ("repeat", ""): 50, ("quarantined", "framing"): 1}


async def test_many_small_batches_cross_however_often_a_write_fails(borders):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    breaks = Breaking()
    breaks.chance = random.Random(seed)
    async with borders.border("eu", breaks):
        for start in range(0, 300, 10):
            await borders.deliver("eu", start // 10 % 2, range(start, start + 10))
        expected = {(n // 10 % 2, n) for n in range(300)}
        await borders.until_crossed(expected)
        counts = await borders.accounted(300)
    assert counts == {("passed", ""): 300}
    assert set(places(await borders.crossed())) == expected


async def test_a_recreated_curated_topic_stops_the_border(borders):
    async with borders.border():
        await borders.deliver("eu", 0, range(10))
        await borders.accounted(10)
    async with started(KafkaAdmin(borders.cluster)) as admin:
        await admin.delete_topics([borders.topics.curated("eu", EVENT)])
    await borders.project.ensure_topics(["eu"])
    with pytest.raises(StoreCorrupt, match="created again"):
        async with borders.border() as task:
            await task


async def test_nothing_crosses_once_the_basis_has_ended(borders):
    yesterday = (datetime.now(UTC) - timedelta(days=1)).date()
    with pytest.raises(BasisEnded, match="ended with"):  # noqa: PT012
        async with borders.border() as task:
            await borders.deliver("eu", 0, range(10))
            await borders.until_crossed(rows_of(0, range(10)))
            for leg in borders.legs.values():
                terms = leg.plan.terms
                ended = terms.transfer.model_copy(update={"valid_until": yesterday})
                leg.plan.terms = replace(terms, transfer=ended)
            await borders.deliver("eu", 0, range(10, 30))
            await asyncio.wait_for(task, DEADLINE_S)
    assert set(places(await borders.crossed())) == rows_of(0, range(10))
    assert (await borders.accounted(10)).total() == 10


def test_a_border_without_a_valid_basis_ends_with_1_before_anything_crosses(cluster, topic_prefix, tmp_path):
    schemas = tmp_path / "schemas"
    shutil.copytree(PROJECT / "schemas", schemas)
    pack = schemas / "policies" / "eu.toml"
    text = pack.read_text(encoding="utf-8")
    assert "[transfers.core]\n" in text
    pack.write_text(text.replace("[transfers.core]\n", "[transfers.core]\nvalid_until = 2024-07-10\n"))
    config = tmp_path / "pipeline.toml"
    bootstrap = f'cluster = {{ bootstrap = "{cluster.bootstrap}" }}'
    config.write_text(
        f'schemas = "{schemas}"\ntopic_prefix = "{topic_prefix}"\n[regions.eu]\n{bootstrap}\n'
        f"[regions.core]\n{bootstrap}\n"
    )
    command = [sys.executable, "-m", "pipeline", "--config", config, "--state", tmp_path / "state"]
    ended = subprocess.run(
        [*map(str, command), "border", "--region", CORE], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1, ended.stderr
    assert "the basis of the transfer" in ended.stderr
    assert "2024-07-10" in ended.stderr


def test_a_region_that_nothing_may_cross_to_is_refused(cluster, topic_prefix, tmp_path):
    opened = project(cluster, topic_prefix, tmp_path)
    with pytest.raises(ConfigError, match="what is not permitted is denied"):
        opened.packs.terms("eu", "us-ca")
    assert opened.origins("us-ca") == ()
    assert opened.origins(CORE) == ORIGINS


async def test_two_origins_meet_in_one_store_and_its_balance_is_exact(borders):
    async with (
        borders.landing("eu"), borders.landing("us-ca"), borders.store("eu"), borders.store("us-ca"),
        borders.store(CORE), borders.border("eu"), borders.border("us-ca"),
    ):  # fmt: skip
        await borders.emit("eu", 0, 400)
        await borders.emit("us-ca", 0, 300)
        await borders.emit("us-ca", 1, 200, first=301)
        await borders.emit("us-ca", 1, 100, first=401)  # sent again
        # In a thread with a loop of its own: opening stores would hold up the stages.
        at_any_moment = await asyncio.to_thread(asyncio.run, weigh(borders.project, CORE))
        assert at_any_moment.findings == ()
        settling = weigh_settled(borders.project, CORE, DEADLINE_S, distinct=True)
        report = await asyncio.to_thread(asyncio.run, settling)
    assert (report.status, report.findings, report.remarks) == (BALANCED, (), ())
    assert (report.accepted, report.stored, report.repeats, report.unread) == (900, 900, 0, 0)
    stored = borders.stored("origin, raw_partition, raw_offset")
    assert [tuple(row.values()) for row in stored] == (
        [("eu", 0, n) for n in range(400)]
        + [("us-ca", 0, n) for n in range(300)]
        + [("us-ca", 1, n) for n in range(200)]
    )
    await leaves_no_trace_of_origins(borders, {"eu": 400, "us-ca": 300})


async def leaves_no_trace_of_origins(borders: Borders, counts: dict[str, int]) -> None:
    """No identifier and no pseudonym of an origin is in any topic of the core, or in its store's files."""
    known = set()
    for origin, count in counts.items():
        raw = raw_batch(borders.schemas, EVENT, count, region=origin)
        values = await borders.records(borders.topics.curated(origin, EVENT))
        codec = borders.schemas.codec(borders.schemas.latest(f"{origin}.curated.{EVENT}").id)
        curated, _, _ = codec.decode(pa.array([value[5:] for value in values], pa.binary()))
        for batch in (raw, curated):
            for name in {"source", "vin", "driver", "trip"} & set(batch.schema.names):
                known |= {str(value).encode() for value in batch.column(name).to_pylist() if value}
    assert len(known) > 40
    topics = [spec.name for spec in borders.project.topic_specs(CORE)]
    everything = [value for topic in topics for value in await borders.records(topic) if value]
    everything += [file.read_bytes() for file in borders.project.config.store_path(CORE).rglob("*.parquet")]
    assert len(everything) > 900
    joined = b"\n".join(everything)
    assert [name for name in known if name in joined] == []
