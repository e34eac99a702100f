"""A processor's output without a processor or a broker: curated and stats logs, made from a seed.

The same seed makes the same logs in every process, so a writer may be killed and started again on them. The
logs hold what a real processor leaves after crashes and stalls: batches delivered again from an earlier
start, stats that overlap, a fate decided before its rows come.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.batches import FILTERED, PASSED, QUARANTINED, REPEAT, Outcomes, Run
from pipeline.codec import Codec
from pipeline.control_records import encode_control
from pipeline.events import EventField
from pipeline.schemas import SchemaStore
from pipeline.store import RawPartition
from pipeline.topics import Topics

SCHEMAS = Path(__file__).resolve().parent.parent / "schemas"
REGION = "eu"
EVENTS = ("vehicle_telemetry", "meter_reading")
KINDS = ((PASSED, ""), (FILTERED, "duplicate_reading"), (QUARANTINED, "range"), (REPEAT, ""))
TOPICS = Topics("t.")
START_US = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
TopicPartition = tuple[str, int]


def stable_id(name: str) -> str:
    """A topic id that is the same in every process."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


@dataclass(frozen=True)
class Run_:
    """What a reader returns: as the real reader's Fetched."""

    topic: str
    partition: int
    first_offset: int
    next_offset: int
    values: pa.BinaryArray
    refused: Sequence[tuple[int, int, str]] = ()


@dataclass
class Truth:
    """What must be in the store in the end, per (event, partition)."""

    passed: list[int] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    end: int = 0


