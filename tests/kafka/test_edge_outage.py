"""A long outage with ten times of what the spool may hold: bounds hold, and every event is accounted for."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import psutil
import pyarrow as pa

from connectors.broker import LocalBroker
from connectors.kafka import KafkaAdmin, KafkaWriter, TopicSpec
from pipeline.config import ClusterConfig, Config, LaneClass
from pipeline.control_records import decode_control
from pipeline.edge import EdgeClient, EdgeReport, Forwarder, Spool, Summariser
from pipeline.errors import TransientError
from pipeline.topics import Topics
from tests.edge_world import (
    EVENT,
    JURISDICTIONS,
    LANES,
    as_batch,
    decoded,
    nothing_pending,
    schemas,
    until,
    vehicles,
)
from tests.kafka.test_edge import PARTITIONS, read

CAP = 12_000_000
RATE = 40_000.0
CLASSES = {"bulk": LaneClass(share=0.1, when_full="summarise")}
EDGE = Config().edge.model_copy(
    update={
        "backoff_min_s": 0.05, "backoff_max_s": 0.3, "spool_bytes_max": CAP, "classes": CLASSES,
        "drain_events_per_s": RATE,
    }
)  # fmt: skip
CONFIG = Config().model_copy(update={"edge": EDGE})
URGENT, NORMAL, BULK = range(3)


def disk_bytes(path: Path) -> int:
    return sum(one.stat().st_size for one in path.parent.iterdir())


def offer(client: EdgeClient, path: Path) -> tuple[int, dict[str, int]]:
    """Ten times the cap; returns the most that lay on the disk, and the refusals per lane."""
    batch = as_batch(vehicles(4_000))
    size = batch.nbytes
    refused = dict.fromkeys(LANES, 0)
    most = 0
    for number in range(10 * CAP // size + 1):
        lane = "normal" if number % 3 == 0 else "bulk"
        for name, rows in ((lane, batch), ("urgent", batch.slice(0, 50))):
            try:
                client.submit_many(EVENT, rows, lane=name, wait_s=0.0).result(30)
            except TransientError:
                refused[name] += 1
        most = max(most, disk_bytes(path))
    return most, refused


async def landed(cluster: ClusterConfig, topics: Topics) -> dict[int, list[int]]:
    """Sequences per lane without repeats, in order per partition."""
    found: dict[int, set[int]] = {lane: set() for lane in range(3)}
    for partition in range(PARTITIONS):
        records = await read(cluster, topics.raw("eu", EVENT), partition)
        batch = decoded(pa.array([record.value for record in records], pa.binary()))
        for lane in range(3):
            mine = batch.filter(pa.compute.equal(batch.column("lane"), lane)).column("sequence").to_pylist()
            once = list(dict.fromkeys(mine))
            assert once == sorted(once)
            found[lane] |= set(once)
    return {lane: sorted(sequences) for lane, sequences in found.items()}


async def test_outage_of_ten_caps_and_the_way_back(own_broker: LocalBroker, tmp_path: Path):
    cluster = ClusterConfig(bootstrap=own_broker.bootstrap, request_timeout_s=2.0)
    topics, path = Topics("outage."), tmp_path / "edge" / "spool.sqlite"
    process = psutil.Process(os.getpid())
    with Spool(path, LANES, EDGE, None, Summariser(schemas())) as spool:
        client = EdgeClient(CONFIG, schemas(), spool, JURISDICTIONS.get)
        stop = asyncio.Event()
        report = EdgeReport("agent", LANES, schemas(), topics)
        forwarder = Forwarder(spool, {"eu": KafkaWriter(cluster)}, topics, EDGE, report=report)
        task = asyncio.create_task(forwarder.run(stop))
        memory = process.memory_info().rss
        most, refused = await asyncio.to_thread(offer, client, path)
        assert most < CAP * 1.3 + (50 << 20)
        assert process.memory_info().rss - memory < 150 << 20
        before = {counts.lane: counts for counts in spool.ledger()}
        assert refused["normal"] > 0 == refused["bulk"]
        assert (before[NORMAL].evicted, before[URGENT].evicted) == (0, 0)
        assert before[BULK].evicted > before[BULK].accepted // 2

        await asyncio.to_thread(own_broker.start)
        await make_topics(cluster, topics)
        linked = time.monotonic()
        backlog = sum(counts.pending for counts in spool.ledger())
        await until(lambda: sum(c.forwarded for c in spool.ledger()) > 0, 60)
        urgent = await asyncio.to_thread(client.emit_many, EVENT, vehicles(5), lane="urgent")
        last = urgent.first_sequence + urgent.count - 1
        await until(lambda: next(c for c in spool.ledger() if c.lane == URGENT).pending == 0, 60)
        waiting = sum(counts.pending for counts in spool.ledger())
        assert waiting > backlog // 4, "urgent waited for the backlog"
        await until(lambda: nothing_pending(spool), 90)
        assert time.monotonic() - linked > 0.8 * backlog / RATE
        await until(lambda: not spool.unsent_losses("eu", 1).result(10), 30)
        stop.set()
        await asyncio.wait_for(task, 30)
        ledgers = {counts.lane: counts for counts in spool.ledger()}
        losses = spool.losses().result(10)
    arrived = await landed(cluster, topics)
    for lane, counts in ledgers.items():
        gone = sum(loss.count for loss in losses if loss.lane == lane)
        assert counts.evicted == gone
        assert counts.accepted == len(arrived[lane]) + gone + counts.pending
    assert arrived[URGENT] == list(range(1, last + 1))
    records = await read(cluster, topics.edges("eu"), 0)
    said = {}
    for record in records:
        name, value = decode_control(schemas(), record.value)
        if name == "edge_loss":
            said[record.key] = value
    assert sum(value["count"] for value in said.values()) == ledgers[BULK].evicted
    assert all(value["summaries"] for value in said.values())


async def make_topics(cluster: ClusterConfig, topics: Topics) -> None:
    admin = KafkaAdmin(cluster)
    await admin.start()
    specs = [TopicSpec(topics.raw("eu", EVENT), PARTITIONS), TopicSpec(topics.edges("eu"), 1, compacted=True)]
    await admin.ensure_topics(specs)
    await admin.stop()
