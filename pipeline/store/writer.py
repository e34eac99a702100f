"""The store writer of one region: curated rows and their account into the store, exactly once.

Comes in: the curated topics of all events and the stats topics, of the region's own leg and of every leg that
ends here over a border, from the positions that the *store* holds.
Goes out: one transaction per flush with the rows, the account and the next positions. The order:

1. fetch and decode (a thread of its own), skip what is stored (pipeline.store.decode says why that is exact);
2. gather until the flush policy says enough: age, rows or bytes, whichever comes first;
3. ask who the topics are: one that was recreated since the start has another id, and what was fetched from
   it means other events (a fetch names topics, not ids, so only asking *after* it tells);
4. commit (the store's own thread): the store refuses when its positions are not the ones we started from;
5. metrics, and the group's offsets as a hint for lag tools: nothing rests on them.

A kill anywhere repeats from the last commit. While 3 and 4 run, 1 and 2 go on for one further flush at
most, then decoding stops, and with it fetching: memory is bounded by two flushes and one fetch.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from pipeline.errors import ConfigError, OwnershipLost, StoreCorrupt, TransientError
from pipeline.schemas import SchemaStore
from pipeline.store.account import RawPartition, Source, StoreState
from pipeline.store.buffer import Buffer
from pipeline.store.decode import Curated, Decoder, Fetched
from pipeline.store.ports import StorePlan, StorePorts, TopicPartition

log = logging.getLogger(__name__)

FETCH_WAIT_S = 0.2  # how late a stop or a due flush may be noticed
BUSY_WAIT_S = 0.02  # the same while a commit runs: how late its end may be noticed
HINT_EVERY_S = 1.0
HINT_TIMEOUT_S = 5.0
PAUSE_MIN_S, PAUSE_MAX_S = 0.1, 2.0


class StoreWriter:
    """Writes one region's store until told to stop; one per store at any time."""

    def __init__(self, ports: StorePorts, schemas: SchemaStore, plan: StorePlan) -> None:
        self._store, self._reader, self._cluster = ports.store, ports.reader, ports.cluster
        self._metrics, self._schemas, self._plan = ports.metrics, schemas, plan
        self._decoder = Decoder(schemas, plan.door)
        self._curated = plan.curated
        self._sources: dict[TopicPartition, Source] = {}
        self._positions: dict[Source, int] = {}  # decoded up to here
        self._committed: dict[Source, int] = {}
        self._next_raw: dict[Source, int] = {}
        self._accounted: dict[RawPartition, int] = {}
        self._buffer = Buffer(plan.flush)
        self._undecoded: deque[Fetched] = deque()  # fetched, waiting for room in the buffer
        self._commit_task: asyncio.Task[None] | None = None
        self._hint_task: asyncio.Task[None] | None = None
        self._hinted_at = 0.0
        self._pause_s = PAUSE_MIN_S
        self._store_thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._decode_thread = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self.ready = asyncio.Event()  # set when the partitions are assigned

    async def run(self, stop: asyncio.Event) -> None:
        """Store until ``stop``, then flush what is in hand, bounded by ``stop_timeout_s``.

        Raises StoreCorrupt (recreated topic, missing records, unreadable records), OwnershipLost (another
        writer moved the store on), ConfigError (door, schemas), TransientError (the store stays locked or
        unwritable): nothing in hand is stored then, and a new run goes on from the last commit.
        """
        try:
            await self._open()
            self.ready.set()
            while not stop.is_set():
                await self._step()
            await self._finish()
        finally:
            await self._close()

    # --- start -----------------------------------------------------------------------------------------

    async def _open(self) -> None:
        """Positions from the store, checked against the topics; then the assignment."""
        plan = self._plan
        state = await self._in_store(self._store.state)
        names = plan.topics
        cluster_id, topic_ids = await self._cluster.cluster_id(), await self._cluster.topic_ids(names)
        for name in names:
            if name not in topic_ids:
                raise ConfigError("the topic does not exist", operation="storing", place=name)
            for number in range(await self._cluster.partitions(name)):
                self._sources[(name, number)] = Source(cluster_id, name, topic_ids[name], number)
        _refuse_other_incarnations(state, set(self._sources.values()), set(names))
        self._positions = {source: state.positions.get(source, 0) for source in self._sources.values()}
        self._committed = dict(self._positions)
        self._next_raw, self._accounted = dict(state.next_raw), dict(state.accounted)
        await self._check_positions()
        for curated in self._curated.values():
            await self._ensure_table(curated)
        await self._reader.assign({key: self._positions[source] for key, source in self._sources.items()})

    async def _ensure_table(self, curated: Curated) -> None:
        """The table of the newest curated schema, so that a query before the first row finds it."""
        locked = self._schemas.latest(curated.subject)
        self._plan.door(locked.id)
        await self._in_store(self._store.ensure_table, curated.event, locked.arrow)

    async def _check_positions(self) -> None:
        """What the store wants next must still be there, and must not be beyond what there is."""
        keys = list(self._sources)
        first, ends = await self._reader.beginning_offsets(keys), await self._reader.end_offsets(keys)
        for key, source in self._sources.items():
            position = self._positions[source]
            if not first[key] <= position <= ends[key]:
                raise StoreCorrupt(
                    f"expected position {position} within the topic, found [{first[key]}, {ends[key]})",
                    operation="storing", place=f"{source.topic}/{source.partition}",
                    remedy="records were deleted before they were stored, or the topic was cut",
                )  # fmt: skip

    # --- one step --------------------------------------------------------------------------------------

    async def _step(self) -> None:
        """Start a commit when one is due and none runs; otherwise fetch more, or wait when full."""
        running = self._commit_task
        if running is not None and self._buffer.full:
            await asyncio.wait((running,), timeout=FETCH_WAIT_S)
            if not running.done():
                return
        if running is not None and running.done():
            self._commit_task = None
            running.result()
        trigger = self._buffer.trigger(time.monotonic())
        if trigger and self._commit_task is None:
            self._start_commit(trigger)
        if self._commit_task is not None:
            await self._take_in(BUSY_WAIT_S)
        else:
            await self._take_in(max(0.0, min(FETCH_WAIT_S, self._buffer.due_in(time.monotonic()))))

    async def _take_in(self, wait_s: float) -> None:
        """Fetch and decode once; an outage of the broker is waited out, for it harms nothing stored."""
        try:
            if not self._undecoded:
                self._undecoded.extend(await self._reader.fetch(wait_s))
            self._pause_s = PAUSE_MIN_S
        except TransientError as error:
            log.warning("nothing to store for now: %s", error)
            await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.0))
            self._pause_s = min(self._pause_s * 2, PAUSE_MAX_S)
            return
        if self._undecoded:
            await asyncio.get_running_loop().run_in_executor(self._decode_thread, self._decode)

    def _decode(self) -> None:
        """Into the buffer, in the decode thread; the loop awaits it, so nothing else touches these."""
        now_s = time.monotonic()
        while self._undecoded and not self._buffer.full:
            run = self._undecoded.popleft()
            source = self._sources[(run.topic, run.partition)]
            position = self._positions[source]
            if run.first_offset != position:
                raise StoreCorrupt(
                    f"expected records from position {position}, got them from {run.first_offset}",
                    operation="storing", place=f"{run.topic}/{run.partition}",
                )  # fmt: skip
            curated = self._curated.get(run.topic)
            if curated is None:
                self._buffer.add_stats(source, self._decoder.stats(run, self._accounted))
            else:
                rows = self._decoder.rows(curated, run, self._next_raw.get(source, 0))
                self._next_raw[source] = rows.next_raw_offset
                self._buffer.add_rows(source, rows)
            self._positions[source] = run.next_offset
            self._buffer.advance(source, position, run.next_offset, now_s)

    def _start_commit(self, trigger: str) -> None:
        full, self._buffer = self._buffer, Buffer(self._plan.flush)
        self._commit_task = asyncio.create_task(self._commit(full, trigger), name="commit")

    async def _commit(self, buffer: Buffer, trigger: str) -> None:
        await self._refuse_recreated()
        started = time.monotonic()
        await self._in_store(self._commit_blocking, buffer)
        self._committed.update(buffer.reached)
        self._metrics.committed(time.monotonic() - started, trigger)
        for event, count in buffer.rows().items():
            self._metrics.stored(event, count)
        for event, count in buffer.repeats().items():
            self._metrics.repeats(event, count)
        now_us = time.time_ns() // 1000
        for event, received in buffer.received_us.items():
            if received:
                self._metrics.end_to_end(event, (now_us - np.concatenate(received)) / 1e6)
        self._hint()

    async def _refuse_recreated(self) -> None:
        """Raises StoreCorrupt when a topic is not the one of the start; waits while the cluster is away."""
        ids = {source.topic: source.topic_id for source in self._sources.values()}
        pause_s = PAUSE_MIN_S
        while True:
            try:
                found = await self._cluster.topic_ids(list(ids))
                break
            except TransientError as error:
                log.warning("not committed yet: %s", error)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(pause_s * 2, PAUSE_MAX_S)
        for topic, topic_id in ids.items():
            if found.get(topic) != topic_id:
                raise _recreated(topic)

    def _commit_blocking(self, buffer: Buffer) -> None:
        """In the store's thread: tables and account are built there too, off the event loop."""
        tables = buffer.tables()
        for event, table in tables.items():
            self._store.ensure_table(event, table.schema)
        self._store.commit(tables, buffer.account(time.time_ns() // 1000), buffer.expected)

    # --- hints -----------------------------------------------------------------------------------------

    def _hint(self) -> None:
        """Group offsets and lag, beside the way and at most once a second."""
        now = time.monotonic()
        if now - self._hinted_at >= HINT_EVERY_S and (self._hint_task is None or self._hint_task.done()):
            self._hinted_at = now
            positions = {(source.topic, source.partition): n for source, n in self._committed.items()}
            self._hint_task = asyncio.create_task(self._tell(positions), name="offsets hint")

    async def _tell(self, positions: dict[TopicPartition, int]) -> None:
        try:
            async with asyncio.timeout(HINT_TIMEOUT_S):
                await self._reader.commit(positions)
                ends = await self._reader.end_offsets(list(positions))
        except (TransientError, OwnershipLost, TimeoutError) as error:
            log.info("group offsets not committed: %s", error)
            return
        lag = {curated.event: 0 for curated in self._curated.values()}
        for (topic, number), position in positions.items():
            if topic in self._curated:
                lag[self._curated[topic].event] += max(0, ends[(topic, number)] - position)
        for event, records in lag.items():
            self._metrics.lag(event, records)

    # --- end -------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """The commit that runs, then what is in hand; what misses the deadline is read again."""
        try:
            async with asyncio.timeout(self._plan.stop_timeout_s):
                if self._commit_task is not None:
                    await asyncio.shield(self._commit_task)
                if self._buffer:
                    self._start_commit("stop")
                    assert self._commit_task is not None
                    await asyncio.shield(self._commit_task)
        except TimeoutError:
            log.warning("stopped before the last flush was through: it is stored after the next start")

    async def _close(self) -> None:
        """Leave no task or thread; a commit in the store's thread cannot be cut short: wait for it."""
        for task in (self._hint_task, self._commit_task):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        for thread in (self._decode_thread, self._store_thread):
            await asyncio.to_thread(thread.shutdown, wait=True, cancel_futures=True)

    async def _in_store(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._store_thread, work, *arguments)


def _refuse_other_incarnations(state: StoreState, sources: set[Source], names: set[str]) -> None:
    """Positions in a recreated topic, or in another cluster's, mean other records."""
    known = {(source.cluster_id, source.topic, source.topic_id) for source in sources}
    for stored in state.positions:
        if stored.topic in names and (stored.cluster_id, stored.topic, stored.topic_id) not in known:
            raise _recreated(stored.topic)


def _recreated(topic: str) -> StoreCorrupt:
    return StoreCorrupt(
        "the topic was recreated or is another cluster's: the stored positions are not its own",
        operation="storing", place=topic,
        remedy="use a new topic prefix or a new store; nothing of it was written",
    )  # fmt: skip
