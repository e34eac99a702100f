"""The edge against a real broker: what a stock consumer finds, with the broker there, away, and killed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from connectors.broker import LocalBroker
from connectors.kafka import KafkaAdmin, KafkaWriter, TopicSpec
from connectors.kafka_client import connection_options
from pipeline.config import ClusterConfig, Config
from pipeline.control_records import decode_control
from pipeline.edge import EdgeClient, EdgeReport, Forwarder, Receipt, Spool, read_ledger
from pipeline.edge.partition import positive_murmur2
from pipeline.topics import Topics
from tests.edge_world import EVENT, JURISDICTIONS, LANES, decoded, nothing_pending, schemas, until, vehicles

PARTITIONS = 4
CONFIG = Config()
EDGE = CONFIG.edge.model_copy(update={"backoff_min_s": 0.05, "backoff_max_s": 0.3})


class Edge:
    """One agent: spool, client, and a forwarder when asked for."""

    def __init__(self, path: Path, cluster: ClusterConfig, topics: Topics) -> None:
        self.cluster, self.topics = cluster, topics
        self.spool = Spool(path, LANES, EDGE)
        self.client = EdgeClient(CONFIG, schemas(), self.spool, JURISDICTIONS.get)
        self.raw = topics.raw("eu", EVENT)

    def emit(self, count: int, seed: int) -> Receipt:
        return self.client.emit_many(EVENT, vehicles(count, seed))

    @asynccontextmanager
    async def forwarding(self) -> AsyncIterator[None]:
        report = EdgeReport("agent", LANES, schemas(), self.topics)
        writers = {"eu": KafkaWriter(self.cluster)}
        stop = asyncio.Event()
        task = asyncio.create_task(Forwarder(self.spool, writers, self.topics, EDGE, report=report).run(stop))
        try:
            yield
        finally:
            stop.set()
            await asyncio.wait_for(task, 30)

    async def empty(self, within_s: float = 60.0) -> None:
        await until(lambda: nothing_pending(self.spool), within_s)

    async def make_topics(self, **config: str) -> None:
        admin = KafkaAdmin(self.cluster)
        await admin.start()
        edges = TopicSpec(self.topics.edges("eu"), 1, compacted=True)
        await admin.ensure_topics([TopicSpec(self.raw, PARTITIONS, config=config), edges])
        await admin.stop()

    async def landed(self) -> list[int]:
        """Sequences in the raw topic without repeats; fails when a partition's are out of order."""
        found: list[int] = []
        for partition in range(PARTITIONS):
            records = await read(self.cluster, self.raw, partition)
            if not records:
                continue
            assert all(record.key is None and not record.headers for record in records)
            batch = decoded(pa.array([record.value for record in records], pa.binary()))
            for source in batch.column("source").unique().to_pylist():
                assert positive_murmur2(source) % PARTITIONS == partition
            sequences = list(dict.fromkeys(batch.column("sequence").to_pylist()))
            assert sequences == sorted(sequences)
            found += sequences
        return sorted(found)


