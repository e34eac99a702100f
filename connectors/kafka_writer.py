"""Columns to Kafka: idempotent, all replicas, in order per partition.

Comes in: Arrow columns for one partition. Goes out: the base offset, once every replica in sync has them.
Invariants: one batch of a partition is in flight at a time, and a try again sends the same bytes under the
same producer id and sequence, so the broker drops what it has already; when the outcome stays unknown the
identity is given up, because the broker would answer other bytes under a used sequence with "have it" and
lose them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import InitProducerIdRequest

from connectors.kafka_batch import UnsealedBatch
from connectors.kafka_client import ClusterClient, Partition, WireError, backoff_s, check_code
from connectors.kafka_encode import Columns, batch_bounds, encode_batch
from connectors.kafka_public import PublicProduce
from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError, RecordError, TransientError

BATCH_BYTES_MAX = (
    1_000_000  # uncompressed, header included; the broker's default message.max.bytes is 1,048,588
)
_THREAD_FROM_BYTES = 32_768  # below it a hop to a thread costs more than encoding in place
_SEQUENCE_MODULUS = 2**31

_TOO_LARGE = (10, 18)
_NOT_ALLOWED = (17, 29, 31, 43, 44, 53)
_INVALID_RECORD = 87
_DUPLICATE_SEQUENCE = 46
_IDENTITY_LOST = (45, 47, 49, 59, 90)  # sequence, epoch or producer id not what the broker holds


class Produce(Protocol):
    """How a run of rows that fits one batch reaches its partition."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def deliver(self, partition: Partition, rows: Columns) -> int:
        """Base offset after all replicas have it; raises as :meth:`KafkaWriter.send`."""
        ...


class KafkaWriter:
    """Sends columns; safe to use from many tasks, one partition's sends follow each other."""

    def __init__(
        self, cluster: ClusterConfig, *, raw: bool = True, batch_bytes_max: int = BATCH_BYTES_MAX
    ) -> None:
        self._produce: Produce = RawProduce(cluster) if raw else PublicProduce(cluster, batch_bytes_max)
        self._batch_bytes_max = batch_bytes_max
        self._locks: dict[Partition, asyncio.Lock] = {}

    async def start(self) -> None:
        """Connect. Raises TransientError when no broker answers."""
        await self._produce.start()

    async def stop(self) -> None:
        """Close; sends under way end in TransientError."""
        await self._produce.stop()

    async def send(
        self,
        topic: str,
        partition: int,
        values: pa.BinaryArray,
        keys: pa.BinaryArray | None = None,
        timestamps_ms: np.ndarray | None = None,
    ) -> int:
        """Append the rows and return the offset of the first; -1 for no rows.

        A null value with a key is a tombstone. ``timestamps_ms`` int64 epoch milliseconds, default now. Rows
        are split into batches; when one fails, those before it stay written. Raises RecordError (oversize)
        before anything is sent when a record can never fit; TransientError when a batch is not acknowledged
        within the cluster's ``request_timeout_s`` of its first try: it may or may not be written, send it
        again; ConfigError when the broker forbids it.
        """
        columns = Columns(values, keys, timestamps_ms)
        bounds = batch_bounds(columns, self._batch_bytes_max)
        place = (topic, partition)
        async with self._locks.setdefault(place, asyncio.Lock()):
            base = -1
            for start, stop in bounds:
                offset = await self._produce.deliver(place, columns.slice(start, stop))
                base = offset if base < 0 else base
            return base


@dataclass
class _Lane:
    """One partition's producer identity; None until it is asked for, and after it became doubtful."""

    producer: tuple[int, int] | None = None
    sequence: int = 0


@dataclass
class _Try:
    """How long one batch may still be tried, and what the last try said."""

    deadline: float
    attempt: int = 0
    sent: bool = False
    said: str = "no leader"

    def left_s(self) -> float:
        return self.deadline - time.monotonic()


