"""Reading from a real broker: whatever stock clients wrote, from the asked position, through outages."""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from collections.abc import AsyncIterator, Callable

import numpy as np
import pyarrow as pa
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from connectors.broker import LocalBroker
from connectors.kafka import Fetched, KafkaAdmin, KafkaReader, KafkaWriter, ReaderOptions, TopicSpec
from connectors.kafka_client import connection_options
from connectors.kafka_source import RawSource
from pipeline.config import ClusterConfig, LimitsConfig, ProcessorConfig
from pipeline.errors import ConfigError, OwnershipLost, RecordError, StoreCorrupt

LIMITS = LimitsConfig()
Row = tuple[int, bytes | None, bytes | None]  # offset, key, value
both = pytest.mark.parametrize("raw", [True, False], ids=["raw", "public"])


@pytest.fixture
async def topic(cluster: ClusterConfig, topic_prefix: str) -> str:
    return await made(cluster, TopicSpec(f"{topic_prefix}events", 4))


@pytest.fixture
async def writer(cluster: ClusterConfig) -> AsyncIterator[KafkaWriter]:
    writer = KafkaWriter(cluster)
    await writer.start()
    yield writer
    await writer.stop()


async def made(cluster: ClusterConfig, spec: TopicSpec) -> str:
    admin = KafkaAdmin(cluster)
    await admin.start()
    await admin.ensure_topics([spec])
    await admin.stop()
    return spec.name


async def opened(
    cluster: ClusterConfig, raw: bool = True, group: str | None = None, **options: object
) -> KafkaReader:
    reader = KafkaReader(cluster, group, LIMITS, ReaderOptions(raw=raw, **options))  # type: ignore[arg-type]
    await reader.start()
    return reader


def binary(values: list[bytes | None]) -> pa.BinaryArray:
    return pa.array(values, pa.binary())


def numbered(start: int, stop: int) -> pa.BinaryArray:
    return binary([b"%d" % n for n in range(start, stop)])


def rows_of(fetched: Fetched) -> list[Row]:
    keys = [None] * len(fetched) if fetched.keys is None else fetched.keys.to_pylist()
    return list(zip(fetched.offsets.tolist(), keys, fetched.values.to_pylist(), strict=True))


