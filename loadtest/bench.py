"""The parts of the benchmark, in the order of the way.

Each stage runs as in production: its own process, started by its command; the generator and the clock are
here. Rates are of wall time between the first and the last event, so a start does not count.
"""

from __future__ import annotations

import asyncio
import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import psutil
import pyarrow as pa

from connectors.kafka import KafkaReader, KafkaWriter
from loadtest.latency import measure_latency
from loadtest.policy import measure_policy
from pipeline.config import Config, RegionConfig
from pipeline.demo.fleet import Fleet, FleetSize
from pipeline.edge_service import forwarder, open_edge
from pipeline.evidence import weigh
from pipeline.local import specs, stack
from pipeline.role import started
from pipeline.service import Project

REGION, EVENT = "eu", "vehicle_telemetry"
CHUNK = 50_000


@dataclass(frozen=True)
class Figure:
    """One measured value; ``floor`` or ``ceiling`` is what is expected here."""

    name: str
    value: float
    unit: str
    floor: float | None = None
    ceiling: float | None = None

    @property
    def expected(self) -> str:
        """The bound, as text."""
        if self.floor is not None:
            return f">= {self.floor:,.0f}"
        return f"<= {self.ceiling:,.0f}" if self.ceiling is not None else ""

    @property
    def ok(self) -> bool | None:
        """Whether the bound holds; None without one."""
        if self.floor is not None:
            return self.value >= self.floor
        return self.value <= self.ceiling if self.ceiling is not None else None