async def read(cluster: ClusterConfig, topic: str, partition: int) -> list[ConsumerRecord]:
    place = TopicPartition(topic, partition)
    consumer = AIOKafkaConsumer(**connection_options(cluster), auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([place])
        end = (await consumer.end_offsets([place]))[place]
        records: list[ConsumerRecord] = []
        while await consumer.position(place) < end:
            records += (await consumer.getmany(timeout_ms=500)).get(place, [])
        return records
    finally:
        await consumer.stop()


@pytest.fixture
def edge(tmp_path: Path, cluster: ClusterConfig, topics: Topics):
    one = Edge(tmp_path / "spool.sqlite", cluster, topics)
    yield one
    one.spool.close()


async def test_events_land_once_in_order_where_kafkas_partitioner_would_put_them(edge: Edge):
    await edge.make_topics()
    before = time.time_ns() // 1_000_000
    async with edge.forwarding():
        for seed in range(10):
            await asyncio.to_thread(edge.emit, 500, seed)
        await edge.empty()
    assert await edge.landed() == list(range(1, 5001))
    records = [r for p in range(PARTITIONS) for r in await read(edge.cluster, edge.raw, p)]
    assert len(records) == 5000  # nothing failed, so nothing came twice
    assert all(before <= record.timestamp <= time.time_ns() // 1_000_000 for record in records)
    assert {record.timestamp_type for record in records} == {0}  # CreateTime: ours


async def test_what_the_topic_never_takes_is_given_up_alone(edge: Edge):
    await edge.make_topics(**{"max.message.bytes": "5000"})
    rows = vehicles(300)
    for n in (0, 150, 299):
        rows[n]["fault_code"] = random.Random(n).randbytes(10_000).hex()  # does not shrink below the limit
    await asyncio.to_thread(edge.client.emit_many, EVENT, rows)
    async with edge.forwarding():
        await edge.empty()
    assert await edge.landed() == sorted(set(range(1, 301)) - {1, 151, 300})
    (counts,) = edge.spool.ledger()
    assert (counts.forwarded, counts.evicted) == (297, 3)
    losses = edge.spool.losses().result(10)
    assert [(loss.event, loss.count, loss.reason) for loss in losses] in (
        [(EVENT, 1, "oversize")] * 3, [(EVENT, 2, "oversize"), (EVENT, 1, "oversize")],
        [(EVENT, 1, "oversize"), (EVENT, 2, "oversize")], [(EVENT, 3, "oversize")],
    )  # fmt: skip


async def test_the_ledger_reaches_the_control_topic(edge: Edge):
    await edge.make_topics()
    await asyncio.to_thread(edge.emit, 10, 1)
    async with edge.forwarding():
        await edge.empty()
        async with asyncio.timeout(30):
            while not (records := await read(edge.cluster, edge.topics.edges("eu"), 0)):
                pass
    name, record = decode_control(schemas(), records[-1].value)
    assert (name, record["accepted"], record["lane_name"]) == ("edge_ledger", 10, "normal")
    assert records[-1].key == f"{edge.spool.spool}:1".encode()


async def test_a_topic_that_does_not_exist_yet_is_waited_for(edge: Edge):
    short = edge.cluster.model_copy(update={"request_timeout_s": 1.0})
    edge.cluster = short
    await asyncio.to_thread(edge.emit, 50, 1)
    async with edge.forwarding():
        await asyncio.to_thread(edge.emit, 50, 2)
        assert edge.spool.ledger()[0].pending == 100
        await edge.make_topics()
        await edge.empty()
    assert await edge.landed() == list(range(1, 101))


async def test_emitting_goes_on_while_the_broker_is_away_at_the_start_stopped_and_killed(
    own_broker: LocalBroker, tmp_path: Path
):
    """Absent, then up, stopped in an orderly way, up, killed, up: nothing is lost and the order holds."""
    await asyncio.to_thread(own_broker.start)
    cluster = ClusterConfig(bootstrap=own_broker.bootstrap, request_timeout_s=2.0)
    edge = Edge(tmp_path / "spool.sqlite", cluster, Topics())
    await edge.make_topics()
    await asyncio.to_thread(own_broker.stop)
    emitted = 0
    try:
        async with edge.forwarding():
            for away in (own_broker.stop, own_broker.kill9, None):
                for seed in range(3):  # nobody is there
                    await asyncio.to_thread(edge.emit, 400, seed)
                emitted += 1200
                assert edge.spool.ledger()[0].pending >= 1200
                await asyncio.to_thread(own_broker.start)
                await edge.empty()
                if away is None:
                    break
                pouring = asyncio.create_task(pour(edge, 20))
                forwarded = edge.spool.ledger()[0].forwarded
                await until(lambda f=forwarded: edge.spool.ledger()[0].forwarded > f, 60)
                await asyncio.to_thread(away)  # in the middle of it
                emitted += await pouring
        assert await edge.landed() == list(range(1, emitted + 1))
        (counts,) = read_ledger(edge.spool.path)
        assert (counts.accepted, counts.forwarded, counts.evicted) == (emitted, emitted, 0)
    finally:
        edge.spool.close()


async def pour(edge: Edge, times: int) -> int:
    return sum([(await asyncio.to_thread(edge.emit, 300, seed)).count for seed in range(times)])
