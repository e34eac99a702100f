"""Borders under a test's hands: curated topics of two origins, filled at will, and the core they cross to.

Comes in: a broker. Goes out: border processors that are started and stopped, and what they made. Every row of
a curated topic follows from its origin, partition and raw offset, so a row delivered again is the same row.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from prometheus_client import CollectorRegistry, generate_latest

from connectors.kafka import KafkaAdmin, KafkaReader, KafkaWriter
from connectors.kafka_scan import LogScanner
from connectors.lake import Lake, open_reader
from pipeline.control_records import decode_control
from pipeline.crossing import border_processor
from pipeline.framing import unframe
from pipeline.metrics import BorderMetrics, ProcessorMetrics, StoreMetrics
from pipeline.policy.consent import ConsentBook
from pipeline.processor import ConsentFeed, Ports, Processor, StateLog
from pipeline.service import Project, started
from pipeline.store import StorePlan, StorePorts, StoreWriter
from tests.raw_events import framed, raw_batch

EVENT, CORE, ORIGINS, DEADLINE_S = "vehicle_telemetry", "core", ("eu", "us-ca"), 60.0
POOL = 1200
PARTITIONS = 2


class Borders:
    """The regions of a test."""

    def __init__(self, project: Project) -> None:
        self.project, self.schemas, self.topics = project, project.schemas, project.topics
        self.cluster = project.cluster(CORE)
        self.scan = LogScanner(self.cluster, project.config.limits)
        self.registry = CollectorRegistry()
        self.pool = cache(self._pool)

    async def prepare(self) -> Borders:
        """Keys and topics of all regions."""
        regions = list(self.project.config.regions)
        self.project.create_keys(regions)
        await self.project.ensure_topics(regions)
        return self

    # --- what an origin has curated ----------------------------------------------------------------------

    def _pool(self, origin: str) -> pa.RecordBatch:
        """Curated rows of the origin, made by its own policy, without a position."""
        plan = self.project.leg(origin, EVENT).plan
        return plan.transform(raw_batch(self.schemas, EVENT, POOL, region=origin))

    def values(self, origin: str, partition: int, offsets: Iterable[int]) -> pa.BinaryArray:
        """Curated records of these raw offsets."""
        numbers = np.fromiter(offsets, np.int64)
        rows = self.pool(origin).take(pa.array(numbers * PARTITIONS + partition))
        places = pa.array(np.full(len(numbers), partition, np.int32))
        codec = self.schemas.codec(self.schemas.latest(f"{origin}.curated.{EVENT}").id)
        return codec.encode(
            pa.RecordBatch.from_arrays([*rows.columns, places, pa.array(numbers)], schema=codec.arrow)
        )

    async def deliver(self, origin: str, partition: int, values: Iterable[int] | pa.BinaryArray) -> None:
        """Append to the origin's curated topic, as its processor would: rows of raw offsets, or any bytes."""
        if not isinstance(values, pa.Array):
            values = self.values(origin, partition, values)
        async with started(KafkaWriter(self.cluster)) as writer:
            await writer.send(self.topics.curated(origin, EVENT), partition, values)

    # --- the stages ----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def border(self, origin: str = "eu", breaks: Any = None) -> AsyncIterator[asyncio.Task[None]]:
        """One border processor from ``origin``; ends it in an orderly way."""
        self.registry = CollectorRegistry()
        metrics = BorderMetrics(self.registry, CORE)
        async with started(KafkaWriter(self.cluster)) as writer:
            if breaks is not None:
                breaks._writer = writer
            way = border_processor(self.project, (origin, CORE), breaks or writer, metrics)
            async with way as processor, running(processor) as task:
                self.legs = processor._legs
                yield task

    @asynccontextmanager
    async def landing(self, region: str) -> AsyncIterator[asyncio.Task[None]]:
        """The region's own processor."""
        topics, book = self.topics.landing(region), ConsentBook(self.project.consent_names(region))
        legs = {topics.source(EVENT): self.project.leg(region, EVENT, book)}
        async with started(KafkaAdmin(self.cluster)) as admin:
            ids = await admin.topic_ids(list(legs))
        state = StateLog(self.schemas, self.scan, topics.watermarks, topics.stats)
        reader = KafkaReader(self.cluster, topics.group, self.project.config.limits)
        said = KafkaReader(self.cluster, None, self.project.config.limits)
        feed = ConsentFeed(said, self.topics.consent(region), self.schemas, book)
        async with started(reader), started(said), started(KafkaWriter(self.cluster)) as writer:
            metrics = ProcessorMetrics(CollectorRegistry(), region)
            ports = Ports(reader, writer, state, feed)
            async with running(Processor(legs, ids, ports, self.schemas, topics, metrics)) as task:
                yield task

    @asynccontextmanager
    async def store(self, region: str) -> AsyncIterator[asyncio.Task[None]]:
        """The region's store writer."""
        config = self.project.config
        plan = StorePlan(self.project.inflows(region), self.project.door(region), config.flush)
        reader = KafkaReader(self.cluster, f"{self.topics.prefix}{region}.store", config.limits)
        lake = Lake(config.store_path(region), region)
        try:
            async with started(KafkaAdmin(self.cluster)) as admin, started(reader):
                ports = StorePorts(lake, reader, admin, StoreMetrics(CollectorRegistry(), region))
                async with running(StoreWriter(ports, self.schemas, plan)) as task:
                    yield task
        finally:
            lake.close()

    async def emit(self, region: str, partition: int, count: int, first: int = 1) -> None:
        """Raw events, as an edge would send them."""
        batch = raw_batch(self.schemas, EVENT, count, region=region, first_sequence=first)
        async with started(KafkaWriter(self.cluster)) as writer:
            await writer.send(self.topics.raw(region, EVENT), partition, framed(self.schemas, EVENT, batch))

    # --- what came of it -----------------------------------------------------------------------------------

    async def records(self, topic: str) -> list[bytes]:
        """All values of a topic, partition by partition."""
        found = []
        for partition in range(PARTITIONS):
            async for fetched in self.scan(topic, partition, 0):
                found += fetched.values.to_pylist()
        return found

    async def crossed(self, origin: str = "eu") -> list[dict[str, Any]]:
        """Rows in the core's curated topic of an origin, repeats included."""
        values = await self.records(self.topics.border(origin, CORE).curated(EVENT))
        if not values:
            return []
        ids, bodies = unframe(pa.array(values, pa.binary()))
        batch, _, bad = self.schemas.codec(int(ids[0])).decode(bodies)
        assert not bad
        return batch.to_pylist()

    async def control(self, kind: str, origin: str = "eu") -> list[dict[str, Any]]:
        """Stats or quarantine records of a border."""
        topic = getattr(self.topics.border(origin, CORE), kind)
        return [decode_control(self.schemas, value)[1] for value in await self.records(topic)]

    async def accounted(self, count: int, origin: str = "eu") -> Counter[tuple[str, str]]:
        """Wait until stats cover ``count`` positions; what became of them, the first word of each."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                ends: Counter[int] = Counter()
                counts: Counter[tuple[str, str]] = Counter()
                for record in await self.control("stats", origin):
                    number = record["raw_partition"]
                    if record["first_offset"] == ends[number]:
                        ends[number] = record["next_offset"]
                        counts.update({(c["outcome"], c["reason"]): c["count"] for c in record["counts"]})
                if sum(counts.values()) >= count:
                    return counts
                await asyncio.sleep(0.05)

    async def until_crossed(self, positions: set[tuple[int, int]], origin: str = "eu") -> None:
        """Wait until rows with all these raw positions are at the core."""
        async with asyncio.timeout(DEADLINE_S):
            while not positions <= set(places(await self.crossed(origin))):  # noqa: ASYNC110 (a topic)
                await asyncio.sleep(0.05)

    def stored(self, columns: str = "*") -> list[dict[str, Any]]:
        """Rows of the core's store."""
        with open_reader(self.project.config.store_path(CORE)) as lake:
            return lake.query(f"SELECT {columns} FROM {EVENT} ORDER BY ALL").to_pylist()

    def metrics(self) -> str:
        """The metrics page of the last border."""
        return generate_latest(self.registry).decode()


def places(rows: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """(raw partition, raw offset) of each row."""
    return [(row["raw_partition"], row["raw_offset"]) for row in rows]


@asynccontextmanager
async def running(stage: Processor | StoreWriter) -> AsyncIterator[asyncio.Task[None]]:
    """Run a stage; wait until it is ready, end it in an orderly way."""
    stop = asyncio.Event()
    task = asyncio.create_task(stage.run(stop))
    try:
        ready = asyncio.create_task(stage.ready.wait())
        await asyncio.wait((ready, task), timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        yield task
    finally:
        stop.set()
        if not task.done():
            await asyncio.wait_for(task, DEADLINE_S)
        elif sys.exc_info()[0] is None:
            task.result()
