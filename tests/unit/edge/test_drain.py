"""After an outage: the backlog at its pace, what is fresh before it, each number in order."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from pipeline.config import Config, LaneClass
from pipeline.control_records import decode_control
from pipeline.edge.drain import Drain
from pipeline.edge.forwarder import Forwarder
from pipeline.edge.ledger import SECOND
from pipeline.edge.report import EdgeReport
from pipeline.processor.repeats import find_repeats
from pipeline.topics import Topics
from tests.edge_world import (
    LANES,
    MemoryBroker,
    PlainEncoder,
    nothing_pending,
    open_spool,
    put,
    schemas,
    until,
)  # fmt: skip

TOPICS = Topics("p.")
SETTINGS = Config().edge.model_copy(update={"backoff_min_s": 0.002, "backoff_max_s": 0.01})
NEWEST = {"classes": {"normal": LaneClass(share=0.5, drain_order="newest")}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "spool.sqlite"


def forwarding(spool, broker, **settings) -> tuple[asyncio.Event, asyncio.Task]:
    stop = asyncio.Event()
    report = EdgeReport("agent", LANES, schemas(), TOPICS)
    edge = SETTINGS.model_copy(update=settings)
    return stop, asyncio.create_task(Forwarder(spool, {"eu": broker}, TOPICS, edge, report=report).run(stop))


async def ended(stop: asyncio.Event, task: asyncio.Task) -> None:
    stop.set()
    await asyncio.wait_for(task, 10)


def keys(broker: MemoryBroker, spool: int) -> list[tuple[int, int, int]]:
    """(spool, lane, sequence) of partition 0, in the order of the log."""
    return [(spool, *map(int, record.split(b":")[:2])) for record in broker.logs["p.eu.raw.plain", 0]]


def test_the_pace_is_held_over_any_time_since_the_link_came():
    now = 100.0
    drain = Drain(
        SETTINGS.model_copy(update={"drain_events_per_s": 100.0, "drain_bytes_per_s": 1e6}), lambda: now
    )
    assert drain.paced
    drain.sent(50, 10)
    assert drain.next_s == 100.5
    drain.sent(10, 2_000_000)  # bytes bind
    assert drain.next_s == 102.5
    now = 200.0
    drain.sent(100, 0)
    assert drain.next_s == 201.0
    assert not Drain(SETTINGS).paced


async def test_a_backlog_leaves_at_its_pace_and_fresh_urgent_events_do_not_wait(path):
    broker = MemoryBroker()
    with open_spool(path) as spool:
        for _ in range(20):
            put(spool, PlainEncoder(), [b"\0"] * 10).result(10)
        stop, task = forwarding(spool, broker, drain_events_per_s=200.0)
        started = time.monotonic()
        await until(lambda: bool(broker.logs))
        put(spool, PlainEncoder(), [b"\0"], lane=0).result(10)
        await until(lambda: any(key[1] == 0 for key in keys(broker, 1)))
        assert any(counts.pending for counts in spool.ledger() if counts.lane == 1)
        await until(lambda: nothing_pending(spool))
        assert len(keys(broker, 1)) == 201
        assert time.monotonic() - started > 0.9 * (200 - 60) / 200
        put(spool, PlainEncoder(), [b"\0"] * 500).result(10)  # fresh: at full speed
        again = time.monotonic()
        await until(lambda: nothing_pending(spool))
        assert time.monotonic() - again < 2.0
        await ended(stop, task)


async def test_newest_first_overtakes_the_backlog_and_the_processor_sees_no_repeat(path):
    broker = MemoryBroker()
    with open_spool(path, **NEWEST) as spool:
        for _ in range(30):
            put(spool, PlainEncoder(), [b"\0"] * 4).result(10)
        stop, task = forwarding(spool, broker, drain_events_per_s=100.0, **NEWEST)
        await until(lambda: spool.live(1) == 1 + SECOND)  # the link is up: what comes now is fresh
        await until(lambda: bool(broker.logs))
        receipt = put(spool, PlainEncoder(), [b"\0"] * 3).result(10)
        assert (receipt.lane, receipt.first_sequence) == (1 + SECOND, 1)
        await until(lambda: (spool.spool, 1 + SECOND, 3) in keys(broker, spool.spool))
        assert any(counts.pending for counts in spool.ledger() if counts.lane == 1)
        await until(lambda: nothing_pending(spool))
        await ended(stop, task)
        found = keys(broker, spool.spool)
        columns = (np.array(column, np.int64) for column in zip(*found, strict=True))
        repeats, seen = find_repeats(*columns, {})
        assert len(repeats) == 0
        assert seen == {(spool.spool, 1): 120, (spool.spool, 1 + SECOND): 3}
        assert found.index((spool.spool, 1 + SECOND, 3)) < found.index((spool.spool, 1, 120))


async def test_outage_after_outage_each_number_stays_in_order(path):
    broker = MemoryBroker()
    with open_spool(path, **NEWEST) as spool:
        stop, task = forwarding(spool, broker, **NEWEST)
        for _ in range(6):
            broker.up = False
            for _ in range(3):
                put(spool, PlainEncoder(), [b"\0"] * 4).result(10)
            tries = broker.sends + broker.starts
            await until(lambda n=tries: broker.sends + broker.starts > n + 2)
            broker.up = True
            put(spool, PlainEncoder(), [b"\0"] * 4).result(10)
            await until(lambda: nothing_pending(spool))
        await ended(stop, task)
        found = keys(broker, spool.spool)
        columns = (np.array(column, np.int64) for column in zip(*found, strict=True))
        repeats, seen = find_repeats(*columns, {})
        assert len(found) - len(repeats) == sum(seen.values()) == 6 * 16
        assert set(seen) == {(spool.spool, 1), (spool.spool, 1 + SECOND)}
    with open_spool(path) as spool:  # the option taken back: what is under the second number still leaves
        assert 1 + SECOND in spool.numbers


async def test_each_line_of_the_loss_ledger_goes_upstream_once(path):
    broker = MemoryBroker()
    with open_spool(path, spool_bytes_max=200_000) as spool:
        for _ in range(30):
            put(spool, PlainEncoder(), [b"\0" * 20_000], lane=2).result(10)
        stop, task = forwarding(spool, broker)
        await until(lambda: nothing_pending(spool))
        await until(lambda: not spool.unsent_losses("eu", 1).result(10))
        await ended(stop, task)
        (counts,) = spool.ledger()
        records = [(key, decode_control(schemas(), value)) for _, key, value in broker.keyed]
        losses = {key: record for key, (name, record) in records if name == "edge_loss"}
        assert sum(record["count"] for record in losses.values()) == counts.evicted > 15
        assert all(key.startswith(b"%d:loss:" % spool.spool) for key in losses)
        (line,) = losses.values()
        assert (line["first_sequence"], line["last_sequence"]) == (1, counts.evicted)
        assert (line["edge"], line["lane_name"], line["event"], line["reason"]) == (
            "agent", "bulk", "plain", "bytes",
        )  # fmt: skip
        assert line["bytes"] > 20_000 * counts.evicted
