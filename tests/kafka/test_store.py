"""The store writer on a real broker, behind a real processor: raw records to rows and a balanced account."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, TopicPartition
from prometheus_client import CollectorRegistry, generate_latest

from connectors.kafka import KafkaAdmin, KafkaReader, KafkaWriter
from connectors.kafka_scan import LogScanner
from connectors.lake import Lake, open_reader
from pipeline.balance import BALANCED, BalanceReport, Evidence, balance
from pipeline.config import Config, FlushConfig, RegionConfig
from pipeline.edge.ledger import LaneLedger
from pipeline.errors import StoreCorrupt
from pipeline.metrics import ProcessorMetrics, StoreMetrics
from pipeline.processor import Ports, Processor, StateLog
from pipeline.service import Project, started
from pipeline.store import Inflow, StorePlan, StorePorts, StoreWriter
from tests.raw_events import framed, raw_batch, replaced

REGION, EVENTS, DEADLINE_S = "eu", ("meter_reading", "vehicle_telemetry"), 60.0


@pytest.fixture
async def region(cluster, topic_prefix: str, tmp_path: Path) -> Region:
    """A region with two partitions on the run's broker, keys made, topics there."""
    config = Config(
        state=tmp_path,
        topic_prefix=topic_prefix,
        regions={REGION: RegionConfig(cluster=cluster, partitions=2)},
        flush=FlushConfig(age_s=0.1, rows=700),
    )
    project = Project.open(config)
    project.create_keys([REGION])
    await project.ensure_topics([REGION])
    return Region(project)


class Region:
    """Processor and store writer of one region, started and stopped at will, and what they made."""

    def __init__(self, project: Project) -> None:
        self.project, self.topics, self.schemas = project, project.topics, project.schemas
        self.cluster, self.path = project.cluster(REGION), project.config.store_path(REGION)
        self.registry = CollectorRegistry()
        self.accepted = 0

    @asynccontextmanager
    async def processor(self) -> AsyncIterator[None]:
        legs = {self.topics.raw(REGION, event): self.project.leg(REGION, event) for event in EVENTS}
        async with started(KafkaAdmin(self.cluster)) as admin:
            ids = await admin.topic_ids(list(legs))
        scan = LogScanner(self.cluster, self.project.config.limits)
        state = StateLog(self.schemas, scan, self.topics.watermarks(REGION), self.topics.stats(REGION))
        reader = KafkaReader(self.cluster, f"{self.topics.prefix}processor", self.project.config.limits)
        async with started(reader), started(KafkaWriter(self.cluster)) as writer:
            processor = Processor(
                legs, ids, Ports(reader, writer, state), self.schemas, self.topics.landing(REGION),
                ProcessorMetrics(CollectorRegistry(), REGION),
            )  # fmt: skip
            async with running(processor):
                yield

    @asynccontextmanager
    async def writer(self) -> AsyncIterator[asyncio.Task[None]]:
        self.registry = CollectorRegistry()
        inflow = Inflow(self.topics.landing(REGION), EVENTS)
        plan = StorePlan((inflow,), self.project.door(REGION), self.project.config.flush)
        reader = KafkaReader(self.cluster, f"{self.topics.prefix}store", self.project.config.limits)
        lake = Lake(self.path, REGION)
        try:
            async with started(KafkaAdmin(self.cluster)) as admin, started(reader):
                ports = StorePorts(lake, reader, admin, StoreMetrics(self.registry, REGION))
                async with running(StoreWriter(ports, self.schemas, plan)) as task:
                    yield task
        finally:
            lake.close()

    async def send(self, event: str, partition: int, values: pa.BinaryArray, *, again: int = 0) -> None:
        """To the raw topic; ``again`` of them were sent before."""
        async with started(KafkaWriter(self.cluster)) as writer:
            await writer.send(self.topics.raw(REGION, event), partition, values)
        self.accepted += len(values) - again

    def events(self, event: str, count: int, first: int = 1) -> pa.BinaryArray:
        return framed(self.schemas, event, raw_batch(self.schemas, event, count, first_sequence=first))

    async def balance(self, *, distinct: bool = False) -> BalanceReport:
        """Of what the test has sent, as if one spool had."""
        ledgers = [LaneLedger(1, 1, REGION, self.accepted, self.accepted, 0, 0)]
        with open_reader(self.path) as reader:
            totals = await asyncio.to_thread(reader.totals, distinct=distinct)
        raw_topics = frozenset(self.topics.raw(REGION, event) for event in EVENTS)
        names = [*raw_topics, *(self.topics.curated(REGION, e) for e in EVENTS), self.topics.stats(REGION)]
        async with started(KafkaAdmin(self.cluster)) as admin:
            ends = await admin.end_offsets([(name, number) for name in names for number in range(2)])
        return balance(Evidence(ledgers, totals, ends, raw_topics, ledgers))

    async def settled(self) -> BalanceReport:
        """Wait until nothing moves; the report then, which is balanced or names what is off."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                report = await self.balance()
                if report.status != "open":
                    return await self.balance(distinct=True)
                await asyncio.sleep(0.1)

    def stored(self, event: str) -> list[tuple[int, int]]:
        """(partition, raw offset) of every row."""
        with open_reader(self.path) as reader:
            rows = reader.query(f"SELECT raw_partition, raw_offset FROM {event} ORDER BY ALL").to_pydict()
        return list(zip(rows["raw_partition"], rows["raw_offset"], strict=True))


@asynccontextmanager
async def running(stage: Processor | StoreWriter) -> AsyncIterator[asyncio.Task[None]]:
    """Run a stage; wait until it is ready, end it in an orderly way."""
    stop = asyncio.Event()
    task = asyncio.create_task(stage.run(stop))
    ready = asyncio.create_task(stage.ready.wait())
    try:
        await asyncio.wait((ready, task), timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield task
    finally:
        ready.cancel()
        stop.set()
        await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), DEADLINE_S)


async def test_raw_records_become_rows_and_the_account_is_balanced(region):
    values = region.events("vehicle_telemetry", 2000)
    bad = replaced(
        raw_batch(region.schemas, "vehicle_telemetry", 1, first_sequence=2001), "speed_m_s", [-1.0]
    )
    async with region.processor(), region.writer():
        await region.send("vehicle_telemetry", 0, values)
        await region.send("vehicle_telemetry", 0, framed(region.schemas, "vehicle_telemetry", bad))
        await region.send("vehicle_telemetry", 0, values[1500:], again=500)  # a forwarder that crashed
        await region.send("meter_reading", 1, region.events("meter_reading", 1000))
        report = await region.settled()
    assert (report.status, report.findings) == (BALANCED, ())
    assert (report.accepted, report.stored, report.quarantined, report.repeats) == (3001, 3000, 1, 500)
    assert region.stored("vehicle_telemetry") == [(0, offset) for offset in range(2000)]
    assert region.stored("meter_reading") == [(1, offset) for offset in range(1000)]
    metrics = generate_latest(region.registry).decode()
    assert 'pipeline_store_stored_rows_total{event="vehicle_telemetry",region="eu"} 2000.0' in metrics
    assert 'pipeline_end_to_end_seconds_count{event="meter_reading",region="eu"} 1000.0' in metrics


async def test_a_store_that_was_away_reads_on_and_is_told_nothing_twice(region):
    async with region.processor():
        await region.send("meter_reading", 0, region.events("meter_reading", 500))
        async with region.writer():
            await region.settled()
        await region.send("meter_reading", 0, region.events("meter_reading", 700, first=501))
        async with region.writer():
            report = await region.settled()
    assert (report.status, report.stored, report.unread) == (BALANCED, 1200, 0)


async def test_writers_that_end_at_any_moment_lose_and_double_nothing(region):
    """The tasks are cancelled, so nothing is flushed; every run goes on from the store's own positions."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance, sent = random.Random(seed), dict.fromkeys(EVENTS, 0)
    async with region.processor():
        for _ in range(6):
            async with region.writer() as task:
                for event in EVENTS:
                    count = chance.randint(1, 900)
                    values = region.events(event, count, first=sent[event] + 1)
                    sent[event] += count
                    await region.send(event, 0, values)
                await asyncio.wait((task,), timeout=chance.uniform(0.0, 0.3))
                task.cancel()
        async with region.writer():
            report = await region.settled()
    assert (report.status, report.findings) == (BALANCED, ())
    for event in EVENTS:
        assert region.stored(event) == [(0, offset) for offset in range(sent[event])]


