"""The same reading and writing through aiokafka's public classes alone.

Slower (one Python object per record), kept for the day when aiokafka changes below its public API, and as the
other side of the contract tests. Not bounded: decompression. Not the same: a producer given up after an
unknown outcome goes on trying in the background until its broker is back, because aiokafka cannot be told to
stop; what it then writes is a repeat, dropped by identity like any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
from aiokafka import AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import (
    CorruptRecordException,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    OffsetOutOfRangeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)

from connectors.kafka_client import EARLIEST, Partition, connection_options
from connectors.kafka_encode import Columns
from connectors.kafka_fetch import OutOfRange
from connectors.kafka_group import GroupMember
from connectors.kafka_records import Fetched
from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError, RecordError, StoreCorrupt, TransientError

_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
_STOP_WAIT_S = 5.0


class PublicSource:
    """aiokafka's consumer as the source; positions are its positions."""

    def __init__(self, member: GroupMember) -> None:
        self._member = member
        self._positions: dict[Partition, int] = {}
        self._on_out_of_range: dict[Partition, OutOfRange] = {}

    async def start(self) -> None:
        await self._member.start()

    async def stop(self) -> None:
        """Nothing: the reader stops its member."""

    async def follow(self, topics: Iterable[str]) -> None:
        """Nothing: the consumer does so itself."""

    def open(self, partition: Partition, offset: int, on_out_of_range: OutOfRange) -> None:
        place = TopicPartition(*partition)
        self._positions[partition] = offset
        self._on_out_of_range[partition] = on_out_of_range
        self._member.consumer.seek(place, offset)
        self._member.consumer.resume(place)

    def close(self, partition: Partition) -> None:
        self._positions.pop(partition, None)

    def position(self, partition: Partition) -> int:
        return self._positions[partition]

    async def offsets(self, which: Mapping[Partition, int]) -> dict[Partition, int]:
        early = [TopicPartition(*p) for p, time in which.items() if time == EARLIEST]
        late = [TopicPartition(*p) for p, time in which.items() if time != EARLIEST]
        try:
            found = await self._member.consumer.beginning_offsets(early) if early else {}
            found |= await self._member.consumer.end_offsets(late) if late else {}
        except (KafkaError, OSError) as error:
            raise self._member.translated(error, "list offsets") from error
        return {(place.topic, place.partition): offset for place, offset in found.items()}

    async def take(self, timeout_s: float) -> list[Fetched]:
        if self._member.rebalancing:
            await asyncio.sleep(min(timeout_s, 0.05))  # getmany would wait for the rebalance without a limit
            return []
        try:
            found = await self._member.consumer.getmany(timeout_ms=int(timeout_s * 1000))
        except OffsetOutOfRangeError as error:
            await self._out_of_range(error.args[0])
            return []
        except CorruptRecordException as error:
            raise StoreCorrupt(
                "batch fails its checksum", operation="fetch", remedy="compare the replicas' segments"
            ) from error
        except (KafkaError, OSError) as error:
            raise self._member.translated(error, "fetch") from error
        return [fetched for place, records in found.items() for fetched in self._columns(place, records)]

    def _columns(self, place: TopicPartition, records: list[ConsumerRecord]) -> Iterable[Fetched]:
        partition = (place.topic, place.partition)
        first = self._positions.get(partition)
        if first is None or not records:
            return
        keys = [record.key for record in records]
        after = records[-1].offset + 1
        self._positions[partition] = after
        yield Fetched(
            *partition,
            first,
            after,
            np.array([record.offset for record in records], np.int64),
            np.array([record.timestamp for record in records], np.int64),
            pa.array(keys, pa.binary()) if any(key is not None for key in keys) else None,
            pa.array([record.value for record in records], pa.binary()),
        )

    async def _out_of_range(self, asked: Mapping[TopicPartition, int]) -> None:
        for place, offset in asked.items():
            partition = (place.topic, place.partition)
            start = (await self.offsets({partition: EARLIEST}))[partition]
            end = (await self.offsets({partition: -1}))[partition]
            if offset < start and self._on_out_of_range.get(partition) == "earliest":
                self.open(partition, start, "earliest")
                continue
            raise StoreCorrupt(
                f"asked for offset {offset}, the log holds [{start}, {end})",
                operation="fetch",
                place=f"{place.topic}[{place.partition}]",
                remedy="check the topic's id and retention",
            )


class PublicProduce:
    """aiokafka's idempotent producer, one record appended at a time."""

    def __init__(self, cluster: ClusterConfig, batch_bytes_max: int) -> None:
        self._cluster = cluster
        self._batch_bytes_max = batch_bytes_max
        self._producer: AIOKafkaProducer | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await self._started()

    async def stop(self) -> None:
        self._leave()
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=_STOP_WAIT_S)

    async def deliver(self, partition: Partition, rows: Columns) -> int:
        topic, number = partition
        place = f"{topic}[{number}]"
        try:
            async with asyncio.timeout(self._cluster.request_timeout_s):
                producer = await self._started()
                batch = self._filled(producer, rows)
                delivered = await producer.send_batch(batch, topic, partition=number)
                return int((await delivered).offset)
        except _TOO_LARGE as error:
            raise RecordError(f"larger than {topic} takes", reason="oversize", remedy="send less") from error
        except TopicAuthorizationFailedError as error:
            raise ConfigError(type(error).__name__, operation="produce", place=place) from error
        except (KafkaError, KafkaTimeoutError, OSError, TimeoutError) as error:
            self._leave()
            raise TransientError(
                f"not acknowledged within {self._cluster.request_timeout_s} s ({type(error).__name__});"
                " outcome unknown",
                operation="produce",
                place=place,
                remedy="send the same events again",
            ) from error

    async def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            compression = self._cluster.compression
            producer = AIOKafkaProducer(
                **connection_options(self._cluster),
                enable_idempotence=True,
                acks="all",
                compression_type=None if compression == "none" else compression,
                max_batch_size=self._batch_bytes_max,
                max_request_size=self._batch_bytes_max,
            )
            try:
                await producer.start()
            except (KafkaError, OSError) as error:
                await producer.stop()
                raise TransientError(
                    type(error).__name__, operation="connect to Kafka", place=self._cluster.bootstrap
                ) from error
            self._producer = producer
        return self._producer

    def _filled(self, producer: AIOKafkaProducer, rows: Columns):  # type: ignore[no-untyped-def]
        """A closed batch builder with all rows; they fit, by the writer's bounds."""
        batch = producer.create_batch()
        keys = [None] * len(rows.values) if rows.keys is None else rows.keys.to_pylist()
        times = [None] * len(rows.values) if rows.timestamps_ms is None else rows.timestamps_ms.tolist()
        for value, key, time_ms in zip(rows.values.to_pylist(), keys, times, strict=True):
            if batch.append(key=key, value=value, timestamp=time_ms) is None:
                raise RecordError("rows do not fit one batch", reason="oversize", remedy="send less")
        batch.close()
        return batch

    def _leave(self) -> None:
        """Give the producer up: its sequence numbers are in doubt."""
        producer, self._producer = self._producer, None
        if producer is not None:
            task = asyncio.get_running_loop().create_task(producer.stop())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
