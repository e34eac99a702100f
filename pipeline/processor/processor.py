"""The processor of the legs from one region to one region: N instances share the source topics' partitions.

Landing (raw topics into the region's own curated ones) and crossing a border (the origin's curated topics
into another region's) are the same machine with different legs; "raw" means the source topic here.
For each batch, in this order:

1. compute (one thread): source records -> outcomes and curated records;
2. **decide**: append one stats record, the outcome of every position; if anyone else has appended one for
   this partition since we took it over, we lost it: drop the batch and load again;
3. **deliver**: append curated and quarantine records to the same partition number, in order;
4. **remember**: append the next position and the highest sequences to the watermarks;
5. commit the group offset, now and then: a hint for lag tools, nothing rests on it.

A crash after 2 repeats 3 exactly as decided; a crash before it repeats nothing. Within a partition all of
this is strictly one after the other; partitions overlap.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from pipeline.control_records import encode_control
from pipeline.errors import OwnershipLost, PipelineError, StoreCorrupt, TransientError
from pipeline.metrics import ProcessorMetrics
from pipeline.processor.account import quarantine_of, stats_of
from pipeline.processor.consents import ConsentFeed
from pipeline.processor.hold import Hold
from pipeline.processor.leg import Decided, Landed, Leg, Records
from pipeline.processor.state import PartitionState, RawPartition, StateLog
from pipeline.schemas import SchemaStore
from pipeline.topics import LegTopics

log = logging.getLogger(__name__)

TopicPartition = tuple[str, int]
COMMIT_HINT_S = 1.0
REVOKE_WAIT_S = 3.0
PAUSE_MAX_S = 5.0
QUEUED_BATCHES_PER_PARTITION = 1
BATCHES_IN_FLIGHT = 4  # over all partitions: bounds memory to this many fetches and what they become


class Reader(Protocol):
    """What the processor needs of a group consumer."""

    async def subscribe(
        self,
        topics: list[str],
        on_assigned: Callable[[list[TopicPartition]], Awaitable[None]],
        on_revoked: Callable[[list[TopicPartition]], Awaitable[None]],
    ) -> None: ...
    async def fetch(self, timeout_s: float) -> list[Any]: ...
    def seek(self, partition: TopicPartition, offset: int) -> None: ...
    async def commit(self, offsets: dict[TopicPartition, int]) -> None: ...
    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]: ...
    async def beginning_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]: ...


class Writer(Protocol):
    """What the processor needs of a producer: ordered, acknowledged by all in-sync replicas."""

    async def send(
        self, topic: str, partition: int, values: pa.BinaryArray, keys: pa.BinaryArray | None = None
    ) -> int: ...


@dataclass(frozen=True)
class Ports:
    """The processor's connections to the outside."""

    reader: Reader
    writer: Writer
    state: StateLog
    consents: ConsentFeed | None = None  # where some leg asks people for consent


@dataclass
class Claim:
    """A partition this instance works on: its state, its queue, what it holds back, and its task."""

    raw: RawPartition
    leg: Leg
    owner: str = field(default_factory=lambda: secrets.token_hex(8))
    state: PartitionState = field(default_factory=PartitionState)
    generation: int = 0  # counts the seeks: what was fetched before the last one is worth nothing
    queue: asyncio.Queue[tuple[int, Records]] = field(
        default_factory=lambda: asyncio.Queue(QUEUED_BATCHES_PER_PARTITION)
    )
    held: Hold = field(default_factory=Hold)
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    task: asyncio.Task[None] | None = None


