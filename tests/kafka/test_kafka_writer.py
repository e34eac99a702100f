"""Writing to a real broker: what stock clients then read, and what happens when it refuses or goes away."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator

import numpy as np
import pyarrow as pa
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka import Consumer
from confluent_kafka import TopicPartition as ConfluentPartition

from connectors.broker import LocalBroker
from connectors.kafka import KafkaAdmin, KafkaReader, KafkaWriter, TopicSpec
from connectors.kafka_client import connection_options
from pipeline.config import ClusterConfig, LimitsConfig
from pipeline.errors import RecordError, TransientError

Row = tuple[int, bytes | None, bytes | None]  # timestamp, key, value


@pytest.fixture
async def topic(cluster: ClusterConfig, topic_prefix: str) -> str:
    return await made(cluster, TopicSpec(f"{topic_prefix}events", 4))


@pytest.fixture(params=[True, False], ids=["raw", "public"])
async def writer(request: pytest.FixtureRequest, cluster: ClusterConfig) -> AsyncIterator[KafkaWriter]:
    writer = KafkaWriter(cluster, raw=request.param)
    await writer.start()
    yield writer
    await writer.stop()


async def made(cluster: ClusterConfig, spec: TopicSpec) -> str:
    admin = KafkaAdmin(cluster)
    await admin.start()
    await admin.ensure_topics([spec])
    await admin.stop()
    return spec.name


def binary(values: list[bytes | None]) -> pa.BinaryArray:
    return pa.array(values, pa.binary())


async def read_by_aiokafka(cluster: ClusterConfig, topic: str, partition: int) -> list[Row]:
    place = TopicPartition(topic, partition)
    consumer = AIOKafkaConsumer(**connection_options(cluster), auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([place])
        end = (await consumer.end_offsets([place]))[place]
        rows: list[Row] = []
        while await consumer.position(place) < end:
            for record in (await consumer.getmany(timeout_ms=500)).get(place, []):
                rows.append((record.timestamp, record.key, record.value))
        return rows
    finally:
        await consumer.stop()


def read_by_librdkafka(cluster: ClusterConfig, topic: str, partition: int, count: int) -> list[Row]:
    settings = {"bootstrap.servers": cluster.bootstrap, "group.id": topic, "check.crcs": True}
    consumer = Consumer(settings)
    consumer.assign([ConfluentPartition(topic, partition, 0)])
    rows: list[Row] = []
    deadline = time.monotonic() + 20
    while len(rows) < count and time.monotonic() < deadline:
        for message in consumer.consume(500, 0.5):
            assert message.error() is None
            rows.append((message.timestamp()[1], message.key(), message.value()))
    consumer.close()
    return rows


@pytest.mark.parametrize("compression", ["none", "gzip", "lz4", "zstd"])
@pytest.mark.parametrize("raw", [True, False], ids=["raw", "public"])
async def test_stock_clients_read_what_was_sent(
    cluster: ClusterConfig, topic: str, compression: str, raw: bool
) -> None:
    writer = KafkaWriter(
        cluster.model_copy(update={"compression": compression}), raw=raw, batch_bytes_max=20_000
    )
    await writer.start()
    now = int(time.time() * 1000)
    rows: list[Row] = [(now + n % 7, b"k%d" % (n % 50), b"v%d" % n * (n % 30) or None) for n in range(2000)]
    bare: list[Row] = [(now + n, None, b"w%d" % n * (n % 30)) for n in range(2000)]
    try:
        for partition, sent in ((0, rows), (1, bare)):
            keys = binary([key for _, key, _ in sent]) if sent is rows else None
            times = np.array([at for at, *_ in sent])
            values = binary([value for *_, value in sent])
            assert await writer.send(topic, partition, values[:1500], keys and keys[:1500], times[:1500]) == 0
            assert (
                await writer.send(topic, partition, values[1500:], keys and keys[1500:], times[1500:]) == 1500
            )
            assert await read_by_aiokafka(cluster, topic, partition) == sent
            assert await asyncio.to_thread(read_by_librdkafka, cluster, topic, partition, len(sent)) == sent
    finally:
        await writer.stop()


async def test_partitions_are_written_side_by_side_each_in_order(
    writer: KafkaWriter, cluster: ClusterConfig, topic: str
) -> None:
    sends = [
        writer.send(topic, partition, binary([b"%d" % (100 * step + n) for n in range(100)]))
        for step in range(10)
        for partition in range(4)
    ]
    bases = await asyncio.gather(*sends)
    assert bases == [100 * step for step in range(10) for _ in range(4)]
    for partition in range(4):
        rows = await read_by_aiokafka(cluster, topic, partition)
        assert [value for *_, value in rows] == [b"%d" % n for n in range(1000)]


async def test_times_default_to_now(writer: KafkaWriter, cluster: ClusterConfig, topic: str) -> None:
    before = time.time() * 1000
    await writer.send(topic, 0, binary([b"v"]))
    ((at, _, _),) = await read_by_aiokafka(cluster, topic, 0)
    assert before - 1 <= at <= time.time() * 1000 + 1


async def test_no_rows_send_nothing(writer: KafkaWriter, cluster: ClusterConfig, topic: str) -> None:
    assert await writer.send(topic, 0, binary([])) == -1
    assert await read_by_aiokafka(cluster, topic, 0) == []


async def test_a_record_larger_than_a_batch_is_refused_and_nothing_sent(
    writer: KafkaWriter, cluster: ClusterConfig, topic: str
) -> None:
    with pytest.raises(RecordError) as caught:
        await writer.send(topic, 0, binary([b"fine", b"v" * 1_100_000]))
    assert caught.value.reason == "oversize"
    assert await writer.send(topic, 0, binary([b"next"])) == 0


async def test_batches_are_halved_until_the_topic_takes_them(
    cluster: ClusterConfig, topic_prefix: str
) -> None:
    topic = await made(cluster, TopicSpec(f"{topic_prefix}small", 1, config={"max.message.bytes": "3000"}))
    writer = KafkaWriter(cluster.model_copy(update={"compression": "none"}))
    await writer.start()
    try:
        values = [random.randbytes(500) for _ in range(40)]
        assert await writer.send(topic, 0, binary(values)) == 0
        with pytest.raises(RecordError) as caught:
            await writer.send(topic, 0, binary([b"last", b"v" * 4000]))
        assert caught.value.reason == "oversize"
        assert await writer.send(topic, 0, binary([b"after"])) == 41
    finally:
        await writer.stop()
    assert [value for *_, value in await read_by_aiokafka(cluster, topic, 0)] == [*values, b"last", b"after"]


async def test_a_compacted_topic_takes_no_record_without_key(
    cluster: ClusterConfig, topic_prefix: str
) -> None:
    topic = await made(cluster, TopicSpec(f"{topic_prefix}state", 1, compacted=True))
    writer = KafkaWriter(cluster)
    await writer.start()
    try:
        with pytest.raises(RecordError, match="records with keys"):
            await writer.send(topic, 0, binary([b"v"]))
        assert await writer.send(topic, 0, binary([None]), binary([b"k"])) == 0
    finally:
        await writer.stop()


async def test_a_topic_that_does_not_exist_is_transient(cluster: ClusterConfig, topic_prefix: str) -> None:
    writer = KafkaWriter(cluster.model_copy(update={"request_timeout_s": 1.0}))
    await writer.start()
    try:
        with pytest.raises(TransientError, match=r"no leader.*nothing was sent"):
            await writer.send(f"{topic_prefix}nowhere", 0, binary([b"v"]))
    finally:
        await writer.stop()


async def test_a_cancelled_send_may_repeat_but_loses_nothing(cluster: ClusterConfig, topic: str) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    writer = KafkaWriter(cluster)
    await writer.start()
    sent: list[bytes] = []
    try:
        for step in range(60):
            values = [b"%d-%d" % (step, n) for n in range(dice.randrange(1, 300))]
            sent += values
            task = asyncio.create_task(writer.send(topic, 0, binary(values)))
            await asyncio.wait([task], timeout=dice.choice([0, 0.0005, 0.002]))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await writer.send(topic, 0, binary(values))
    finally:
        await writer.stop()
    seen = [value for *_, value in await read_by_aiokafka(cluster, topic, 0)]
    first_seen = list(dict.fromkeys(seen))
    assert first_seen == sent


async def test_a_broker_killed_under_the_writer_loses_and_doubles_nothing(own_broker: LocalBroker) -> None:
    """kill -9 in the middle of sends: tries again under the same sequence, the broker knows what it has."""
    await asyncio.to_thread(own_broker.start)
    cluster = ClusterConfig(bootstrap=own_broker.bootstrap, request_timeout_s=40)
    topic = await made(cluster, TopicSpec("events", 2))
    writer = KafkaWriter(cluster)
    await writer.start()
    sent: dict[int, list[bytes]] = {0: [], 1: []}
    done = asyncio.Event()

    async def pour(partition: int) -> None:
        step = 0
        while not done.is_set():
            values = [b"%d-%d" % (step, n) for n in range(500)]
            await writer.send(topic, partition, binary(values))
            sent[partition] += values
            step += 1

    pours = [asyncio.create_task(pour(partition)) for partition in (0, 1)]
    try:
        for _ in range(2):
            before = {partition: len(values) for partition, values in sent.items()}
            await until(lambda before=before: all(len(sent[p]) > before[p] + 5000 for p in sent))
            await asyncio.to_thread(own_broker.kill9)
            await asyncio.to_thread(own_broker.start)
        before = {partition: len(values) for partition, values in sent.items()}
        await until(lambda: all(len(sent[p]) > before[p] + 5000 for p in sent))
        done.set()
        await asyncio.gather(*pours)
    finally:
        for task in pours:
            task.cancel()
        await asyncio.gather(*pours, return_exceptions=True)
        await writer.stop()
    for partition in (0, 1):
        assert [value for *_, value in await read_by_aiokafka(cluster, topic, partition)] == sent[partition]


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "public"])
async def test_an_outage_is_reported_under_the_deadline_and_over_when_the_broker_is_back(
    own_broker: LocalBroker, raw: bool
) -> None:
    await asyncio.to_thread(own_broker.start)
    cluster = ClusterConfig(bootstrap=own_broker.bootstrap, request_timeout_s=1.5)
    topic = await made(cluster, TopicSpec("events", 1))
    writer = KafkaWriter(cluster, raw=raw)
    await writer.start()
    try:
        await writer.send(topic, 0, binary([b"before"]))
        await asyncio.to_thread(own_broker.kill9)
        for _ in range(2):
            started = time.monotonic()
            with pytest.raises(TransientError, match=r"produce|connect"):
                await writer.send(topic, 0, binary([b"during"]))
            assert time.monotonic() - started < 4
        await asyncio.to_thread(own_broker.start)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                await writer.send(topic, 0, binary([b"after"]))
                break
            except TransientError:
                continue
    finally:
        await writer.stop()
    values = [value for *_, value in await read_by_aiokafka(cluster, topic, 0)]
    assert values[0] == b"before"
    assert b"after" in values
    if raw:
        assert b"during" not in values


async def test_a_writer_leaves_no_task_behind(cluster: ClusterConfig, topic: str) -> None:
    before = asyncio.all_tasks()
    writer, reader = KafkaWriter(cluster), KafkaReader(cluster, None, LimitsConfig())
    await writer.start()
    await reader.start()
    await writer.send(topic, 0, binary([b"v"]))
    await reader.assign({(topic, 0): 0})
    assert len((await reader.fetch(5))[0]) == 1
    await reader.stop()
    await writer.stop()
    assert {task for task in asyncio.all_tasks() if not task.done()} == before


async def until(condition, limit_s: float = 60) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        await asyncio.sleep(0.01)