class Gathered:
    """Rows per partition, with a check that each Fetched goes on where the last one ended."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], list[Row]] = {}
        self.next: dict[tuple[str, int], int] = {}
        self.refused: list[tuple[int, int, str]] = []

    def add(self, fetched: Fetched) -> None:
        place = (fetched.topic, fetched.partition)
        assert fetched.first_offset == self.next.get(place, fetched.first_offset)
        assert fetched.next_offset > fetched.first_offset
        rows = rows_of(fetched)
        assert all(fetched.first_offset <= offset < fetched.next_offset for offset, *_ in rows)
        self.rows.setdefault(place, []).extend(rows)
        self.next[place] = fetched.next_offset
        self.refused += fetched.refused

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))

    def values(self) -> list[bytes | None]:
        return [value for rows in self.rows.values() for *_, value in rows]


async def gather(reader: KafkaReader, until: Callable[[Gathered], bool], limit_s: float = 30) -> Gathered:
    gathered = Gathered()
    deadline = time.monotonic() + limit_s
    while not until(gathered):
        assert time.monotonic() < deadline, f"{len(gathered)} rows in time"
        for fetched in await reader.fetch(0.5):
            gathered.add(fetched)
    return gathered


@both
async def test_what_was_sent_is_read_from_the_asked_position(
    cluster: ClusterConfig, topic: str, writer: KafkaWriter, raw: bool
) -> None:
    for start in range(0, 1000, 100):
        keys = binary([b"k%d" % n for n in range(start, start + 100)]) if start >= 500 else None
        await writer.send(topic, 1, numbered(start, start + 100), keys)
    reader = await opened(cluster, raw)
    try:
        await reader.assign({(topic, 1): 450, (topic, 2): 0})
        gathered = await gather(reader, lambda g: len(g) == 550)
        assert gathered.rows[topic, 1] == [
            (n, b"k%d" % n if n >= 500 else None, b"%d" % n) for n in range(450, 1000)
        ]
        assert reader.position((topic, 1)) == 1000
        assert reader.assignment() == {(topic, 1), (topic, 2)}
        assert await reader.end_offsets([(topic, 1), (topic, 2)]) == {(topic, 1): 1000, (topic, 2): 0}
        assert await reader.beginning_offsets([(topic, 1)]) == {(topic, 1): 0}
        assert await reader.fetch(0.05) == []
        reader.seek((topic, 1), 990)
        assert (await gather(reader, lambda g: len(g) == 10)).rows[topic, 1][0][0] == 990
        with pytest.raises(ConfigError, match="not assigned"):
            reader.seek((topic, 3), 0)
    finally:
        await reader.stop()


@both
@pytest.mark.parametrize("compression", [None, "gzip", "snappy", "lz4", "zstd"])
async def test_stock_producers_are_read(
    cluster: ClusterConfig, topic: str, compression: str | None, raw: bool
) -> None:
    """Headers, missing keys, empty and null values, all mixed; by aiokafka and by librdkafka."""
    rows: list[tuple[bytes | None, bytes | None]] = [
        (b"k%d" % n if n % 3 else None, b"v" * (n % 40) if n % 7 else (None if n % 3 else b""))
        for n in range(700)
    ]
    producer = AIOKafkaProducer(**connection_options(cluster), compression_type=compression)
    await producer.start()
    for n, (key, value) in enumerate(rows):
        headers = [("trace", b"%d" % n)] if n % 2 else []
        await producer.send(topic, value, key, partition=0, headers=headers)
    await producer.stop()
    await asyncio.to_thread(produce_by_librdkafka, cluster, topic, compression, rows)
    reader = await opened(cluster, raw)
    try:
        await reader.assign({(topic, 0): 0, (topic, 1): 0})
        gathered = await gather(reader, lambda g: len(g) == 1400)
    finally:
        await reader.stop()
    for partition in (0, 1):
        assert gathered.rows[topic, partition] == [(n, *row) for n, row in enumerate(rows)]
    assert gathered.refused == []


def produce_by_librdkafka(
    cluster: ClusterConfig, topic: str, compression: str | None, rows: list[tuple[bytes | None, bytes | None]]
) -> None:
    settings = {
        "bootstrap.servers": cluster.bootstrap,
        "compression.type": compression or "none",
        "linger.ms": 20,
    }
    producer = Producer(settings)
    for n, (key, value) in enumerate(rows):
        headers = [("trace", b"%d" % n), ("empty", None)] if n % 2 else None
        producer.produce(topic, value, key, 1, headers=headers)
    assert producer.flush(20) == 0


@both
async def test_transaction_markers_are_passed_over(
    cluster: ClusterConfig, topic: str, topic_prefix: str, raw: bool
) -> None:
    producer = AIOKafkaProducer(**connection_options(cluster), transactional_id=f"{topic_prefix}id")
    await producer.start()
    for step in range(3):
        async with producer.transaction():
            for n in range(10):
                await producer.send(topic, b"%d" % (10 * step + n), partition=0)
    await producer.stop()
    reader = await opened(cluster, raw)
    try:
        await reader.assign({(topic, 0): 0})
        gathered = await gather(reader, lambda g: len(g) == 30)
        assert [value for *_, value in gathered.rows[topic, 0]] == [b"%d" % n for n in range(30)]
        assert [offset for offset, *_ in gathered.rows[topic, 0]][9:12] == [9, 11, 12]
        if raw:
            gathered_next = gathered.next[topic, 0]
            while gathered_next < 33:
                gathered_next = (await reader.fetch(5))[0].next_offset
    finally:
        await reader.stop()


@both
async def test_a_compacted_log_is_read_with_its_holes(
    cluster: ClusterConfig, topic_prefix: str, writer: KafkaWriter, raw: bool
) -> None:
    await asyncio.to_thread(hurry_the_cleaner, cluster)
    hasty = {"segment.ms": "50", "min.cleanable.dirty.ratio": "0.001", "max.compaction.lag.ms": "100"}
    topic = await made(cluster, TopicSpec(f"{topic_prefix}state", 1, compacted=True, config=hasty))
    latest: dict[bytes, bytes] = {}
    reader = await opened(cluster, raw)
    try:
        deadline = time.monotonic() + 60
        for step in range(10_000):
            keys = [b"k%d" % (n % 40) for n in range(100 * step, 100 * step + 100)]
            values = [b"%d" % n for n in range(100 * step, 100 * step + 100)]
            await writer.send(topic, 0, binary(values), binary(keys))
            latest.update(zip(keys, values, strict=True))
            end = 100 * (step + 1)
            await reader.assign({(topic, 0): 5})
            gathered = await gather(reader, lambda g, end=end: g.next.get((topic, 0)) == end)
            if len(gathered) < end - 5:
                break
            assert time.monotonic() < deadline, "never compacted"
            await asyncio.sleep(0.1)
    finally:
        await reader.stop()
    offsets = [offset for offset, *_ in gathered.rows[topic, 0]]
    assert offsets == sorted(set(offsets))
    assert {key: value for _, key, value in gathered.rows[topic, 0]} == latest


def hurry_the_cleaner(cluster: ClusterConfig) -> None:
    entry = ConfigEntry("log.cleaner.backoff.ms", "200", incremental_operation=AlterConfigOpType.SET)
    the_broker = ConfigResource(ResourceType.BROKER, "1", incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap})
    for answer in admin.incremental_alter_configs([the_broker]).values():
        answer.result(timeout=20)


@both
async def test_positions_outside_the_log_are_errors_unless_agreed(
    cluster: ClusterConfig, topic: str, writer: KafkaWriter, raw: bool
) -> None:
    for start in range(0, 100, 10):
        await writer.send(topic, 0, numbered(start, start + 10))
    admin = AIOKafkaAdminClient(**connection_options(cluster))
    await admin.start()
    await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=35)})
    await admin.close()
    reader = await opened(cluster, raw)
    try:
        for wrong in (101, 10):
            await reader.assign({(topic, 0): wrong})
            with pytest.raises(StoreCorrupt, match=rf"asked for offset {wrong}, the log holds \[35, 100\)"):
                await gather(reader, lambda g: len(g) > 0)
        reader.seek((topic, 0), 42)
        assert (await gather(reader, lambda g: len(g) == 58)).values()[0] == b"42"
        await reader.assign({(topic, 0): 10}, on_out_of_range="earliest")
        gathered = await gather(reader, lambda g: len(g) == 65)
        assert gathered.rows[topic, 0][0] == (35, None, b"35")
        await reader.assign({(topic, 0): 101}, on_out_of_range="earliest")
        with pytest.raises(StoreCorrupt, match="asked for offset 101"):
            await gather(reader, lambda g: len(g) > 0)
    finally:
        await reader.stop()


async def test_batches_larger_than_the_fetch_size_still_come(
    cluster: ClusterConfig, topic: str, writer: KafkaWriter
) -> None:
    """KIP-74: one batch at least, but only for the first partition of a request: they take turns."""
    values = [random.randbytes(300_000) for _ in range(3)]
    for partition in range(4):
        for value in values:
            await writer.send(topic, partition, binary([value, b"small"]))
    reader = await opened(cluster, fetch=ProcessorConfig(fetch_bytes_max=65_536))
    try:
        await reader.assign({(topic, partition): 0 for partition in range(4)})
        gathered = await gather(reader, lambda g: len(g) == 24)
    finally:
        await reader.stop()
    for partition in range(4):
        assert [value for *_, value in gathered.rows[topic, partition]][::2] == values


async def test_a_bomb_on_the_broker_is_refused_by_position_and_passed(
    cluster: ClusterConfig, topic: str, writer: KafkaWriter
) -> None:
    await writer.send(topic, 0, numbered(0, 5))
    producer = AIOKafkaProducer(
        **connection_options(cluster),
        compression_type="zstd",
        max_request_size=32 << 20,
        max_batch_size=32 << 20,
    )
    await producer.start()
    await producer.send_and_wait(topic, bytes(16 << 20), partition=0)
    await producer.stop()
    await writer.send(topic, 0, numbered(6, 9))
    limits = LimitsConfig(batch_decompressed_bytes_max=1 << 20)
    reader = KafkaReader(cluster, None, limits)
    await reader.start()
    try:
        await reader.assign({(topic, 0): 2})
        gathered = await gather(reader, lambda g: g.next.get((topic, 0)) == 9)
    finally:
        await reader.stop()
    assert [offset for offset, *_ in gathered.rows[topic, 0]] == [2, 3, 4, 6, 7, 8]
    assert [(first, stop) for first, stop, _ in gathered.refused] == [(5, 6)]


async def test_read_ahead_is_bounded(cluster: ClusterConfig, topic: str, writer: KafkaWriter) -> None:
    for _ in range(6):
        await writer.send(topic, 0, binary([random.randbytes(60_000) for _ in range(10)]))
    reader = await opened(cluster, fetch=ProcessorConfig(fetch_bytes_max=700_000))
    try:
        await reader.assign({(topic, 0): 0})
        source = reader._source
        assert isinstance(source, RawSource)
        lane = source._fetch.lanes[topic, 0]
        await until(lambda: len(lane.pieces) == 2 and not source._fetch._flights)
        held = sum(len(piece.data) for piece in lane.pieces)
        assert held <= 2 * 700_000
        assert len(await gather(reader, lambda g: len(g) == 60)) == 60
    finally:
        await reader.stop()


async def test_a_cancelled_fetch_loses_nothing(
    cluster: ClusterConfig, topic: str, writer: KafkaWriter
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    for start in range(0, 50_000, 1000):
        await writer.send(topic, 0, numbered(start, start + 1000))
    reader = await opened(cluster, fetch=ProcessorConfig(fetch_bytes_max=65_536))
    gathered = Gathered()
    try:
        await reader.assign({(topic, 0): 0})
        deadline = time.monotonic() + 30
        while len(gathered) < 50_000 and time.monotonic() < deadline:
            task = asyncio.create_task(reader.fetch(0.5))
            await asyncio.wait([task], timeout=dice.choice([0.0, 0.001, 0.003, 0.5]))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            for fetched in [] if task.cancelled() else task.result():
                gathered.add(fetched)
    finally:
        await reader.stop()
    assert gathered.values() == numbered(0, 50_000).to_pylist()


class Owner:
    """A group member that reads, commits what it has at every revoke, and starts where the group is."""

    def __init__(self, reader: KafkaReader) -> None:
        self.reader = reader
        self.done: dict[tuple[str, int], int] = {}
        self.rows: list[tuple[str, int, int]] = []
        self.assigned: list[list[tuple[str, int]]] = []
        self._busy = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self, topics: list[str]) -> None:
        await self.reader.subscribe(topics, self._on_assigned, self._on_revoked)
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            fetched = await self.reader.fetch(0.1)
            async with self._busy:
                for columns in fetched:
                    place = (columns.topic, columns.partition)
                    if place not in self.reader.assignment():
                        continue  # revoked between the return and here
                    self.rows += [(*place, offset) for offset in columns.offsets.tolist()]
                    self.done[place] = columns.next_offset

    async def _on_assigned(self, partitions: list[tuple[str, int]]) -> None:
        self.assigned.append(partitions)

    async def _on_revoked(self, partitions: list[tuple[str, int]]) -> None:
        async with self._busy:
            mine = {place: offset for place, offset in self.done.items() if place in partitions}
            self.done.clear()
            if mine:
                await self.reader.commit(mine)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            result = await asyncio.gather(self._task, return_exceptions=True)
            assert isinstance(result[0], asyncio.CancelledError), result
        if self.done:
            await self.reader.commit(self.done)
        await self.reader.stop()


@both
async def test_members_share_partitions_and_hand_them_over_without_loss_or_repeat(
    cluster: ClusterConfig, topic: str, topic_prefix: str, writer: KafkaWriter, raw: bool
) -> None:
    group = f"{topic_prefix}group"
    sent = 0

    async def pour() -> None:
        nonlocal sent
        while True:
            for partition in range(4):
                await writer.send(topic, partition, numbered(sent, sent + 50))
            sent += 50
            await asyncio.sleep(0.01)

    pouring = asyncio.create_task(pour())
    owners = [Owner(await opened(cluster, raw, group)) for _ in range(2)]
    try:
        await owners[0].start([topic])
        await until(lambda: len(owners[0].rows) > 2000)
        await owners[1].start([topic])
        await until(lambda: len(owners[1].rows) > 2000 and len(owners[0].assigned) >= 2)
        assert [len(owner.reader.assignment()) for owner in owners] == [2, 2]
        assert not owners[0].reader.assignment() & owners[1].reader.assignment()
        await owners[0].stop()
        await until(lambda: len(owners[1].reader.assignment()) == 4)
        pouring.cancel()
        await asyncio.gather(pouring, return_exceptions=True)
        ends = await owners[1].reader.end_offsets([(topic, partition) for partition in range(4)])
        await until(lambda: all(owners[1].done.get(place) == end for place, end in ends.items()))
    finally:
        pouring.cancel()
        await owners[1].stop()
    seen = sorted(owners[0].rows + owners[1].rows)
    assert seen == [
        (topic, partition, offset) for partition in range(4) for offset in range(ends[topic, partition])
    ]


@both
async def test_an_error_in_a_callback_comes_out_of_fetch(
    cluster: ClusterConfig, topic: str, topic_prefix: str, raw: bool
) -> None:
    async def fails(partitions: list[tuple[str, int]]) -> None:
        raise RecordError("watermarks cannot be read", reason="framing")

    async def nothing(partitions: list[tuple[str, int]]) -> None: ...

    reader = await opened(cluster, raw, f"{topic_prefix}group")
    try:
        await reader.subscribe([topic], fails, nothing)
        for _ in range(3):  # its partitions are not read, so it must not go unnoticed
            with pytest.raises(RecordError, match="watermarks cannot be read"):
                await gather(reader, lambda g: len(g) > 0)
    finally:
        await reader.stop()


@both
async def test_a_callback_may_seek_and_others_start_where_the_group_is(
    cluster: ClusterConfig, topic: str, topic_prefix: str, writer: KafkaWriter, raw: bool
) -> None:
    for partition in range(3):
        await writer.send(topic, partition, numbered(0, 20))
    hints = await opened(cluster, raw, f"{topic_prefix}group")
    await hints.assign({(topic, 1): 0})
    await hints.commit({(topic, 1): 15})
    assert await hints.committed([(topic, 1), (topic, 2)]) == {(topic, 1): 15, (topic, 2): None}
    await hints.stop()

    async def seeks(partitions: list[tuple[str, int]]) -> None:
        assert partitions == [(topic, partition) for partition in range(4)]
        reader.seek((topic, 0), 18)

    async def nothing(partitions: list[tuple[str, int]]) -> None: ...

    reader = await opened(cluster, raw, f"{topic_prefix}group")
    try:
        await reader.subscribe([topic], seeks, nothing)
        gathered = await gather(reader, lambda g: len(g) == 2 + 5 + 20)
        assert [gathered.rows[topic, partition][0][0] for partition in range(3)] == [18, 15, 0]
    finally:
        await reader.stop()


async def test_without_a_group_there_is_nothing_to_commit(cluster: ClusterConfig, topic: str) -> None:
    reader = await opened(cluster)
    try:
        await reader.assign({(topic, 0): 0})
        with pytest.raises(ConfigError, match="needs a group"):
            await reader.commit({(topic, 0): 1})
        with pytest.raises(ConfigError, match="not read"):
            reader.position((topic, 1))
    finally:
        await reader.stop()


async def test_a_member_that_was_replaced_may_not_commit(
    cluster: ClusterConfig, topic: str, topic_prefix: str, writer: KafkaWriter
) -> None:
    async def nothing(partitions: list[tuple[str, int]]) -> None: ...

    await writer.send(topic, 0, numbered(0, 5))
    options = {"group_instance_id": f"{topic_prefix}one"}
    old = await opened(cluster, True, f"{topic_prefix}group", **options)
    await old.subscribe([topic], nothing, nothing)
    await gather(old, lambda g: len(g) == 5)
    new = await opened(cluster, True, f"{topic_prefix}group", **options)
    try:
        await new.subscribe([topic], nothing, nothing)
        await gather(new, lambda g: len(g) == 5)
        with pytest.raises(OwnershipLost):
            await old.commit({(topic, 0): 5})
        await new.commit({(topic, 0): 5})
    finally:
        await old.stop()
        await new.stop()


async def test_reading_goes_on_after_the_broker_was_killed(own_broker: LocalBroker) -> None:
    """kill -9 in the middle of reading and writing: [] while it is away, then on, nothing lost or doubled."""
    await asyncio.to_thread(own_broker.start)
    cluster = ClusterConfig(bootstrap=own_broker.bootstrap, request_timeout_s=40)
    topic = await made(cluster, TopicSpec("events", 2))
    writer, reader = KafkaWriter(cluster), await opened(cluster)
    await writer.start()
    done = asyncio.Event()
    sent = {0: 0, 1: 0}

    async def pour(partition: int) -> None:
        while not done.is_set():
            await writer.send(topic, partition, numbered(sent[partition], sent[partition] + 500))
            sent[partition] += 500

    pours = [asyncio.create_task(pour(partition)) for partition in (0, 1)]
    try:
        await reader.assign({(topic, 0): 0, (topic, 1): 0})
        gathered = await gather(reader, lambda g: len(g) > 20_000)
        await asyncio.to_thread(own_broker.kill9)
        while fetched := await reader.fetch(0.2):  # what was read ahead
            for columns in fetched:
                gathered.add(columns)
        started = time.monotonic()
        assert await reader.fetch(0.5) == []
        assert time.monotonic() - started < 2
        await asyncio.to_thread(own_broker.start)
        goal = len(gathered) + 20_000
        while len(gathered) < goal:
            for columns in await reader.fetch(0.5):
                gathered.add(columns)
        done.set()
        await asyncio.gather(*pours)
        while len(gathered) < sum(sent.values()):
            for columns in await reader.fetch(0.5):
                gathered.add(columns)
    finally:
        for task in pours:
            task.cancel()
        await asyncio.gather(*pours, return_exceptions=True)
        await writer.stop()
        await reader.stop()
    for partition in (0, 1):
        values = [value for *_, value in gathered.rows[topic, partition]]
        assert values == numbered(0, sent[partition]).to_pylist()


@both
async def test_both_readers_give_the_same_columns(
    cluster: ClusterConfig, topic: str, writer: KafkaWriter, raw: bool
) -> None:
    times = np.arange(300) * 1000 + 1_700_000_000_000
    values = [b"%d" % n * (n % 20) or None for n in range(300)]
    await writer.send(topic, 0, binary(values), binary([b"k%d" % n for n in range(300)]), times)
    reader = await opened(cluster, raw)
    try:
        await reader.assign({(topic, 0): 0})
        (fetched,) = await reader.fetch(10)
    finally:
        await reader.stop()
    assert fetched.offsets.dtype == fetched.timestamps_ms.dtype == np.int64
    assert fetched.timestamps_ms.tolist() == times.tolist()
    assert fetched.keys is not None
    assert fetched.keys.type == fetched.values.type == pa.binary()
    assert (fetched.first_offset, fetched.next_offset, len(fetched)) == (0, 300, 300)
    assert zlib.crc32(repr(rows_of(fetched)).encode()) == zlib.crc32(
        repr([(n, b"k%d" % n, value) for n, value in enumerate(values)]).encode()
    )


async def until(condition: Callable[[], bool], limit_s: float = 30) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        await asyncio.sleep(0.01)