class World:
    """Logs of one region: ``logs[(topic, partition)]`` is a list of values, its index the offset."""

    def __init__(self, seed: int, raw_count: int = 3000, partitions: int = 2, days: int = 2) -> None:
        self.random = random.Random(seed)
        self.partitions = partitions
        self._days = days
        self.schemas = SchemaStore.load(SCHEMAS)
        self.logs: dict[TopicPartition, list[bytes]] = {}
        self.truth: dict[tuple[str, int], Truth] = {}
        for number in range(partitions):
            self.logs[(TOPICS.stats(REGION), number)] = []
            for event in EVENTS:
                self.logs[(TOPICS.curated(REGION, event), number)] = []
                self._process(event, number, raw_count)
        self.ids = {topic: stable_id(topic) for topic, _ in self.logs}

    def codec(self, event: str) -> Codec:
        """Of the region's newest curated schema."""
        return self.schemas.codec(self.schemas.latest(f"{REGION}.curated.{event}").id)

    def raw(self, event: str, number: int) -> RawPartition:
        """The raw partition behind an event and number."""
        topic = TOPICS.raw(REGION, event)
        return RawPartition(topic, stable_id(topic), number)

    def _process(self, event: str, number: int, raw_count: int) -> None:
        """Decide and deliver all raw positions, with restarts from earlier starts and second decisions."""
        fates = self.random.choices(range(len(KINDS)), weights=[80, 10, 3, 7], k=raw_count)
        decided = delivered = 0
        while delivered < raw_count:
            step = self.random.randint(1, max(2, raw_count // 8))
            if decided < raw_count:
                start = max(0, decided - self.random.choice([0, 0, 0, step // 2, step]))
                end = min(raw_count, decided + step)
                self._decide(event, number, fates, (start, decided, end))
                decided = end
            if self.random.random() < 0.8:  # otherwise it died in between and a successor delivers later
                start = max(0, delivered - self.random.choice([0, 0, 0, step // 3, step, 2 * step]))
                self._deliver(event, number, fates, (start, decided))
                delivered = decided
        truth = Truth([i for i, fate in enumerate(fates) if fate == 0], {}, raw_count)
        for fate in fates:
            truth.counts[KINDS[fate][0]] = truth.counts.get(KINDS[fate][0], 0) + 1
        self.truth[(event, number)] = truth

    def _decide(self, event: str, number: int, fates: list[int], span: tuple[int, int, int]) -> None:
        """One stats record over ``[start, end)``; what was decided before may be told differently here."""
        start, decided, end = span
        told = fates[start:end]
        if start < decided and self.random.random() < 0.5:  # a stalled owner under other rules
            told[: decided - start] = [1] * (decided - start)
        outcomes = Outcomes(np.arange(start, end))
        for code, (outcome, reason) in enumerate(KINDS):
            if code:
                outcomes.mark(np.flatnonzero(np.array(told) == code), outcome, reason)
        raw = self.raw(event, number)
        value = stats_value(raw, event, (start, end), outcomes.counts(), outcomes.runs())
        self.logs[(TOPICS.stats(REGION), number)].append(encode_control(self.schemas, "stats", value))

    def _deliver(self, event: str, number: int, fates: list[int], span: tuple[int, int]) -> None:
        offsets = [i for i in range(*span) if fates[i] == 0]
        log = self.logs[(TOPICS.curated(REGION, event), number)]
        log.extend(self.codec(event).encode(self.rows(event, number, offsets)).to_pylist())

    def rows(self, event: str, number: int, offsets: Sequence[int]) -> pa.RecordBatch:
        """Curated rows of these raw positions: every value follows from the position."""
        return curated_rows(self.codec(event), number, np.asarray(offsets, dtype=np.int64), self._days)


def stats_value(
    raw: RawPartition, event: str, span: tuple[int, int], counts: dict[tuple[str, str], int], runs: list[Run]
) -> dict:
    """A stats record's fields."""
    return {
        "raw_topic": raw.topic, "raw_topic_id": raw.topic_id, "raw_partition": raw.partition,
        "first_offset": span[0], "next_offset": span[1], "event": event, "region": REGION,
        "policy_hash": "0" * 16, "processed_time": START_US, "foreign": [], "waited_us": 0,
        "counts": [{"outcome": o, "reason": r, "count": n} for (o, r), n in counts.items()],
        "runs": [{"first": x.first, "next": x.next, "outcome": x.outcome, "reason": x.reason} for x in runs],
    }  # fmt: skip


def curated_rows(codec: Codec, number: int, offsets: np.ndarray, days: int = 1) -> pa.RecordBatch:
    """Rows of a curated schema whose values follow from their position; spread over ``days``."""
    moment = START_US + (offsets % max(1, days)) * 86_400_000_000 + offsets
    symbols = {f["name"]: EventField.of(f).symbols for f in codec.locked.schema["fields"]}
    columns = []
    for target in codec.arrow:
        if symbols[target.name]:
            column = pa.array(symbols[target.name]).take(pa.array(offsets % len(symbols[target.name])))
        elif target.name == "raw_partition":
            column = pa.array(np.full(len(offsets), number, np.int32))
        elif target.name == "raw_offset":
            column = pa.array(offsets)
        elif pa.types.is_timestamp(target.type):
            column = pa.array(moment).cast(target.type)
        elif pa.types.is_string(target.type):
            column = pc_text(offsets)
        elif pa.types.is_floating(target.type):
            column = pa.array(offsets * 0.5)
        elif pa.types.is_boolean(target.type):
            column = pa.array(offsets % 2 == 0)
        elif pa.types.is_integer(target.type):
            column = pa.array(offsets % 1000)
        else:
            column = pa.nulls(len(offsets), target.type)
        columns.append(column.cast(target.type))
    return pa.RecordBatch.from_arrays(columns, schema=codec.arrow)


def pc_text(offsets: np.ndarray) -> pa.Array:
    """One of 500 texts per row."""
    return pa.array(offsets % 500).cast(pa.string())


class FakeCluster:
    """Who the topics are; ``ids`` may be changed to recreate one."""

    def __init__(self, world: World) -> None:
        self.ids = dict(world.ids)
        self._partitions = world.partitions
        self.failures: list[Exception] = []  # raised by the next questions for ids

    async def cluster_id(self) -> str:
        """The one cluster."""
        return "cluster-1"

    async def topic_ids(self, names: list[str]) -> dict[str, str]:
        """Ids of those that exist."""
        if self.failures:
            raise self.failures.pop(0)
        return {name: self.ids[name] for name in names if name in self.ids}

    async def partitions(self, name: str) -> int:
        """The same for all."""
        return self._partitions


class FakeReader:
    """Reads a world's logs in pieces of random size; ``limits`` holds a log back, as if not yet written."""

    def __init__(self, world: World, seed: int, piece: int = 400) -> None:
        self.logs, self._random, self._piece = world.logs, random.Random(seed), piece
        self.limits: dict[TopicPartition, int] = {}
        self.starts: dict[TopicPartition, int] = {}
        self.positions: dict[TopicPartition, int] = {}
        self.hints: dict[TopicPartition, int] = {}
        self.failures: list[Exception] = []  # raised by the next fetches
        self.fetched = 0

    async def assign(self, positions: dict[TopicPartition, int]) -> None:
        """Read from there."""
        self.positions = dict(positions)

    async def fetch(self, timeout_s: float) -> list[Run_]:
        """Some records of some partitions, in log order; waits a moment when there are none."""
        if self.failures:
            raise self.failures.pop(0)
        found = []
        for key, position in self.positions.items():
            end = min(self.end(key), position + self._random.randint(0, self._piece))
            if end > position:
                values = pa.array(self.logs[key][position:end], pa.binary())
                found.append(Run_(*key, position, end, values))
                self.positions[key] = end
                self.fetched += end - position
        await asyncio.sleep(0 if found else min(timeout_s, 0.01))
        return found

    def end(self, key: TopicPartition) -> int:
        """Where the log ends for now."""
        return self.limits.get(key, len(self.logs[key]))

    def at_end(self) -> bool:
        """Everything was handed out."""
        return all(position >= self.end(key) for key, position in self.positions.items())

    async def commit(self, offsets: dict[TopicPartition, int]) -> None:
        """The group's offsets."""
        self.hints.update(offsets)

    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        """Next offsets to be written."""
        return {key: self.end(key) for key in partitions}

    async def beginning_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        """Lowest offsets there are."""
        return {key: self.starts.get(key, 0) for key in partitions}
