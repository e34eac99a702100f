"""Fetch requests of our own: raw record batches, read ahead, with bounded memory.

Comes in: positions. Goes out: per partition pieces of response bytes, in order, contiguous. Invariants: a
piece is kept only when it starts where the partition's read-ahead stands, so a seek makes late answers
harmless; at most two pieces per partition wait; a broker that is away is asked again for ever, with backoff
and jitter.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from aiokafka.protocol.fetch import FetchRequest

from connectors.kafka_batch import BatchRefused, split_batches
from connectors.kafka_client import (
    EARLIEST,
    LATEST,
    ClusterClient,
    Partition,
    WireError,
    backoff_s,
    check_code,
    list_offsets,
)
from pipeline.errors import ConfigError, PipelineError, StoreCorrupt, TransientError

log = logging.getLogger(__name__)

OutOfRange = Literal["stop", "earliest"]
_PIECES_MAX = 2  # one being worked on by the caller, one read ahead
_RESPONSE_PARTITIONS = 8  # a response holds at most this many partitions' worth of bytes
_SMALL_BYTES = 262_144  # of an answer
_SHORT_POLL_MS = 10  # while a partition with a full buffer waits for its turn behind this poll
_SUSPECT_MAX = 5  # answers in a row that hold bytes but no whole batch, or a corrupt one

_OFFSET_OUT_OF_RANGE = 1
_CORRUPT_MESSAGE = 2
_NOT_ALLOWED = (17, 29, 35)


@dataclass(frozen=True)
class FetchLimits:
    """How much and how long one request asks."""

    partition_bytes_max: int
    wait_max_ms: int
    linger_ms: float = 0.0


@dataclass
class Piece:
    """Response bytes of one partition; their whole batches cover offsets [start, end)."""

    start: int
    end: int
    data: memoryview


@dataclass
class Lane:
    """One partition being read; replaced as a whole by a seek."""

    position: int  # what the caller gets next
    ahead: int  # what is asked of the broker next
    on_out_of_range: OutOfRange = "stop"
    pieces: deque[Piece] = field(default_factory=deque)
    failures: int = 0
    suspect: int = 0  # answers in a row that could not be used; the reader clears it
    retry_at: float = 0.0
    error: PipelineError | None = None

    @property
    def hungry(self) -> bool:
        """True when another piece may be asked for."""
        return self.error is None and len(self.pieces) < _PIECES_MAX


class RawFetch:
    """Keeps every lane's pieces filled; one request per broker in flight."""

    def __init__(self, client: ClusterClient, limits: FetchLimits, offsets_timeout_s: float) -> None:
        self._client = client
        self._limits = limits
        self._offsets_timeout_s = offsets_timeout_s
        self.lanes: dict[Partition, Lane] = {}
        self.ready = asyncio.Event()  # a piece or an error has come
        self._wake = asyncio.Event()  # lanes or pieces changed: look for work
        self._flights: dict[int, asyncio.Task[None]] = {}
        self._node_failures: dict[int, int] = {}
        self._turn = 0
        self._pump_task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to read ahead; needs a running loop and a started client."""
        self._pump_task = asyncio.create_task(self._pump(), name="kafka fetch")

    async def stop(self) -> None:
        """End all requests."""
        tasks = [*self._flights.values(), *([self._pump_task] if self._pump_task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._flights.clear()

    def distrust(self, partition: Partition, lane: Lane, reason: str) -> None:
        """The front piece failed its checks: fetch it anew, a few times, then stop the partition."""
        again = Lane(lane.position, lane.position, lane.on_out_of_range, suspect=lane.suspect)
        self.lanes[partition] = again
        self._suspect(partition, again, reason)
        self._wake.set()

    def raise_if_broken(self) -> None:
        """Raise what ended the reading ahead, if anything did."""
        if self._pump_task is not None and self._pump_task.done() and not self._pump_task.cancelled():
            self._pump_task.result()

    def open(self, partition: Partition, offset: int, on_out_of_range: OutOfRange = "stop") -> None:
        """Read ``partition`` from ``offset``; drops what was read ahead."""
        self.lanes[partition] = Lane(offset, offset, on_out_of_range)
        self._wake.set()

    def close(self, partition: Partition) -> None:
        """Forget the partition."""
        self.lanes.pop(partition, None)

    def consumed(self) -> None:
        """Pieces were taken: there may be room to read ahead."""
        self._wake.set()

    def has_ready(self) -> bool:
        """True when some lane has a piece or an error."""
        return any(lane.pieces or lane.error for lane in self.lanes.values())

    async def _pump(self) -> None:
        while True:
            self._wake.clear()
            loop = asyncio.get_running_loop()
            later: list[float] = []
            for node, partitions in self._wanted(loop.time(), later).items():
                if node not in self._flights:
                    self._flights[node] = loop.create_task(
                        self._fly(node, partitions), name=f"kafka fetch {node}"
                    )
            pause = max(0.001, min(later) - loop.time()) if later else None
            wake = loop.create_task(self._wake.wait())
            waiters = {wake, *self._flights.values()}
            try:
                await asyncio.wait(waiters, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            finally:
                wake.cancel()
            for node in [node for node, flight in self._flights.items() if flight.done()]:
                self._flights.pop(node).result()

    def _wanted(self, now: float, later: list[float]) -> dict[int, list[Partition]]:
        """Hungry partitions by leader; ``later`` gets the times when those that back off may be asked."""
        wanted: dict[int, list[Partition]] = {}
        lost = False
        for partition, lane in self.lanes.items():
            if not lane.hungry:
                continue
            if lane.retry_at > now:
                later.append(lane.retry_at)
                continue
            node = self._client.leader(partition)
            if node is None:
                self._back_off(lane)
                later.append(lane.retry_at)
                lost = True
            else:
                wanted.setdefault(node, []).append(partition)
        if lost and -1 not in self._flights:
            topics = {topic for topic, _ in self.lanes}
            self._flights[-1] = asyncio.get_running_loop().create_task(self._find_leaders(topics))
        return wanted

    async def _find_leaders(self, topics: set[str]) -> None:
        await self._client.follow(topics)
        await self._client.refresh()

    def _back_off(self, lane: Lane) -> None:
        lane.failures += 1
        lane.retry_at = asyncio.get_running_loop().time() + backoff_s(lane.failures)

    async def _fly(self, node: int, partitions: list[Partition]) -> None:
        """One request and what its answer means; never raises."""
        # Closed, perhaps, since it was asked for: a rebalance may come in between.
        asked = {partition: self.lanes[partition] for partition in partitions if partition in self.lanes}
        if not asked:
            return
        try:
            response = await self._client.send(node, self._request(node, asked))
        except (WireError, TransientError) as error:
            failures = self._node_failures[node] = self._node_failures.get(node, 0) + 1
            log.warning("fetch from node %d: %s; trying again", node, error)
            await asyncio.sleep(backoff_s(failures))
            await self._client.refresh()
            return
        self._node_failures.pop(node, None)
        stale, arrived = False, 0
        for topic, rows in response.topics:
            for number, code, _, *rest in rows:
                partition = (topic, number)
                lane = asked.get(partition)
                if lane is None or self.lanes.get(partition) is not lane:
                    continue  # sought or given up meanwhile
                if code:
                    stale = await self._failed(partition, lane, code) or stale
                else:
                    self._arrived(partition, lane, rest[-1] or b"")
                    arrived += len(rest[-1] or b"")
        if stale:
            await self._client.refresh()
        elif 0 < arrived < _SMALL_BYTES:
            # What came is handed out already. The next answer gathers for a moment: one of 100 records
            # costs the stages behind nearly as much as one that holds 10,000.
            await asyncio.sleep(self._limits.linger_ms / 1000)

    def _request(self, node: int, asked: dict[Partition, Lane]) -> FetchRequest:
        """Partitions take turns at the front: only the first with data may exceed its byte limit (KIP-74)."""
        self._turn += 1
        turn = self._turn % len(asked)
        order = [*asked][turn:] + [*asked][:turn]
        topics: list[tuple[str, list[tuple[int, int, int]]]] = []
        for topic, number in order:
            row = (number, asked[topic, number].ahead, self._limits.partition_bytes_max)
            if topics and topics[-1][0] == topic:
                topics[-1][1].append(row)
            else:
                topics.append((topic, [row]))
        others = any(self._client.leader(p) == node and p not in asked for p in self.lanes)
        wait_ms = min(_SHORT_POLL_MS, self._limits.wait_max_ms) if others else self._limits.wait_max_ms
        bytes_max = min(len(asked), _RESPONSE_PARTITIONS) * self._limits.partition_bytes_max
        return FetchRequest(wait_ms, 1, bytes_max, 0, topics)

    def _arrived(self, partition: Partition, lane: Lane, data: bytes) -> None:
        lane.failures = 0
        if not data:
            return
        view = memoryview(data)
        end = batches_end(view, lane.ahead)
        if end <= lane.ahead:
            self._suspect(partition, lane, "bytes without a whole batch")
            return
        lane.pieces.append(Piece(lane.ahead, end, view))
        lane.ahead = end
        self.ready.set()

    def _suspect(self, partition: Partition, lane: Lane, reason: str) -> None:
        """Ask again a few times, then stop the partition: what is stored there cannot be trusted."""
        lane.suspect += 1
        self._back_off(lane)
        if lane.suspect >= _SUSPECT_MAX:
            self._stop_lane(lane, corrupt(partition, lane.ahead, reason))

    def _stop_lane(self, lane: Lane, error: PipelineError) -> None:
        lane.error = error
        self.ready.set()

    async def _failed(self, partition: Partition, lane: Lane, code: int) -> bool:
        """Act on an error code; True when metadata should be read again."""
        place = f"{partition[0]}[{partition[1]}]"
        try:
            check_code(code)
        except WireError as error:
            self._back_off(lane)
            if code == _OFFSET_OUT_OF_RANGE:
                await self._out_of_range(partition, lane)
                return False
            if code == _CORRUPT_MESSAGE:
                self._suspect(partition, lane, "the broker finds it corrupt")
                return False
            if code in _NOT_ALLOWED:
                problem = f"broker refuses ({error.name})"
                self._stop_lane(
                    lane,
                    ConfigError(
                        problem, operation="fetch", place=place, remedy="check topic and access list"
                    ),
                )
                return False
            log.warning("fetch %s: %s; trying again", place, error.name)
        return True

    async def _out_of_range(self, partition: Partition, lane: Lane) -> None:
        """Say what the log holds; go to its start only where the caller agreed to lose what is before it."""
        try:
            start = (await list_offsets(self._client, {partition: EARLIEST}, self._offsets_timeout_s))[
                partition
            ]
            end = (await list_offsets(self._client, {partition: LATEST}, self._offsets_timeout_s))[partition]
        except TransientError:
            return
        if self.lanes.get(partition) is not lane or start <= lane.ahead <= end:
            return
        place = f"{partition[0]}[{partition[1]}]"
        if lane.ahead < start and lane.on_out_of_range == "earliest":
            log.warning("fetch %s: offset %d is gone, going on at %d", place, lane.ahead, start)
            if not lane.pieces:
                lane.position = start
            lane.ahead = start
            return
        remedy = (
            "the log was deleted before it was read: raise its retention, then account for the gap"
            if lane.ahead < start
            else "the topic was recreated or truncated: check its id"
        )
        self._stop_lane(
            lane,
            StoreCorrupt(
                f"asked for offset {lane.ahead}, the log holds [{start}, {end})",
                operation="fetch",
                place=place,
                remedy=remedy,
            ),
        )


def batches_end(data: memoryview, start: int) -> int:
    """Offset after the last whole batch, by the headers alone; ``start`` when there is none."""
    end = start
    try:
        for batch in split_batches(data):
            end = max(end, batch.next_offset)
    except BatchRefused:
        return max(end, start + 1) if end == start else end
    return end


def corrupt(partition: Partition, offset: int, reason: str) -> StoreCorrupt:
    """The error for bytes that stay wrong however often they are fetched."""
    return StoreCorrupt(
        f"batch at offset {offset}: {reason}, in {_SUSPECT_MAX} fetches",
        operation="fetch",
        place=f"{partition[0]}[{partition[1]}]",
        remedy="compare the replicas' segments with kafka-dump-log, then seek past the batch by hand",
    )