class Bench:
    """A stack of one region, measured part by part."""

    PARTS = ("policy", "spool", "consume", "process", "store", "latency", "forward")

    def __init__(self, state: Path, events: int, say: Callable[[str], None]) -> None:
        self.events, self.say = events, say
        self.config = Config(state=state, regions={REGION: RegionConfig(partitions=4)})
        self.project = Project.open(self.config)
        self.stack = stack(self.project, detached=False)
        self.figures: list[Figure] = []

    def __enter__(self) -> Self:
        self.say("starting the broker")
        self.project.create_keys([REGION])
        self.stack.up([], lambda: asyncio.run(self.project.ensure_topics([REGION])), self.say)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.stack.down(self.say)

    def run(self, parts: list[str], seconds: float, rate: float) -> list[Figure]:
        """Measure the parts; "process" needs what "consume" fills, "store" what "process" makes."""
        self.add("processors", os.cpu_count() or 0, platform.machine())
        if "policy" in parts:
            self.say("policy: plan and check")
            for line in measure_policy(self.project, REGION, EVENT, self.events):
                self.add(*line)
        if "spool" in parts:
            self.measure_spool()
        if {"consume", "process", "store"} & set(parts):
            self.say(f"filling the raw topic with {self.events:,} events")
            asyncio.run(self.fill())
        if "consume" in parts:
            asyncio.run(self.measure_consume())
        if {"process", "store"} & set(parts):
            self.measure_role("process", floor=110_000)
        if "store" in parts:
            self.measure_role("store", floor=150_000)
        if "latency" in parts:
            for figure in measure_latency(self.project, self.stack, REGION, seconds, rate, self.say):
                self.add(*figure)
        if "forward" in parts:  # last: it leaves a backlog in the raw topic
            self.measure_forward()
        return self.figures

    def add(
        self, name: str, value: float, unit: str, floor: float | None = None, ceiling: float | None = None
    ) -> None:
        """One line of the table."""
        self.figures.append(Figure(name, value, unit, floor, ceiling))

    # --- the edge -----------------------------------------------------------------------------------------

    def measure_spool(self) -> None:
        """Durable accept: one caller, 64 callers, batches."""
        self.say("spool: accept")
        rows = producer_rows(CHUNK)
        one = rows.slice(0, 1).to_pylist()[0]
        envelope = {name: one.pop(name) for name in ("source", "event_time", "jurisdiction")}
        envelope["event_time"] = int(rows.column("event_time").cast(pa.int64())[0].as_py())
        with open_edge(self.project, "spool") as (_, client):

            def emit() -> None:
                client.emit(EVENT, one, **envelope)

            single = timed(emit, 300)
            self.add("spool, single emit, 1 caller", 1 / float(np.mean(single)), "events/s")
            many = in_threads(64, lambda: timed(emit, 60))
            self.add("spool, single emit, 64 callers", len(many[0]) / many[1], "events/s")
            self.add(
                "spool, single emit, 64 callers, p99", float(np.percentile(many[0], 99)) * 1e3, "ms", None, 10
            )
            count = 8
            batch = sum(timed(lambda: client.emit_many(EVENT, rows), count))
            self.add("spool, batches of 50,000", count * CHUNK / batch, "events/s", 50_000)
            small = sum(timed(lambda: client.emit_many(EVENT, rows.slice(0, 500)), 100))
            self.add("spool, batches of 500", 100 * 500 / small, "events/s")

    def measure_forward(self) -> None:
        """From a full spool to the broker's acknowledgement."""
        self.say("forward")
        rows, total = producer_rows(CHUNK), min(self.events, 500_000) // CHUNK * CHUNK
        with open_edge(self.project, "forward") as (spool, client):
            for _ in range(total // CHUNK):
                client.emit_many(EVENT, rows)

            async def drain() -> float:
                stop = asyncio.Event()
                begin = time.perf_counter()
                task = asyncio.create_task(forwarder(self.project, "forward", spool).run(stop))
                while sum(one.pending for one in spool.ledger()):  # noqa: ASYNC110 (a spool has no such event)
                    await asyncio.sleep(0.01)
                took = time.perf_counter() - begin
                stop.set()
                await task
                return took

            self.add("forward, spool to broker", total / asyncio.run(drain()), "events/s")

    # --- the core -----------------------------------------------------------------------------------------

    async def fill(self) -> None:
        """Raw events of one spool, as its forwarder would send them."""
        codec = self.project.schemas.codec(self.project.schemas.latest(EVENT).id)
        raw, topic = full_rows(codec.arrow, CHUNK), self.project.topics.raw(REGION, EVENT)
        async with started(KafkaWriter(self.project.cluster(REGION))) as writer:
            for number in range(self.events // CHUNK):
                values = codec.encode(stamped(raw, 1 + number * CHUNK))
                await writer.send(topic, number % 4, values)

    async def measure_consume(self) -> None:
        """The ceiling: the same topic, read and dropped."""
        self.say("consume: raw, nothing else")
        keys = [(self.project.topics.raw(REGION, EVENT), number) for number in range(4)]
        reader = KafkaReader(self.project.cluster(REGION), None, self.config.limits)
        async with started(reader):
            ends = await reader.end_offsets(keys)
            await reader.assign(dict.fromkeys(keys, 0))
            begin, seen = time.perf_counter(), 0
            while seen < sum(ends.values()):
                seen += sum(len(fetched.values) for fetched in await reader.fetch(1.0))
            self.add("broker, raw consume, this reader", seen / (time.perf_counter() - begin), "events/s")
        stock = await asyncio.to_thread(self.stock_consume, keys[0][0], sum(ends.values()))
        self.add("broker, raw consume, librdkafka", stock, "events/s")

    def stock_consume(self, topic: str, count: int) -> float:
        """The same with a stock client, batches of 10,000."""
        from confluent_kafka import Consumer, TopicPartition

        consumer = Consumer({
            "bootstrap.servers": self.project.cluster(REGION).bootstrap, "group.id": "bench",
            "enable.auto.commit": False,
        })  # fmt: skip
        consumer.assign([TopicPartition(topic, number, 0) for number in range(4)])
        try:
            seen = len(consumer.consume(1, timeout=30))
            begin = time.perf_counter()
            while seen < count:
                seen += len(consumer.consume(min(10_000, count - seen), timeout=5))
            return (seen - 1) / (time.perf_counter() - begin)
        finally:
            consumer.close()

    def measure_role(self, role: str, floor: float) -> None:
        """One process over everything that is there; wall, processor seconds, memory."""
        self.say(role)
        spec = specs(self.project, None, (role,))
        self.stack.up(spec, progress=self.say)
        process = next(psutil.Process(one.pid) for one in self.stack.status() if one.name == spec[0].name)
        progress = Progress(process, self.done_of(role))
        progress.watch(self.events)
        self.stack.down(names=[spec[0].name])
        names = {"process": "process, raw to curated", "store": "store, curated to Parquet"}
        self.add(names[role], progress.rate, "events/s", floor)
        self.add(f"{role}, per processor second", progress.per_cpu_s, "events/cpu-s")
        self.add(
            f"{role}, memory at most", progress.memory_mb, "MB", None, 400 if role == "process" else None
        )

    def done_of(self, role: str) -> Callable[[], int]:
        """How many events a role has finished so far."""
        if role == "store":
            return lambda: asyncio.run(weigh(self.project, REGION)).stored
        keys = [(self.project.topics.curated(REGION, EVENT), number) for number in range(4)]

        async def ends() -> int:
            async with started(KafkaReader(self.project.cluster(REGION), None, self.config.limits)) as reader:
                return sum((await reader.end_offsets(keys)).values())

        return lambda: asyncio.run(ends())


class Progress:
    """Watches a process until it has done a number of events."""

    def __init__(self, process: psutil.Process, done: Callable[[], int]) -> None:
        self._process, self._done = process, done
        self.rate = self.per_cpu_s = self.memory_mb = 0.0

    def watch(self, total: int) -> None:
        """Poll until ``total``; the rate counts from the first look, when the process is ready."""
        first = self._look(self._done())
        deadline = time.monotonic() + 300
        last = first
        while last[2] < total:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{last[2]} of {total} events after 300 s")
            self.memory_mb = max(self.memory_mb, self._process.memory_info().rss / 1e6)
            time.sleep(0.02)
            last = self._look(self._done())
        wall, cpu, count = (end - begin for end, begin in zip(last, first, strict=True))
        self.rate, self.per_cpu_s = count / wall, count / cpu

    def _look(self, done: int) -> tuple[float, float, int]:
        times = self._process.cpu_times()
        return time.perf_counter(), times.user + times.system, done


def producer_rows(count: int) -> pa.RecordBatch:
    """Vehicle events as a producer hands them over: 1,000 vehicles."""
    fleet = Fleet(REGION, 7, FleetSize(vehicles=1000, meters=1, machines=1, cameras=1))
    now_us, parts, made = time.time_ns() // 1000 - 3_600_000_000, [], 0
    while made < count:
        now_us += 1_000_000
        part = fleet.tick(now_us, 1.0)[EVENT]
        parts.append(part)
        made += len(part)
    return pa.concat_batches(parts)[:count]


def full_rows(schema: pa.Schema, count: int) -> pa.RecordBatch:
    """The same with the envelope an edge adds."""
    rows = producer_rows(count)
    added = {
        "spool": pa.array(np.full(count, 77)), "lane": pa.array(np.ones(count, np.int32)),
        "sequence": pa.array(np.arange(1, count + 1)), "received_time": rows.column("event_time"),
    }  # fmt: skip
    return pa.RecordBatch.from_arrays(
        [added[f.name] if f.name in added else rows.column(f.name) for f in schema], schema=schema
    )


def stamped(batch: pa.RecordBatch, first_sequence: int) -> pa.RecordBatch:
    """The batch with sequences from ``first_sequence`` on."""
    index = batch.schema.get_field_index("sequence")
    numbers = pa.array(np.arange(first_sequence, first_sequence + len(batch)))
    return batch.set_column(index, batch.schema.field(index), numbers)


def timed(call: Callable[[], object], times: int) -> list[float]:
    """Seconds of each of ``times`` calls."""
    took = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        took.append(time.perf_counter() - begin)
    return took


def in_threads(count: int, call: Callable[[], list[float]]) -> tuple[list[float], float]:
    """All timings of ``count`` threads, and the wall time of the whole."""
    found: list[float] = []
    threads = [threading.Thread(target=lambda: found.extend(call())) for _ in range(count)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, time.perf_counter() - begin
