"""The writer's own logic on a store that keeps everything in memory: start, flush, bounds, stop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pyarrow as pa
import pytest

from pipeline.config import FlushConfig
from pipeline.errors import ConfigError, OwnershipLost, StoreCorrupt, TransientError
from pipeline.store import Inflow, Source, StorePlan, StorePorts, StoreState, StoreWriter
from tests.store_world import EVENTS, REGION, TOPICS, FakeCluster, FakeReader, World

CURATED = TOPICS.curated(REGION, EVENTS[0])
DEADLINE_S = 20.0


class MemoryStore:
    """Keeps commits in a list; ``hold`` lets a commit wait, ``error`` lets it fail."""

    def __init__(self, state: StoreState | None = None) -> None:
        self.start = state or StoreState()
        self.commits: list[tuple[dict[str, pa.Table], list[dict], dict[Source, int]]] = []
        self.positions: dict[Source, int] = dict(self.start.positions)
        self.tables: list[str] = []
        self.hold: threading.Event | None = None
        self.waiting = threading.Event()
        self.error: Exception | None = None
        self.threads: set[int] = set()

    def state(self) -> StoreState:
        self.threads.add(threading.get_ident())
        return self.start

    def ensure_table(self, event: str, schema: pa.Schema) -> None:
        self.tables.append(event)

    def commit(self, rows: Mapping[str, pa.Table], account: pa.Table, expected: Mapping[Source, int]) -> None:
        self.threads.add(threading.get_ident())
        self.waiting.set()
        if self.hold is not None:
            assert self.hold.wait(DEADLINE_S)
        if self.error is not None:
            raise self.error
        for source, position in expected.items():
            assert self.positions.get(source, 0) == position
        values = account.to_pylist()
        self.commits.append((dict(rows), values, dict(expected)))
        for row in values:
            source = Source(row["cluster_id"], row["topic"], row["topic_id"], row["partition"])
            self.positions[source] = row["next_position"]

    def stored(self, event: str) -> int:
        return sum(len(rows[event]) for rows, _, _ in self.commits if event in rows)


class Counted:
    """Metrics as lists."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.repeated: dict[str, int] = {}
        self.triggers: list[str] = []
        self.lags: dict[str, int] = {}
        self.ages = 0

    def stored(self, event: str, count: int) -> None:
        self.rows[event] = self.rows.get(event, 0) + count

    def repeats(self, event: str, count: int) -> None:
        self.repeated[event] = self.repeated.get(event, 0) + count

    def committed(self, seconds: float, trigger: str) -> None:
        self.triggers.append(trigger)

    def end_to_end(self, event: str, seconds) -> None:
        self.ages += len(seconds)

    def lag(self, event: str, records: int) -> None:
        self.lags[event] = records


class Setup:
    """A world, its reader, a store and a writer over them."""

    def __init__(self, store: MemoryStore | None = None, flush: FlushConfig | None = None, **plan) -> None:
        self.world = World(5, raw_count=600)
        self.store, self.reader = store or MemoryStore(), FakeReader(self.world, 7)
        self.cluster, self.metrics = FakeCluster(self.world), Counted()
        self.plan = StorePlan(
            (Inflow(TOPICS.landing(REGION), EVENTS),),
            plan.pop("door", lambda schema_id: None),
            flush or FlushConfig(rows=300),
            **plan,
        )
        self.stop = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        ports = StorePorts(self.store, self.reader, self.cluster, self.metrics)
        writer = StoreWriter(ports, self.world.schemas, self.plan)
        task = asyncio.create_task(writer.run(self.stop))
        try:
            ready = asyncio.create_task(writer.ready.wait())
            await asyncio.wait((task, ready), timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            yield task
        finally:
            self.stop.set()
            await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), DEADLINE_S)

    async def whole_run(self) -> None:
        async with self.running() as task:
            await until(lambda: self.reader.at_end() or task.done())
            self.stop.set()
            await task

    def source(self, topic: str, number: int = 0) -> Source:
        return Source("cluster-1", topic, self.world.ids[topic], number)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - the condition is about a thread or a log, not a task
            await asyncio.sleep(0.005)


