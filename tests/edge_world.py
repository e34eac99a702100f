"""What the edge's tests share: events, a spool without Avro, a broker in memory that fails on demand."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.codec import unframe
from pipeline.config import Config
from pipeline.edge.blocks import Block, Stamp
from pipeline.edge.committer import Spool
from pipeline.edge.metrics import EdgeMetrics
from pipeline.edge.submission import Submission
from pipeline.errors import RecordError, TransientError
from pipeline.schemas import SchemaStore

EVENT = "vehicle_telemetry"
JURISDICTIONS = {"DE": "eu", "FR": "eu", "US-CA": "us-ca", "BR": "br"}
LANES = ("urgent", "normal", "bulk")


@cache
def schemas() -> SchemaStore:
    """The project's schemas."""
    return SchemaStore.load(Config().schemas_path())


def vehicle(rng: random.Random, jurisdiction: str = "DE", **changes: Any) -> dict[str, Any]:
    """One sample as a row for ``emit_many``."""
    number = rng.randrange(50)
    row = {
        "source": f"vehicle-{number}",
        "event_time": time.time_ns() // 1000 - rng.randrange(10**9),
        "jurisdiction": jurisdiction,
        "vin": f"VIN{number:014d}",
        "driver": f"driver {rng.randrange(9)} Ünal",
        "latitude": rng.uniform(-89, 89),
        "longitude": rng.uniform(-179, 179),
        "speed_m_s": rng.choice([None, rng.uniform(0, 60)]),
    }
    return row | changes


def vehicles(count: int, seed: int = 1, jurisdictions: Sequence[str] = ("DE",)) -> list[dict[str, Any]]:
    """``count`` samples."""
    rng = random.Random(seed)
    return [vehicle(rng, rng.choice(jurisdictions)) for _ in range(count)]


def as_batch(rows: Sequence[dict[str, Any]]) -> pa.RecordBatch:
    """The same rows as columns, in the event's types."""
    arrow = schemas().events[EVENT].arrow
    names = list(dict.fromkeys(name for row in rows for name in row))
    fields = [arrow.field(name) for name in names]
    return pa.RecordBatch.from_arrays(
        [pa.array([row.get(field.name) for row in rows], field.type) for field in fields], names=names
    )


def split(row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row as ``emit`` takes it: fields, and the keyword arguments."""
    given = ("source", "event_time", "jurisdiction")
    fields = {name: value for name, value in row.items() if name not in given}
    return fields, {name: row.get(name) for name in given}


def decoded(values: pa.BinaryArray) -> pa.RecordBatch:
    """Framed records as a batch; fails when one is bad."""
    ids, bodies = unframe(values)
    batch, _, bad = schemas().codec(int(ids[0])).decode(bodies)
    assert not bad
    return batch


class PlainEncoder:
    """Rows are bytes, the first one modulo 4 the partition. A record is lane, sequence and the row."""

    def __init__(self, event: str = "plain", region: str = "eu") -> None:
        self.event, self.region = event, region

    def encode(self, parts: Sequence[Sequence[bytes]], stamp: Stamp) -> list[Block]:
        """One block per partition."""
        found: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
        sequence = stamp.first_sequence
        for part in parts:
            for row in part:
                found[row[0] % 4].append((sequence, row))
                sequence += 1
        return [
            Block(
                stamp.lane, self.region, self.event, partition, rows[0][0], rows[-1][0],
                stamp.received_us // 1000,
                pa.array([b"%d:%d:%s" % (stamp.lane, number, row) for number, row in rows], pa.binary()),
            )
            for partition, rows in found.items()
        ]  # fmt: skip


def submission(encoder: Any, rows: Sequence[bytes], lane: int = 1) -> Submission:
    """A submission of plain rows."""
    return Submission(encoder, lane, rows, len(rows), len(rows))


def put(spool: Spool, encoder: Any, rows: Sequence[bytes], lane: int = 1) -> Future:
    """Submit plain rows."""
    return spool.submit(submission(encoder, rows, lane))


def stored(spool: Spool, region: str = "eu", lanes: Iterable[int] = range(3)) -> list[Block]:
    """All blocks that wait, lane by lane."""
    return [block for lane in lanes for block in spool.read(region, lane, 1 << 40).result(10)]


class MemoryBroker:
    """A region's broker: keeps what it acknowledges, and also what it took without saying so.

    ``before`` runs ahead of each send and may raise, or say how many rows to take before the answer is lost.
    """

    def __init__(self, record_bytes_max: int = 1 << 30) -> None:
        self.logs: dict[tuple[str, int], list[bytes]] = defaultdict(list)
        self.times: dict[tuple[str, int], list[int]] = defaultdict(list)
        self.keyed: list[tuple[str, bytes, bytes]] = []
        self.record_bytes_max = record_bytes_max
        self.before: Callable[[str, int, pa.BinaryArray], int | None] = lambda *_: None
        self.up = True
        self.starts = self.sends = 0
        self.news = threading.Event()

    async def start(self) -> None:
        """Refuses while down."""
        self.starts += 1
        if not self.up:
            raise TransientError("no broker answers")

    async def stop(self) -> None:
        """Nothing to close."""

    async def send(
        self, topic: str, partition: int, values: pa.BinaryArray, keys: pa.BinaryArray | None = None,
        timestamps_ms: np.ndarray | None = None,
    ) -> int:  # fmt: skip
        """Append, or fail as told."""
        await asyncio.sleep(0)
        self.sends += 1
        if not self.up:
            raise TransientError("broker away")
        rows = values.to_pylist()
        if any(len(row) > self.record_bytes_max for row in rows):
            raise RecordError("too large", reason="oversize")
        kept = self.before(topic, partition, values)
        if keys is not None:
            self.keyed += [(topic, key, row) for key, row in zip(keys.to_pylist(), rows, strict=True)]
            return 0
        log = self.logs[topic, partition]
        log += rows if kept is None else rows[:kept]
        assert timestamps_ms is not None
        self.times[topic, partition] += timestamps_ms.tolist()
        self.news.set()
        if kept is not None:
            raise TransientError("answer lost")
        return len(log) - len(rows)


async def until(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    """Wait for a condition; fail at the deadline."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        await asyncio.sleep(0.002)


def nothing_pending(spool: Spool) -> bool:
    """Whether everything accepted has left or was given up."""
    return all(counts.pending == 0 for counts in spool.ledger())


def plain_sequences(log: Sequence[bytes], lane: int = 1) -> list[int]:
    """Sequences in a partition's log, repeats of earlier ones taken out as the processor does it."""
    highest, kept = 0, []
    for record in log:
        number, sequence, _ = record.split(b":", 2)
        if int(number) == lane and int(sequence) > highest:
            highest = int(sequence)
            kept.append(highest)
    return kept


def open_spool(path: Path, metrics: EdgeMetrics | None = None, **settings: Any) -> Spool:
    """A spool for tests: short waits."""
    edge = Config().edge.model_copy(update={"backoff_min_s": 0.002, "backoff_max_s": 0.01} | settings)
    return Spool(path, LANES, edge, metrics)
