"""End-to-end latency at a fixed offered rate, open loop.

An event is due at a time that the schedule gives, whatever happened before, and its latency counts from
then: a stall is seen by every event it holds up (no coordinated omission). The event's number travels in a
field that every policy keeps.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from connectors.kafka import KafkaReader
from connectors.lake import open_reader
from pipeline.codec import Codec
from pipeline.demo.fleet import Fleet, FleetSize
from pipeline.edge import EdgeClient
from pipeline.edge_session import drained_edge
from pipeline.framing import unframe
from pipeline.local import specs
from pipeline.policy import curated_subject
from pipeline.service import Project, started
from pipeline.stack import Stack

EVENT, NUMBER = "machine_reading", "cycle"
TICK_S = 0.02
Line = tuple[str, float, str, float | None, float | None]


def measure_latency(
    project: Project, local: Stack, region: str, seconds: float, rate: float, say: Callable[[str], None]
) -> Iterator[Line]:
    """Lines of the table: emit to curated, emit to queryable."""
    say(f"latency: {rate:,.0f} events/s for {seconds:g} s")
    processes = specs(project, None, ("process", "store"))
    local.up(processes, progress=say)
    count = int(rate * TICK_S) * int(seconds / TICK_S)
    due = np.zeros(count)
    curated, queryable = np.full(count, np.nan), np.full(count, np.nan)
    over = threading.Event()
    watchers = [
        threading.Thread(target=lambda: asyncio.run(watch_curated(project, region, curated, over))),
        threading.Thread(target=lambda: watch_store(project, region, queryable, over)),
    ]
    for watcher in watchers:
        watcher.start()
    try:
        with drained_edge(project, "latency") as client:
            offer(client, region, int(rate * TICK_S), due)
        deadline = time.monotonic() + 60
        while np.isnan(queryable).any() and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        over.set()
        for watcher in watchers:
            watcher.join()
        local.down(names=[spec.name for spec in processes])
    skip = int(rate)  # the first second warms up
    for name, arrived, ceiling in (("curated", curated, 100.0), ("queryable", queryable, 2000.0)):
        took = (arrived - due)[skip:] * 1e3
        if np.isnan(took).any():
            raise RuntimeError(f"{int(np.isnan(took).sum())} events did not become {name}")
        yield f"emit to {name}, p50 at {rate:,.0f}/s", float(np.percentile(took, 50)), "ms", None, None
        yield f"emit to {name}, p99 at {rate:,.0f}/s", float(np.percentile(took, 99)), "ms", None, ceiling


def offer(client: EdgeClient, region: str, per_tick: int, due: np.ndarray) -> None:
    """Hand over ``per_tick`` events every tick, on schedule; fills ``due`` with each event's due time."""
    fleet = Fleet(region, 3, FleetSize(vehicles=1, meters=1, machines=per_tick, cameras=1))
    rows = fleet.tick(time.time_ns() // 1000, 1.0)[EVENT].slice(0, per_tick)
    index = rows.schema.get_field_index(NUMBER)
    begin = time.time()
    for tick in range(len(due) // per_tick):
        when = begin + tick * TICK_S
        wait = when - time.time()
        if wait > 0:
            time.sleep(wait)
        numbers = np.arange(tick * per_tick, (tick + 1) * per_tick, dtype=np.int32)
        due[numbers] = when
        column = pa.array(numbers, rows.schema.field(index).type)
        client.submit_many(EVENT, rows.set_column(index, rows.schema.field(index), column))


async def watch_curated(project: Project, region: str, arrived: np.ndarray, over: threading.Event) -> None:
    """Note when each event is in the curated topic."""
    schemas, topic = project.schemas, project.topics.curated(region, EVENT)
    codec: Codec = schemas.codec(schemas.latest(curated_subject(region, EVENT)).id)
    keys = [(topic, number) for number in range(project.config.region(region).partitions)]
    async with started(KafkaReader(project.cluster(region), None, project.config.limits)) as reader:
        await reader.assign(await reader.end_offsets(keys))
        while not over.is_set():
            for fetched in await reader.fetch(0.2):
                now = time.time()
                batch, _, _ = codec.decode(unframe(fetched.values)[1])
                numbers = batch.column(NUMBER).to_numpy()
                arrived[numbers[np.isnan(arrived[numbers])]] = now


def watch_store(project: Project, region: str, arrived: np.ndarray, over: threading.Event) -> None:
    """Ask the store again and again, as a user would, with one connection held."""
    with open_reader(project.config.store_path(region)) as lake:
        while not over.wait(0.1):
            numbers = lake.query(f"SELECT {NUMBER} FROM {EVENT}").column(NUMBER).to_numpy()
            arrived[numbers[np.isnan(arrived[numbers])]] = time.time()