class Processor:
    """Runs the legs from one region into one region until told to stop.

    ``legs`` by source topic; ``topic_ids`` the topics' incarnations (UUIDs). Raises ConfigError (a key is
    missing, the basis of a transfer has ended), StoreCorrupt (a source topic was recreated, positions are
    gone): the process must end then.
    """

    def __init__(
        self,
        legs: Mapping[str, Leg],
        topic_ids: Mapping[str, str],
        ports: Ports,
        schemas: SchemaStore,
        topics: LegTopics,
        metrics: ProcessorMetrics,
    ) -> None:
        self._legs, self._topic_ids = legs, topic_ids
        self._reader, self._writer, self._state = ports.reader, ports.writer, ports.state
        self._consents = ports.consents
        self._schemas, self._topics, self._metrics = schemas, topics, metrics
        self._quarantine = schemas.codec(schemas.latest("control.quarantine").id)
        self._claims: dict[TopicPartition, Claim] = {}
        self._stats_ends: dict[int, int] = {}
        self._stats_locks: dict[int, asyncio.Lock] = {}
        self._slots = asyncio.Semaphore(BATCHES_IN_FLIGHT)
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._group: asyncio.TaskGroup | None = None
        self.ready = asyncio.Event()  # set at the first assignment

    async def run(self, stop: asyncio.Event) -> None:
        """Process until ``stop``; what is in hand is delivered first, bounded by REVOKE_WAIT_S."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                await self._reader.subscribe(sorted(self._legs), self._assigned, self._revoked)
                housekeeping = group.create_task(self._housekeep(), name="housekeeping")
                while not stop.is_set():
                    fetched = await self._reader.fetch(0.2)
                    # Taken before anything is awaited: a claim may seek while earlier runs are handed over.
                    owners = {key: (claim, claim.generation) for key, claim in self._claims.items()}
                    for records in fetched:
                        owner = owners.get((records.topic, records.partition))
                        if owner is not None:
                            await self._enqueue(*owner, records, stop)
                await self._revoked(list(self._claims))
                housekeeping.cancel()
        except* PipelineError as errors:
            raise errors.exceptions[0] from None
        finally:
            self._compute.shutdown(wait=True, cancel_futures=True)

    async def _enqueue(self, claim: Claim, generation: int, records: Records, stop: asyncio.Event) -> None:
        """Hand a batch to its partition's task; waits while that is full (backpressure), unless stopping."""
        put = asyncio.ensure_future(claim.queue.put((generation, records)))
        stopped = asyncio.ensure_future(stop.wait())
        gone = [claim.task] if claim.task is not None else []
        await asyncio.wait((put, stopped, *gone), return_when=asyncio.FIRST_COMPLETED)
        for waiting in (put, stopped):
            waiting.cancel()

    # --- taking and giving up partitions ---------------------------------------------------------------

    async def _assigned(self, partitions: list[TopicPartition]) -> None:
        by_number: dict[int, list[Claim]] = {}
        for topic, number in partitions:
            leg = self._legs[topic]
            claim = Claim(
                RawPartition(topic, self._topic_ids[topic], number), leg, held=Hold(leg.plan.hold_s)
            )
            by_number.setdefault(number, []).append(claim)
        for number, claims in by_number.items():
            await self._load_patiently(number, claims)
        assert self._group is not None
        for claim in (claim for claims in by_number.values() for claim in claims):
            self._claims[(claim.raw.topic, claim.raw.partition)] = claim
            claim.task = self._group.create_task(
                self._work(claim), name=f"{claim.raw.topic}/{claim.raw.partition}"
            )
        self.ready.set()

    async def _revoked(self, partitions: list[TopicPartition]) -> None:
        """Let the batch in hand end, then let go. One deadline for all of them."""
        claims = [self._claims.pop(p) for p in partitions if p in self._claims]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REVOKE_WAIT_S):
                for claim in claims:
                    await claim.busy.acquire()
        for claim in claims:
            if claim.task is not None:
                claim.task.cancel()
        await asyncio.gather(*(claim.task for claim in claims if claim.task), return_exceptions=True)

    async def _load_patiently(self, number: int, claims: list[Claim]) -> None:
        """Load until it works: without its state a partition cannot go on, and nothing is lost by waiting."""
        pause_s = 0.1
        while True:
            try:
                return await self._load(number, claims)
            except TransientError as error:
                log.warning("state not loaded yet: %s", error)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, PAUSE_MAX_S)

    async def _load(self, number: int, claims: list[Claim]) -> None:
        """Read the states, take over former owners' entries, and seek."""
        states, stats_end = await self._state.load(number, [claim.raw for claim in claims])
        self._stats_ends[number] = max(stats_end, self._stats_ends.get(number, 0))
        for claim in claims:
            claim.state = states[claim.raw]
            if claim.state.other_incarnations and claim.state.next_offset is None:
                raise StoreCorrupt(
                    "the topic was deleted and created again, its positions mean other events now",
                    operation="taking a partition", place=f"{claim.raw.topic}/{claim.raw.partition}",
                    remedy="start with a new topic prefix and a new store",
                )  # fmt: skip
            if claim.state.next_offset is None:
                key = (claim.raw.topic, number)
                claim.state.next_offset = (await self._reader.beginning_offsets([key]))[key]
            await self._take_over(claim)
            claim.generation += 1
            self._reader.seek((claim.raw.topic, number), claim.state.next_offset)

    async def _take_over(self, claim: Claim) -> None:
        """Write the merged state under a name of our own, then retire all that was there under others.

        The name is a new one each time: what this claim wrote before the reload is retired like the rest.
        """
        state, claim.owner = claim.state, secrets.token_hex(8)
        if not state.old_keys:
            return
        await self._remember(claim, state.seen)
        keys = pa.array(state.old_keys, pa.binary())
        await self._writer.send(
            self._topics.watermarks, claim.raw.partition, pa.nulls(len(keys), pa.binary()), keys
        )
        state.old_keys = []

    # --- one batch ---------------------------------------------------------------------------------------

    async def _work(self, claim: Claim) -> None:
        """The task of one partition; goes back to the last complete position after a passing failure."""
        pause_s = 0.1
        while True:
            records = await self._gathered(claim)
            async with claim.busy:
                try:
                    async with self._slots:
                        await self._process(claim, records)
                    pause_s = 0.1
                except (TransientError, OwnershipLost) as error:
                    log.warning("partition taken up again: %s", error)
                    self._metrics.restarted(type(error).__name__)
                    await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                    pause_s = min(pause_s * 2, PAUSE_MAX_S)
                    while not claim.queue.empty():
                        claim.queue.get_nowait()
                    await self._load_patiently(claim.raw.partition, [claim])

    async def _gathered(self, claim: Claim) -> Records:
        """The next records; where rows need a crowd, all that have come since the first was held back."""
        event, held = claim.leg.event.name, claim.held
        held.clear()
        while (due_s := held.due_in(time.monotonic())) != 0.0:
            try:
                async with asyncio.timeout(due_s):
                    generation, records = await claim.queue.get()
            except TimeoutError:
                continue
            if generation == claim.generation:
                held.add(records, time.monotonic())
                if held.hold_s:
                    self._metrics.held(event, claim.raw.partition, len(held))
        if held.hold_s:
            self._metrics.held(event, claim.raw.partition, 0)
        return held.take()

    async def _process(self, claim: Claim, records: Records) -> None:
        loop = asyncio.get_running_loop()
        state, started, now_us = claim.state, time.monotonic(), time.time_ns() // 1000
        claim.leg.permit(now_us)
        if claim.leg.plan.consent is not None and self._consents is not None:
            await self._consents.catch_up()
        landed = await loop.run_in_executor(
            self._compute, claim.leg.process, records, state.seen, state.decided, now_us
        )
        self._metrics.computed(claim.leg.event.name, time.monotonic() - started)
        await self._decide(claim, landed)
        await self._deliver(claim, landed)
        state.seen.update(landed.seen)
        state.next_offset = landed.next_offset
        if landed.next_offset >= state.decided.end:
            state.decided = Decided()
        await self._remember(claim, landed.seen)
        event = claim.leg.event.name
        self._metrics.processed(event, landed.outcomes.counts())
        self._metrics.delivered(event, time.time() - landed.received_us / 1e6)

    async def _decide(self, claim: Claim, landed: Landed) -> None:
        """Append the stats record of what was not decided before; a second owner shows by its records."""
        start = max(landed.first_offset, claim.state.decided.end)
        if start >= landed.next_offset:
            return
        number, raw = claim.raw.partition, claim.raw
        record = encode_control(
            self._schemas, "stats", stats_of(raw, claim.leg, self._topics.destination, landed, start)
        )
        value = pa.array([record], pa.binary())
        async with self._stats_locks.setdefault(number, asyncio.Lock()):
            expected = self._stats_ends[number]
            offset = await self._writer.send(self._topics.stats, number, value)
            self._stats_ends[number] = offset + 1
            if offset != expected and await self._state.changed_by_others(raw, expected, offset):
                raise OwnershipLost(
                    "another instance decided on this partition", operation="deciding",
                    place=f"{raw.topic}/{number}",
                )  # fmt: skip
            claim.state.stats_next = offset + 1

    async def _deliver(self, claim: Claim, landed: Landed) -> None:
        number = claim.raw.partition
        if len(landed.curated):
            topic = self._topics.curated(claim.leg.event.name)
            await self._writer.send(topic, number, landed.curated)
        quarantined = quarantine_of(claim.raw, claim.leg, self._quarantine, landed)
        if len(quarantined):
            await self._writer.send(self._topics.quarantine, number, quarantined)

    async def _remember(self, claim: Claim, seen: dict[tuple[int, int], int]) -> None:
        state = claim.state
        assert state.next_offset is not None
        position = (state.next_offset, state.stats_next)
        keys, values = self._state.codec.encode(claim.raw, claim.owner, position, seen)
        await self._writer.send(self._topics.watermarks, claim.raw.partition, values, keys)

    # --- beside the way ------------------------------------------------------------------------------------

    async def _housekeep(self) -> None:
        """Group offsets as a hint, lag as a gauge; failures here harm nothing and are tried again."""
        while True:
            await asyncio.sleep(COMMIT_HINT_S)
            positions = {key: claim.state.next_offset or 0 for key, claim in self._claims.items()}
            if not positions:
                continue
            try:
                await self._reader.commit(positions)
                ends = await self._reader.end_offsets(list(positions))
            except (TransientError, OwnershipLost) as error:
                log.info("group offsets not committed: %s", error)
                continue
            lag = dict.fromkeys(self._legs, 0)
            for (topic, number), position in positions.items():
                lag[topic] += max(0, ends.get((topic, number), position) - position)
            for topic, records in lag.items():
                self._metrics.lag(self._legs[topic].event.name, records)
