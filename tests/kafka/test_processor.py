"""The landing processor on a real broker: every position ends once, whatever interrupts."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from connectors.kafka import KafkaAdmin, KafkaReader, KafkaWriter
from connectors.kafka_scan import LogScanner
from pipeline.codec import unframe
from pipeline.config import Config, RegionConfig
from pipeline.control_records import decode_control
from pipeline.errors import StoreCorrupt, TransientError
from pipeline.metrics import ProcessorMetrics
from pipeline.processor import Ports, Processor, StateLog
from pipeline.service import Project, started
from tests.breaking import Breaking
from tests.raw_events import framed, raw_batch, replaced

EVENT, REGION, DEADLINE_S = "vehicle_telemetry", "eu", 60.0


@pytest.fixture
def project(cluster, topic_prefix: str, tmp_path: Path) -> Project:
    """A region with two partitions on the run's broker, keys made."""
    region = RegionConfig(cluster=cluster, partitions=2)
    config = Config(state=tmp_path, topic_prefix=topic_prefix, regions={REGION: region})
    project = Project.open(config)
    project.create_keys([REGION])
    return project


class Landing:
    """A processor under test, with what is needed to feed it and to look at what it made."""

    def __init__(self, project: Project) -> None:
        self.project, self.cluster = project, project.cluster(REGION)
        self.topics, self.schemas = project.topics, project.schemas
        self.raw = self.topics.raw(REGION, EVENT)
        self.registry = CollectorRegistry()
        self.scan = LogScanner(self.cluster, project.config.limits)

    @asynccontextmanager
    async def running(self, breaks: Breaking | None = None):
        """Run one processor instance; ends it in an orderly way."""
        self.registry = CollectorRegistry()
        async with started(KafkaAdmin(self.cluster)) as admin:
            await admin.ensure_topics(self.project.topic_specs(REGION))
            ids = await admin.topic_ids([self.raw])
        state = StateLog(self.schemas, self.scan, self.topics.watermarks(REGION), self.topics.stats(REGION))
        group = f"{self.topics.prefix}group"
        reader = KafkaReader(self.cluster, group, self.project.config.limits)
        async with started(reader), started(KafkaWriter(self.cluster)) as writer:
            if breaks is not None:
                breaks._writer = writer
            processor = Processor(
                {self.raw: self.project.leg(REGION, EVENT)}, ids,
                Ports(reader, breaks or writer, state), self.schemas, self.topics.landing(REGION),
                ProcessorMetrics(self.registry, REGION),
            )  # fmt: skip
            stop = asyncio.Event()
            task = asyncio.create_task(processor.run(stop))
            try:
                ready = asyncio.create_task(processor.ready.wait())
                await asyncio.wait((ready, task), timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
                ready.cancel()
                yield task
            finally:
                stop.set()
                if not task.done():
                    await asyncio.wait_for(task, DEADLINE_S)
                elif sys.exc_info()[0] is None:
                    task.result()

    async def send(self, partition: int, values: pa.BinaryArray) -> None:
        async with started(KafkaWriter(self.cluster)) as writer:
            await writer.send(self.raw, partition, values)

    async def records(self, topic: str) -> list[tuple[int, bytes]]:
        """(partition, value) of all records of a topic."""
        found = []
        for partition in range(2):
            async for fetched in self.scan(topic, partition, 0):
                found += [(partition, value) for value in fetched.values.to_pylist()]
        return found

    async def stats(self) -> list[dict]:
        values = await self.records(self.topics.stats(REGION))
        return [decode_control(self.schemas, value)[1] for _, value in values]

    async def quarantined(self) -> list[dict]:
        values = await self.records(self.topics.quarantine(REGION))
        return [decode_control(self.schemas, value)[1] for _, value in values]

    async def curated(self) -> list[dict]:
        values = [value for _, value in await self.records(self.topics.curated(REGION, EVENT))]
        if not values:
            return []
        ids, bodies = unframe(pa.array(values, pa.binary()))
        batch, _, bad = self.schemas.codec(int(ids[0])).decode(bodies)
        assert not bad
        return batch.to_pylist()

    async def accounted(self, count: int) -> Counter:
        """Wait until the stats cover ``count`` positions; the counts by (outcome, reason)."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                stats = await self.stats()
                counts: Counter = Counter()
                for record in stats:
                    counts.update({(c["outcome"], c["reason"]): c["count"] for c in record["counts"]})
                if sum(counts.values()) >= count:
                    return counts
                await asyncio.sleep(0.05)


def positions(rows: list[dict]) -> list[tuple[int, int]]:
    return [(row["raw_partition"], row["raw_offset"]) for row in rows]


async def prepared(project: Project) -> Landing:
    async with started(KafkaAdmin(project.cluster(REGION))) as admin:
        await admin.ensure_topics(project.topic_specs(REGION))
    return Landing(project)


async def test_good_events_land_once_with_their_raw_position(project):
    landing = await prepared(project)
    batch = raw_batch(landing.schemas, EVENT, 3000)
    values = framed(landing.schemas, EVENT, batch)
    async with landing.running():
        single = values[0].as_py()  # Avro single-object encoding is read as well
        header = b"\xc3\x01" + bytes.fromhex(landing.schemas.latest(EVENT).fingerprint)[::-1]
        await landing.send(0, pa.array([header + single[5:]], pa.binary()))
        await landing.send(0, values[1:2000])
        await landing.send(1, values[2000:])
        counts = await landing.accounted(3000)
    rows = await landing.curated()
    assert counts == {("passed", ""): 3000}
    assert sorted(positions(rows)) == [(0, i) for i in range(2000)] + [(1, i) for i in range(1000)]
    assert set(rows[0]) >= {"location_cell", "source", "event_time"}
    assert not {"latitude", "longitude", "driver", "spool"} & set(rows[0])
    identifiers = set(batch.column("source").to_pylist()) | set(batch.column("vin").to_pylist())
    everything = [value for topic in ("curated", "rest") for value in await _all_bytes(landing, topic)]
    leaked = [name for name in identifiers if any(name.encode() in value for value in everything)]
    assert leaked == []


async def _all_bytes(landing: Landing, which: str) -> list[bytes]:
    t = landing.topics
    names = [t.curated(REGION, EVENT)] if which == "curated" else [t.stats(REGION), t.quarantine(REGION)]
    return [value for name in names for _, value in await landing.records(name)]


async def test_each_kind_of_bad_record_is_quarantined_by_position_and_delays_nothing(project):
    landing = await prepared(project)
    good = raw_batch(landing.schemas, EVENT, 40)
    values = framed(landing.schemas, EVENT, good).to_pylist()
    now_us = good.column("received_time").cast(pa.int64()).to_numpy()
    bad = {
        0: (b"", "framing"),
        3: (b"\x01\x02\x03\x04\x05\x06", "framing"),
        5: (b"\x00\x7f\xff\xff\xff" + values[5][5:], "unknown_schema"),
        7: (values[7][:-3], "undecodable"),
        9: (values[9] + b"\x00", "undecodable"),
        11: (values[11][:5] + b"\xff" * 70_000, "oversize"),
        13: (_changed(landing, good, 13, "speed_m_s", -1.0), "range"),
        15: (_changed(landing, good, 15, "speed_m_s", float("nan")), "not_finite"),
        17: (_changed(landing, good, 17, "latitude", 91.0), "range"),
        19: (_changed(landing, good, 19, "event_time", int(now_us[19]) + 86_400_000_000), "time_future"),
        21: (_changed(landing, good, 21, "event_time", 0), "time_ancient"),
        23: (_changed(landing, good, 23, "jurisdiction", ""), "jurisdiction_missing"),
        25: (_changed(landing, good, 25, "jurisdiction", "XX"), "jurisdiction_unknown"),
        27: (values[27][:5] + b"\x04\xff\xfe" + values[27][6 + values[27][5] // 2 :], "utf8"),
    }
    for row, (value, _) in bad.items():
        values[row] = value
    async with landing.running():
        await landing.send(0, pa.array(values, pa.binary()))
        counts = await landing.accounted(40)
        assert counts.pop(("passed", "")) == 40 - len(bad)
        assert counts == Counter(("quarantined", reason) for _, reason in bad.values())
        later = raw_batch(landing.schemas, EVENT, 5, first_sequence=41)
        await landing.send(1, framed(landing.schemas, EVENT, later))
        await landing.accounted(45)
    found = {record["raw_offset"]: record["reason"] for record in await landing.quarantined()}
    assert found == {row: reason for row, (_, reason) in bad.items()}
    assert sorted(positions(await landing.curated())) == sorted(
        [(0, i) for i in range(40) if i not in bad] + [(1, i) for i in range(5)]
    )


def _changed(landing: Landing, batch: pa.RecordBatch, row: int, name: str, value) -> bytes:
    one = batch.slice(row, 1)
    if name == "event_time":
        value = pa.scalar(value, pa.int64()).cast(pa.timestamp("us")).as_py()
    return framed(landing.schemas, EVENT, replaced(one, name, [value])).to_pylist()[0]


async def test_what_the_edge_sends_again_is_dropped_also_after_a_restart(project):
    landing = await prepared(project)
    values = framed(landing.schemas, EVENT, raw_batch(landing.schemas, EVENT, 500))
    async with landing.running():
        await landing.send(0, values[:300])
        await landing.accounted(300)
        await landing.send(0, values[200:400])
        await landing.accounted(500)
    async with landing.running():
        await landing.send(0, values[100:500])
        counts = await landing.accounted(900)
    assert counts == {("passed", ""): 500, ("repeat", ""): 400}
    rows = await landing.curated()
    assert len(set(positions(rows))) == 500


@pytest.mark.parametrize("part", ["stats", "curated", "quarantine", "watermarks"])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_an_interruption_at_any_write_changes_neither_rows_nor_account(project, part, moment):
    landing = await prepared(project)
    batch = raw_batch(landing.schemas, EVENT, 200)
    values = framed(landing.schemas, EVENT, replaced(batch, "speed_m_s", [-1.0] + [1.0] * 199))
    breaks = Breaking(None)
    getattr(breaks, moment)[f".{part}"] = [TransientError("broken by the test") for _ in range(3)]
    async with landing.running(breaks):
        await landing.send(0, values[:100])
        await landing.accounted(100)
        await landing.send(0, values[50:])  # 50 repeats
        async with asyncio.timeout(DEADLINE_S):
            while len(set(positions(await landing.curated()))) < 199:  # noqa: ASYNC110 (a broker's topic)
                await asyncio.sleep(0.05)
    rows = await landing.curated()
    assert sorted(set(positions(rows))) == [(0, i) for i in range(250) if i not in {0, *range(100, 150)}]
    # First words only, as the store counts them: a record that covers what is decided says nothing new.
    end, counts = 0, Counter()
    for record in await landing.stats():
        if record["first_offset"] == end:
            end = record["next_offset"]
            counts.update({c["outcome"]: c["count"] for c in record["counts"]})
        else:
            assert record["next_offset"] <= end
    assert (end, counts) == (250, {"passed": 199, "repeat": 50, "quarantined": 1})


async def test_many_small_batches_get_through_however_often_a_write_fails(project):
    landing = await prepared(project)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    breaks = Breaking(None)
    breaks.chance = random.Random(seed)
    values = framed(landing.schemas, EVENT, raw_batch(landing.schemas, EVENT, 600))
    async with landing.running(breaks), started(KafkaWriter(landing.cluster)) as writer:
        for start in range(0, 600, 10):
            await writer.send(landing.raw, start // 10 % 2, values[start : start + 10])
        async with asyncio.timeout(DEADLINE_S):
            while len(set(positions(await landing.curated()))) < 600:  # noqa: ASYNC110 (a broker's topic)
                await asyncio.sleep(0.05)
    ends = {0: 0, 1: 0}
    for record in await landing.stats():
        ends[record["raw_partition"]] = max(ends[record["raw_partition"]], record["next_offset"])
        assert {c["outcome"] for c in record["counts"]} == {"passed"}
    assert ends == {0: 300, 1: 300}


async def test_two_instances_share_the_partitions_and_one_that_ends_is_replaced(project):
    landing = await prepared(project)
    values = framed(landing.schemas, EVENT, raw_batch(landing.schemas, EVENT, 4000))
    async with landing.running():
        async with landing.running(Breaking(None)):
            await landing.send(0, values[:1000])
            await landing.send(1, values[1000:2000])
            await landing.accounted(2000)
        await landing.send(0, values[2000:3000])
        await landing.send(1, values[3000:])
        counts = await landing.accounted(4000)
    assert counts == {("passed", ""): 4000}
    assert len(set(positions(await landing.curated()))) == 4000


async def test_a_recreated_raw_topic_stops_the_processor(project):
    landing = await prepared(project)
    values = framed(landing.schemas, EVENT, raw_batch(landing.schemas, EVENT, 10))
    async with landing.running():
        await landing.send(0, values)
        await landing.accounted(10)
    async with started(KafkaAdmin(landing.cluster)) as admin:
        await admin.delete_topics([landing.raw])
    with pytest.raises(StoreCorrupt, match="created again"):
        async with landing.running() as task:
            await task


async def test_metrics_name_outcomes_and_no_source(project):
    landing = await prepared(project)
    batch = raw_batch(landing.schemas, EVENT, 100)
    async with landing.running():
        await landing.send(0, framed(landing.schemas, EVENT, batch))
        await landing.accounted(100)
    text = generate_latest(landing.registry).decode()
    labels = 'event="vehicle_telemetry",origin="eu",outcome="passed",reason="",region="eu"'
    assert f"pipeline_processor_processed_events_total{{{labels}}} 100.0" in text
    assert not any(name in text for name in set(batch.column("source").to_pylist()))
