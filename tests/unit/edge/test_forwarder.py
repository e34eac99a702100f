"""The forwarder: complete and in order per partition, whatever fails; nothing let go of before its time."""

from __future__ import annotations

import asyncio
import os
import random
import time

import pyarrow as pa
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from pipeline.config import Config
from pipeline.control_records import decode_control
from pipeline.edge.forwarder import Forwarder
from pipeline.edge.report import EdgeReport
from pipeline.errors import ConfigError, RecordError, StoreCorrupt, TransientError
from pipeline.metrics import EdgeMetrics
from pipeline.topics import Topics
from tests.edge_world import (
    LANES,
    MemoryBroker,
    PlainEncoder,
    nothing_pending,
    open_spool,
    plain_sequences,
    put,
    schemas,
    until,
)

EDGE = Config().edge.model_copy(update={"backoff_min_s": 0.002, "backoff_max_s": 0.01})
TOPICS = Topics("p.")
RAW = "p.eu.raw.plain"


@pytest.fixture
def spool(tmp_path):
    with open_spool(tmp_path / "spool.sqlite") as opened:
        yield opened


class Running:
    """A forwarder at work inside ``async with``."""

    def __init__(self, spool, writers, settings=EDGE, report=None):
        self.forwarder = Forwarder(spool, writers, TOPICS, settings, report=report)
        self.stop = asyncio.Event()

    async def __aenter__(self):
        self.task = asyncio.create_task(self.forwarder.run(self.stop))
        return self

    async def __aexit__(self, *_):
        self.stop.set()
        await asyncio.wait_for(self.task, 10)


def rows(count, rng=None, first=0):
    rng = rng or random.Random(1)
    return [bytes([rng.randrange(4)]) + b"row %d" % (first + n) for n in range(count)]


def by_partition(broker, topic=RAW, lane=1):
    logs = {partition: log for (name, partition), log in broker.logs.items() if name == topic}
    return {partition: plain_sequences(log, lane) for partition, log in logs.items()}


def complete(broker, count, topic=RAW, lane=1):
    found = by_partition(broker, topic, lane)
    return sorted(s for sequences in found.values() for s in sequences) == list(range(1, count + 1))


async def test_everything_arrives_once_in_order_and_is_counted(spool):
    broker = MemoryBroker()
    put(spool, PlainEncoder(), rows(1000)).result(10)
    async with Running(spool, {"eu": broker}):
        for n in range(20):
            put(spool, PlainEncoder(), rows(50, first=n))
        await until(lambda: nothing_pending(spool) and spool.ledger()[0].accepted == 2000)
    assert sum(map(len, broker.logs.values())) == 2000
    assert complete(broker, 2000)
    (counts,) = spool.ledger()
    assert (counts.forwarded, counts.evicted) == (2000, 0)