async def test_everything_is_stored_once_and_counted():
    setup = Setup()
    await setup.whole_run()
    for event in EVENTS:
        passed = sum(len(t.passed) for (e, _), t in setup.world.truth.items() if e == event)
        assert setup.store.stored(event) == setup.metrics.rows[event] == passed
    assert sum(setup.metrics.repeated.values()) > 0
    assert setup.metrics.ages == sum(setup.metrics.rows.values())
    assert set(setup.metrics.triggers) <= {"rows", "bytes", "age", "stop"}
    assert setup.metrics.triggers[-1] == "stop"
    assert setup.store.positions == {
        setup.source(topic, number): len(log) for (topic, number), log in setup.world.logs.items()
    }


async def test_the_store_is_used_from_one_thread_that_is_not_the_loops():
    setup = Setup()
    await setup.whole_run()
    assert len(setup.store.threads) == 1
    assert threading.get_ident() not in setup.store.threads


async def test_tables_are_there_before_the_first_row():
    setup = Setup()
    setup.reader.limits = dict.fromkeys(setup.world.logs, 0)
    async with setup.running():
        await until(lambda: len(setup.reader.positions) > 0)
        assert setup.store.tables == list(EVENTS)


async def test_it_reads_on_from_the_stores_positions():
    first = Setup()
    first.reader.limits = {key: len(log) // 2 for key, log in first.world.logs.items()}
    await first.whole_run()
    state = StoreState(
        first.store.positions,
        {
            Source(row["cluster_id"], row["topic"], row["topic_id"], row["partition"]): row["next_raw_offset"]
            for _, account, _ in first.store.commits
            for row in account
            if row["kind"] == "rows"
        },
        {
            first.world.raw(row["event"], row["raw_partition"]): row["next_accounted"]
            for _, account, _ in first.store.commits
            for row in account
            if row["raw_topic"]
        },
    )
    second = Setup(MemoryStore(state))
    await second.whole_run()
    for event in EVENTS:
        passed = sum(len(t.passed) for (e, _), t in second.world.truth.items() if e == event)
        assert first.store.stored(event) + second.store.stored(event) == passed


async def test_age_flushes_a_single_record():
    setup = Setup(flush=FlushConfig(age_s=0.05))
    setup.reader.limits = dict.fromkeys(setup.world.logs, 0) | {(CURATED, 0): 1}
    async with setup.running():
        await until(lambda: len(setup.store.commits) == 1)
        assert setup.metrics.triggers == ["age"]


async def test_while_a_commit_hangs_at_most_one_more_flush_is_taken_in():
    setup = Setup(flush=FlushConfig(rows=300))
    setup.store.hold = threading.Event()
    async with setup.running() as task:
        await until(setup.store.waiting.is_set)
        before = -1
        while before != setup.reader.fetched:  # until fetching stands still
            before = setup.reader.fetched
            await asyncio.sleep(0.3)
        assert not setup.reader.at_end()
        one_fetch = 400 * len(setup.world.logs)
        assert setup.reader.fetched <= 2 * (300 + one_fetch)
        assert not task.done()
        setup.store.hold.set()
        await until(setup.reader.at_end)


async def test_a_group_that_cannot_be_told_harms_nothing():
    setup = Setup()

    async def refuse(offsets: object) -> None:
        raise TransientError("no coordinator")

    setup.reader.commit = refuse  # type: ignore[method-assign]
    await setup.whole_run()
    assert sum(setup.metrics.rows.values()) > 0


async def test_an_outage_of_the_broker_is_waited_out():
    setup = Setup()
    setup.reader.failures = [TransientError("away"), TransientError("away")]
    await setup.whole_run()
    assert setup.reader.at_end()


async def test_hints_are_what_is_committed():
    setup = Setup(flush=FlushConfig(rows=100))
    await setup.whole_run()
    assert setup.reader.hints
    assert all(setup.store.positions[setup.source(*key)] >= at for key, at in setup.reader.hints.items())


@pytest.mark.parametrize("recreated", [CURATED, TOPICS.stats(REGION)])
async def test_a_recreated_topic_stops_the_writer(recreated):
    first = Setup()
    await first.whole_run()
    second = Setup(MemoryStore(StoreState(first.store.positions)))
    second.cluster.ids[recreated] = "another"
    with pytest.raises(StoreCorrupt, match="recreated") as caught:
        await second.whole_run()
    assert caught.value.place == recreated
    assert second.store.commits == []


async def test_a_topic_recreated_while_it_is_read_is_noticed_before_the_commit():
    setup = Setup(flush=FlushConfig(age_s=0.05))
    setup.reader.limits = dict.fromkeys(setup.world.logs, 0)
    async with setup.running() as task:
        setup.cluster.ids[CURATED] = "another"
        setup.reader.limits = {}
        with pytest.raises(StoreCorrupt, match="recreated"):
            await asyncio.wait_for(task, DEADLINE_S)
    assert setup.store.commits == []


async def test_a_cluster_that_is_away_delays_the_commit_and_nothing_else():
    setup = Setup(flush=FlushConfig(age_s=0.05))
    setup.reader.limits = dict.fromkeys(setup.world.logs, 0)
    async with setup.running():
        setup.cluster.failures = [TransientError("away"), TransientError("away")]
        setup.reader.limits = {}
        await until(lambda: bool(setup.store.commits))
        assert setup.cluster.failures == []


@pytest.mark.parametrize("change", ["cut", "expired"])
async def test_a_position_outside_the_topic_stops_the_writer(change):
    setup = Setup()
    setup.store.start = StoreState({setup.source(CURATED): 50})
    if change == "cut":
        setup.reader.limits[(CURATED, 0)] = 49
    else:
        setup.reader.starts[(CURATED, 0)] = 51
    with pytest.raises(StoreCorrupt, match="expected position 50 within the topic"):
        await setup.whole_run()


async def test_a_fetch_from_elsewhere_stops_the_writer():
    setup = Setup()
    async with setup.running() as task:
        setup.reader.positions = {key: position + 1 for key, position in setup.reader.positions.items()}
        with pytest.raises(StoreCorrupt, match="expected records from position"):
            await asyncio.wait_for(task, DEADLINE_S)


async def test_a_missing_topic_is_named():
    setup = Setup()
    del setup.cluster.ids[CURATED]
    with pytest.raises(ConfigError, match="does not exist") as caught:
        await setup.whole_run()
    assert caught.value.place == CURATED


async def test_a_closed_door_lets_nothing_in_not_even_a_table():
    def door(schema_id: int) -> None:
        raise ConfigError("this region may not hold location.precise")

    setup = Setup(door=door)
    with pytest.raises(ConfigError, match=r"location\.precise"):
        await setup.whole_run()
    assert (setup.store.tables, setup.store.commits) == ([], [])


@pytest.mark.parametrize("error", [OwnershipLost("ahead"), StoreCorrupt("behind"), TransientError("locked")])
async def test_a_refused_commit_ends_the_run(error):
    setup = Setup()
    setup.store.error = error
    with pytest.raises(type(error)):
        await setup.whole_run()


async def test_a_commit_that_outlasts_the_stop_is_given_up_in_time():
    setup = Setup(stop_timeout_s=0.2)
    setup.store.hold = threading.Event()
    async with setup.running() as task:
        await until(setup.store.waiting.is_set)
        setup.stop.set()
        threading.Timer(0.6, setup.store.hold.set).start()  # the store's thread cannot be cut short
        await asyncio.wait_for(task, DEADLINE_S)
    assert len(setup.store.commits) == 1


async def test_cancelling_leaves_no_task_and_no_thread():
    before = {t.name for t in threading.enumerate()}
    setup = Setup()
    async with setup.running() as task:
        await until(lambda: bool(setup.store.commits))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    left = {t.name for t in threading.enumerate()} - before
    assert not {name for name in left if name.startswith(("store", "decode"))}
    assert {t for t in asyncio.all_tasks() if t.get_name() in ("commit", "offsets hint")} == set()