@dataclass
class RawProduce:
    """Produce requests of our own, around batches joined in bulk."""

    cluster: ClusterConfig
    client: ClusterClient = field(init=False)
    lanes: dict[Partition, _Lane] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.client = ClusterClient(self.cluster)

    async def start(self) -> None:
        await self.client.start()

    async def stop(self) -> None:
        await self.client.close()

    async def deliver(self, partition: Partition, rows: Columns) -> int:
        lane = self.lanes.setdefault(partition, _Lane())
        batch = await self._encode(rows)
        try:
            return await self._append(partition, lane, batch)
        except _TooLarge:
            # The broker refused it before writing: the sequence is still free.
            return await self._deliver_halves(partition, rows)
        except BaseException:
            lane.producer = None  # also when cancelled: what is in flight may still be written
            raise

    async def _encode(self, rows: Columns) -> UnsealedBatch:
        if rows.values.nbytes < _THREAD_FROM_BYTES:
            return encode_batch(rows, self.cluster.compression)
        return await asyncio.to_thread(encode_batch, rows, self.cluster.compression)

    async def _deliver_halves(self, partition: Partition, rows: Columns) -> int:
        count = len(rows.values)
        if count == 1:
            raise RecordError(
                f"larger than max.message.bytes of {partition[0]}",
                reason="oversize",
                remedy="send less per event",
            )
        base = await self.deliver(partition, rows.slice(0, count // 2))
        await self.deliver(partition, rows.slice(count // 2, count))
        return base

    async def _append(self, partition: Partition, lane: _Lane, batch: UnsealedBatch) -> int:
        """Try until acknowledged or the deadline; the bytes and their sequence never change between tries."""
        tries = _Try(time.monotonic() + self.cluster.request_timeout_s)
        sealed = b""
        while tries.left_s() > 0:
            tries.attempt += 1
            try:
                async with asyncio.timeout(tries.left_s()):
                    if lane.producer is None:
                        lane.producer, lane.sequence = await self._new_producer(), 0
                    sealed = sealed or batch.seal(*lane.producer, lane.sequence)
                    offset = await self._request(partition, sealed, tries)
                lane.sequence = (lane.sequence + batch.count) % _SEQUENCE_MODULUS
                return offset
            except TimeoutError:
                tries.said = "no answer"
            except WireError as error:
                self._refused(partition, error)
                tries.said = error.name
                await asyncio.sleep(min(backoff_s(tries.attempt), max(0.0, tries.left_s())))
                await self._refresh(tries)
        outcome = "outcome unknown" if tries.sent else "nothing was sent"
        raise TransientError(
            f"not acknowledged within {self.cluster.request_timeout_s} s ({tries.said}); {outcome}",
            operation="produce",
            place=_name(partition),
            remedy="send the same events again",
        )

    async def _refresh(self, tries: _Try) -> None:
        try:
            async with asyncio.timeout(max(0.0, tries.left_s())):
                await self.client.refresh()
        except TimeoutError:
            return

    async def _new_producer(self) -> tuple[int, int]:
        response = await self.client.send(self.client.any_node(), InitProducerIdRequest(None, 60_000))
        check_code(response.error_code)
        return response.producer_id, response.producer_epoch

    async def _request(self, partition: Partition, sealed: bytes, tries: _Try) -> int:
        node = self.client.leader(partition)
        if node is None:
            await self.client.follow([partition[0]])
            node = self.client.leader(partition)
        if node is None:
            raise WireError("no leader")
        topic, number = partition
        patience_ms = int(self.cluster.request_timeout_s * 1000)
        tries.sent = True
        response = await self.client.send(
            node, ProduceRequest(None, -1, patience_ms, [(topic, [(number, sealed)])])
        )
        for code, offset in _acknowledged(response.topics):
            if code == _DUPLICATE_SEQUENCE:
                return -1  # written by an earlier try, too long ago for the broker to know where
            check_code(code)
            return offset
        raise WireError("empty answer")

    def _refused(self, partition: Partition, error: WireError) -> None:
        """Raise where trying again cannot help."""
        place = _name(partition)
        if error.code in _TOO_LARGE:
            raise _TooLarge from error
        if error.code == _INVALID_RECORD:
            raise RecordError(
                f"{place} refuses the record ({error.name})",
                reason="refused",
                remedy="a compacted topic takes only records with keys",
            ) from error
        if error.code in _NOT_ALLOWED:
            raise ConfigError(
                f"broker refuses ({error.name})",
                operation="produce",
                place=place,
                remedy="check topic and access list",
            ) from error
        if error.code in _IDENTITY_LOST:
            raise TransientError(
                f"broker no longer knows this producer ({error.name}); outcome unknown",
                operation="produce",
                place=place,
                remedy="send the same events again",
            ) from error


class _TooLarge(Exception):
    """The broker takes only smaller batches for this topic."""


def _acknowledged(topics: list) -> Iterator[tuple[int, int]]:
    for _, rows in topics:
        for _, code, offset, *_ in rows:
            yield int(code), int(offset)


def _name(partition: Partition) -> str:
    return f"{partition[0]}[{partition[1]}]"
