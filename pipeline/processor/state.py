"""What a processor has to know of a partition before it reads on, and where that is kept.

Two logs carry it. The **stats** topic is written ahead: one record per batch says what becomes of each raw
position, before a curated record leaves. The **watermarks** topic (compacted) is written behind: once a
batch is delivered it takes the next raw position and the highest sequence seen per spool and lane.
What stats hold beyond the watermarks was decided but perhaps not delivered: it is delivered (again) as
decided, whatever today's rules say, so that the account and the rows agree to the row.

Every owner of a partition writes under keys of its own, and a reader takes the maximum over all owners: a
stalled former owner that wakes up cannot lower what its successor wrote.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa

from pipeline.avro import zigzag
from pipeline.batches import Run
from pipeline.control_records import decode_control
from pipeline.framing import frame
from pipeline.processor.leg import Decided
from pipeline.schemas import SchemaStore

POSITION, SEEN = "position", "seen"


class LogRecords(Protocol):
    """A run of records of a control topic; ``keys`` is None where the topic has none."""

    @property
    def next_offset(self) -> int: ...
    @property
    def offsets(self) -> np.ndarray: ...
    @property
    def keys(self) -> pa.BinaryArray | None: ...
    @property
    def values(self) -> pa.BinaryArray: ...


# (topic, partition, from offset) -> all records up to the end of the log as it was at the call
Scan = Callable[[str, int, int], AsyncIterator[LogRecords]]


@dataclass(frozen=True)
class RawPartition:
    """One partition of one incarnation of a raw topic."""

    topic: str
    topic_id: str
    partition: int


@dataclass
class PartitionState:
    """Where to read on. ``next_offset`` None: never read. ``stats_next``: stats before it are delivered."""

    next_offset: int | None = None
    stats_next: int = 0
    seen: dict[tuple[int, int], int] = field(default_factory=dict)
    decided: Decided = field(default_factory=Decided)
    old_keys: list[bytes] = field(default_factory=list)
    other_incarnations: set[str] = field(default_factory=set)


class WatermarkCodec:
    """State records of one region's watermarks topic, to bytes and back."""

    def __init__(self, schemas: SchemaStore) -> None:
        self._schemas = schemas
        self._position = frame(schemas.latest("control.watermark_position").id)
        self._entry = frame(schemas.latest("control.watermark_entry").id)

    def encode(
        self, raw: RawPartition, owner: str, position: tuple[int, int], seen: dict[tuple[int, int], int]
    ) -> tuple[pa.BinaryArray, pa.BinaryArray]:
        """Keys and values for the changed entries and ``position`` = (next raw offset, next stats offset).

        The position comes last: when only the first part of a long write arrives, a batch is looked at again
        whose fate is decided, and no entry is missing below a position that moved on.
        """
        tail = f"{raw.topic}|{raw.topic_id}|{raw.partition}|{owner}"
        keys = [*(f"{SEEN}|{tail}|{spool}|{lane}" for spool, lane in seen), f"{POSITION}|{tail}"]
        # An Avro record of longs is its zigzag numbers; the bulk encoder's fixed cost is 50 times that.
        values = [self._entry + zigzag(sequence) for sequence in seen.values()]
        values.append(self._position + zigzag(position[0]) + zigzag(position[1]))
        return pa.array([key.encode() for key in keys], pa.binary()), pa.array(values, pa.binary())

    def merge(self, latest: dict[bytes, bytes], partition: int) -> dict[tuple[str, str], PartitionState]:
        """States by (topic, topic id) out of the last value of each key of one watermarks partition."""
        states: dict[tuple[str, str], PartitionState] = {}
        for key, value in latest.items():
            kind, topic, topic_id, number, _owner, *identity = key.decode().split("|")
            if int(number) != partition:
                continue
            state = states.setdefault((topic, topic_id), PartitionState())
            state.old_keys.append(key)
            _, content = decode_control(self._schemas, value)
            if kind == POSITION:
                if state.next_offset is None or content["next_offset"] > state.next_offset:
                    state.next_offset, state.stats_next = content["next_offset"], content["stats_next"]
            else:
                spool_lane = (int(identity[0]), int(identity[1]))
                state.seen[spool_lane] = max(state.seen.get(spool_lane, 0), content["sequence"])
        return states


class StateLog:
    """Loads partition states from the two logs of a region."""

    def __init__(self, schemas: SchemaStore, scan: Scan, watermarks_topic: str, stats_topic: str) -> None:
        self._schemas = schemas
        self._scan = scan
        self._watermarks_topic = watermarks_topic
        self._stats_topic = stats_topic
        self.codec = WatermarkCodec(schemas)

    async def load(
        self, partition: int, raws: Iterable[RawPartition]
    ) -> tuple[dict[RawPartition, PartitionState], int]:
        """States of the given raw partitions (all of one number), and the end of their stats log."""
        latest: dict[bytes, bytes] = {}
        async for records in self._scan(self._watermarks_topic, partition, 0):
            if records.keys is not None:
                latest.update(zip(records.keys.to_pylist(), records.values.to_pylist(), strict=True))
        known = self.codec.merge({k: v for k, v in latest.items() if v is not None}, partition)
        states = {}
        for raw in raws:
            state = known.get((raw.topic, raw.topic_id), PartitionState())
            state.other_incarnations = {i for topic, i in known if topic == raw.topic and i != raw.topic_id}
            states[raw] = state
        end = await self._load_decided(partition, states)
        return states, end

    async def _load_decided(self, partition: int, states: dict[RawPartition, PartitionState]) -> int:
        start = min((state.stats_next for state in states.values()), default=0)
        end = start
        by_name = {(raw.topic, raw.topic_id): state for raw, state in states.items()}
        async for records in self._scan(self._stats_topic, partition, start):
            for value in records.values.to_pylist():
                _, stats = decode_control(self._schemas, value)
                state = by_name.get((stats["raw_topic"], stats["raw_topic_id"]))
                if state is not None and stats["raw_partition"] == partition:
                    state.decided = extend(state.decided, state.next_offset or 0, stats)
            end = max(end, records.next_offset)
        return end

    async def changed_by_others(self, raw: RawPartition, start: int, end: int) -> bool:
        """Whether stats records in ``[start, end)`` speak of ``raw``: then someone else works on it."""
        async for records in self._scan(self._stats_topic, raw.partition, start):
            for offset, value in zip(records.offsets, records.values.to_pylist(), strict=True):
                _, stats = decode_control(self._schemas, value)
                found = (stats["raw_topic"], stats["raw_topic_id"], stats["raw_partition"])
                if offset < end and found == (raw.topic, raw.topic_id, raw.partition):
                    return True
        return False


def extend(decided: Decided, delivered: int, stats: dict) -> Decided:
    """``decided`` with one more stats record; what an earlier record or a delivery covers stays as it was."""
    start = max(decided.end, delivered)
    if stats["next_offset"] <= start:
        return decided
    runs = tuple(
        Run(max(run["first"], start), run["next"], run["outcome"], run["reason"])
        for run in stats["runs"]
        if run["next"] > start
    )
    return Decided(stats["next_offset"], decided.runs + runs)