async def test_kafkas_timestamp_is_the_time_of_receipt_and_never_ahead(spool):
    broker = MemoryBroker()
    before = time.time_ns() // 1_000_000
    put(spool, PlainEncoder(), rows(10)).result(10)
    async with Running(spool, {"eu": broker}):
        await until(lambda: nothing_pending(spool))
    times = [t for log in broker.times.values() for t in log]
    assert len(times) == 10
    assert all(before <= t <= time.time_ns() // 1_000_000 for t in times)


async def test_the_broker_may_be_away_at_the_start_and_emitting_works(spool):
    broker = MemoryBroker()
    broker.up = False
    async with Running(spool, {"eu": broker}):
        put(spool, PlainEncoder(), rows(10)).result(10)
        await until(lambda: broker.starts > 2)
        put(spool, PlainEncoder(), rows(10)).result(10)
        assert spool.ledger()[0].pending == 20
        broker.up = True
        await until(lambda: nothing_pending(spool))
        broker.up = False
        put(spool, PlainEncoder(), rows(10)).result(10)
        sends = broker.sends
        await until(lambda: broker.sends > sends + 3)
        assert spool.ledger()[0].pending == 10
        broker.up = True
        await until(lambda: nothing_pending(spool))
    assert complete(broker, 30)


async def test_an_absent_broker_costs_no_busy_loop(spool):
    broker = MemoryBroker()

    def down(*_):
        raise TransientError("away")

    broker.before = down
    put(spool, PlainEncoder(), [b"\0"]).result(10)
    settings = EDGE.model_copy(update={"backoff_min_s": 0.05, "backoff_max_s": 0.1})
    async with Running(spool, {"eu": broker}, settings):
        started = time.monotonic()
        await until(lambda: broker.sends >= 6)
        assert time.monotonic() - started > 5 * 0.025


async def test_only_what_failed_is_sent_again(spool):
    broker = MemoryBroker()
    failures = 3

    def one_partition_fails(topic, partition, values):
        nonlocal failures
        if partition == 2 and failures:
            failures -= 1
            raise TransientError("leader away")

    broker.before = one_partition_fails
    put(spool, PlainEncoder(), rows(400)).result(10)
    async with Running(spool, {"eu": broker}):
        await until(lambda: nothing_pending(spool))
    assert broker.sends == 4 + 3
    assert sum(map(len, broker.logs.values())) == 400


async def test_blocks_stay_until_every_partition_has_its_part(spool):
    broker = MemoryBroker()
    gate = True

    def held(topic, partition, values):
        if partition == 3 and gate:
            raise TransientError("leader away")

    broker.before = held
    put(spool, PlainEncoder(), rows(400)).result(10)
    async with Running(spool, {"eu": broker}):
        await until(lambda: broker.sends > 6)
        assert spool.ledger()[0].pending == 400
        gate = False
        await until(lambda: nothing_pending(spool))
    assert complete(broker, 400)


async def test_a_record_the_broker_never_takes_is_given_up_alone_and_entered(spool):
    broker = MemoryBroker(record_bytes_max=1000)
    events = rows(2000)
    for n in (0, 700, 701, 1999):
        events[n] = events[n][:1] + b"x" * 5000
    put(spool, PlainEncoder(), events).result(10)
    async with Running(spool, {"eu": broker}):
        await until(lambda: nothing_pending(spool))
    (counts,) = spool.ledger()
    assert (counts.forwarded, counts.evicted) == (1996, 4)
    found = sorted(s for sequences in by_partition(broker).values() for s in sequences)
    assert found == sorted(set(range(1, 2001)) - {1, 701, 702, 2000})
    assert sum(map(len, broker.logs.values())) == 1996
    losses = spool.losses().result(10)
    assert sum(loss.count for loss in losses) == 4
    assert {loss.reason for loss in losses} == {"oversize"}
    assert all(loss.first_sequence <= loss.last_sequence <= 2000 for loss in losses)


@pytest.mark.parametrize("error", [RecordError("no key", reason="refused"), ConfigError("not allowed")])
async def test_a_refusal_that_a_setting_can_mend_holds_the_line_and_loses_nothing(spool, error):
    broker = MemoryBroker()
    tries = 5

    def refuse(*_):
        nonlocal tries
        if tries:
            tries -= 1
            raise error

    broker.before = refuse
    put(spool, PlainEncoder(), rows(100)).result(10)
    async with Running(spool, {"eu": broker}):
        await until(lambda: nothing_pending(spool))
    assert complete(broker, 100)
    assert spool.ledger()[0].evicted == 0


async def test_urgent_goes_first_and_bulk_does_not_starve(spool):
    broker = MemoryBroker()
    order = []
    broker.before = lambda topic, partition, values: order.append(values[0].as_py()[:1])
    for lane, number in ((2, 3), (1, 40), (0, 3)):
        for _ in range(number):
            put(spool, PlainEncoder(), [b"\0"], lane=lane).result(10)
    settings = EDGE.model_copy(update={"forward_bytes_max": 4096})
    object.__setattr__(settings, "forward_bytes_max", 1)  # a block a step
    async with Running(spool, {"eu": broker}, settings):
        await until(lambda: nothing_pending(spool))
    assert order[:3] == [b"0"] * 3
    assert order.index(b"2") < 16
    assert [lane for lane in order if lane == b"1"] == [b"1"] * 40


async def test_urgent_events_overtake_a_backlog_that_arrived_before(spool):
    broker = MemoryBroker()
    for _ in range(50):
        put(spool, PlainEncoder(), [b"\0" * 5000], lane=2).result(10)
    settings = EDGE.model_copy(update={"forward_bytes_max": 5000})
    sent = []

    def watch(topic, partition, values):
        if not sent:  # the first step is on its way: now something urgent happens
            put(spool, PlainEncoder(), [b"\0"], lane=0).result(10)
        sent.append(values[0].as_py()[:1])

    broker.before = watch
    async with Running(spool, {"eu": broker}, settings):
        await until(lambda: nothing_pending(spool))
    assert sent.index(b"0") <= 2


async def test_a_region_away_does_not_hold_another(spool):
    eu, br = MemoryBroker(), MemoryBroker()
    br.up = False
    for n in range(10):
        put(spool, PlainEncoder(region="br"), rows(10, first=n)).result(10)
        put(spool, PlainEncoder(region="eu"), rows(10, first=n)).result(10)
    pending = lambda: {c.region: c.pending for c in spool.ledger()}  # noqa: E731
    async with Running(spool, {"eu": eu, "br": br}):
        await until(lambda: pending() == {"eu": 0, "br": 100})
        br.up = True
        await until(lambda: nothing_pending(spool))
    assert {topic for topic, _ in eu.logs} == {"p.eu.raw.plain"}
    assert {topic for topic, _ in br.logs} == {"p.br.raw.plain"}
    assert sum(map(len, br.logs.values())) == 100


async def test_regions_without_a_writer_wait_untouched(spool):
    broker = MemoryBroker()
    put(spool, PlainEncoder(region="br"), rows(10)).result(10)
    put(spool, PlainEncoder(region="eu"), rows(10)).result(10)
    async with Running(spool, {"eu": broker}):
        await until(lambda: {c.region: c.pending for c in spool.ledger()} == {"eu": 0, "br": 10})


async def test_a_corrupt_spool_ends_the_run(spool, tmp_path):
    broker = MemoryBroker()
    put(spool, PlainEncoder(), rows(10)).result(10)
    (tmp_path / "spool.sqlite").unlink()
    with pytest.raises(ExceptionGroup) as caught:
        await Forwarder(spool, {"eu": broker}, TOPICS, EDGE).run(asyncio.Event())
    assert caught.group_contains(StoreCorrupt)


async def test_the_ledger_is_published_when_it_changed(spool):
    broker = MemoryBroker()
    report = EdgeReport("agent 1", LANES, schemas(), TOPICS)
    put(spool, PlainEncoder(), rows(7)).result(10)
    async with Running(spool, {"eu": broker}, report=report):
        await until(lambda: bool(broker.keyed))
    topic, key, value = broker.keyed[-1]
    name, record = decode_control(schemas(), value)
    assert (topic, name) == (TOPICS.edges("eu"), "edge_ledger")
    assert key == f"{spool.spool}:1".encode()
    assert (record["edge"], record["lane_name"], record["accepted"]) == ("agent 1", "normal", 7)
    assert record["accepted"] == record["forwarded"] + record["evicted"] + record["pending"]


async def test_what_is_taken_waits_and_leaves_shows_in_the_metrics(tmp_path):
    registry, broker = CollectorRegistry(), MemoryBroker()
    metrics = EdgeMetrics(registry)
    with open_spool(tmp_path / "spool.sqlite", metrics) as spool:
        put(spool, PlainEncoder(), rows(7)).result(10)
        spool.losses().result(10)  # the commit's turn is over
        page = generate_latest(registry).decode()
        assert 'accepted_events_total{event="plain",region="eu"} 7.0' in page
        assert 'spooled_events{lane="normal"} 7.0' in page
        forwarder = Forwarder(spool, {"eu": broker}, TOPICS, EDGE, metrics)
        stop = asyncio.Event()
        task = asyncio.create_task(forwarder.run(stop))
        await until(lambda: nothing_pending(spool))
        stop.set()
        await asyncio.wait_for(task, 10)
    page = generate_latest(registry).decode()
    assert 'forwarded_events_total{event="plain",region="eu"} 7.0' in page
    assert 'spooled_events{lane="normal"} 0.0' in page
    assert "pipeline_edge_spool_bytes 0.0" in page
    assert "pipeline_edge_commit_seconds_count 2.0" in page


@pytest.mark.parametrize("seed", range(int(os.environ.get("SEEDS", "12"))))
async def test_any_interleaving_of_failures_and_crashes_keeps_order_and_completeness(tmp_path, seed):
    """The forwarder is cancelled and the spool reopened at random points; sends fail before and inside."""
    rng = random.Random(seed)
    broker = MemoryBroker(record_bytes_max=3000)

    def trouble(topic: str, partition: int, values: pa.BinaryArray) -> int | None:
        fate = rng.random()
        if fate < 0.15:
            raise TransientError("before anything")
        if fate < 0.35:
            return rng.randint(0, len(values))  # taken in part or in whole, the answer lost
        return None

    broker.before = trouble
    given, big = 0, []
    for _ in range(rng.randint(3, 6)):
        with open_spool(tmp_path / "spool.sqlite") as spool:
            settings = EDGE.model_copy(update={"forward_bytes_max": rng.choice([4096, 20_000, 10**6])})
            forwarder = Forwarder(spool, {"eu": broker}, TOPICS, settings)
            task = asyncio.create_task(forwarder.run(asyncio.Event()))
            for _ in range(rng.randint(1, 8)):
                events = rows(rng.randint(1, 120), rng, given)
                if rng.random() < 0.3:
                    events[-1] += b"x" * 4000
                    big.append(given + len(events))
                put(spool, PlainEncoder(), events).result(10)
                given += len(events)
                for _ in range(rng.randint(0, 30)):
                    await asyncio.sleep(0)
            for _ in range(rng.randint(0, 300)):
                await asyncio.sleep(0)
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=10)
            assert done, "cancelling must end it, also when news comes at that moment"
    broker.before = lambda *_: None
    with open_spool(tmp_path / "spool.sqlite") as spool:
        async with Running(spool, {"eu": broker}):
            await until(lambda: nothing_pending(spool))
        (counts,) = spool.ledger()
    found = sorted(s for sequences in by_partition(broker).values() for s in sequences)
    assert found == sorted(set(range(1, given + 1)) - set(big)), f"seed {seed}"
    assert counts.accepted == given == counts.forwarded + counts.evicted
    assert counts.evicted == len(big), f"seed {seed}"