async def test_the_group_is_told_where_the_store_is(region):
    """A stock client sees it, as lag tools do."""
    async with region.processor(), region.writer():
        await region.send("meter_reading", 0, region.events("meter_reading", 300))
        async with asyncio.timeout(DEADLINE_S):
            for sent in itertools.count(1):  # hints ride on commits
                await region.send("meter_reading", 1, region.events("meter_reading", 1, first=300 + sent))
                if await asyncio.to_thread(told, region, "meter_reading") == 300:
                    break


def told(region: Region, event: str) -> int:
    """The store group's offset of partition 0."""
    group = {"bootstrap.servers": region.cluster.bootstrap, "group.id": f"{region.topics.prefix}store"}
    consumer = Consumer(group)
    try:
        place = TopicPartition(region.topics.curated(REGION, event), 0)
        return consumer.committed([place], timeout=10)[0].offset
    finally:
        consumer.close()


@pytest.mark.parametrize("which", ["curated", "stats"])
async def test_a_recreated_topic_stops_the_writer_and_nothing_is_written(region, which):
    async with region.processor(), region.writer():
        await region.send("meter_reading", 0, region.events("meter_reading", 300))
        await region.settled()
    name = region.topics.stats(REGION) if which == "stats" else region.topics.curated(REGION, "meter_reading")
    async with started(KafkaAdmin(region.cluster)) as admin:
        before = await admin.topic_ids([name])
        await admin.delete_topics([name])
        async with asyncio.timeout(DEADLINE_S):
            while before == (await recreated(region, admin, name)):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    with pytest.raises(StoreCorrupt, match="recreated") as caught:
        async with region.writer():
            pass
    assert caught.value.place == name
    assert len(region.stored("meter_reading")) == 300


async def recreated(region: Region, admin: KafkaAdmin, name: str) -> dict[str, str]:
    await region.project.ensure_topics([REGION])
    return await admin.topic_ids([name])


async def test_a_record_that_no_processor_wrote_stops_the_writer(region):
    async with started(KafkaWriter(region.cluster)) as writer:
        await writer.send(
            region.topics.curated(REGION, "meter_reading"), 0, pa.array([b"hello"], pa.binary())
        )
    async with region.writer() as task:
        with pytest.raises(StoreCorrupt, match="a curated record has no frame"):
            await asyncio.wait_for(task, DEADLINE_S)
    assert region.stored("meter_reading") == []
