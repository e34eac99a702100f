"""Curated and stats records of one source to rows and accounts, each position once. CPU only, no I/O.

The curated stream's rule. Per curated partition the raw offsets rise, except where a processor sends a
prefix-closed range again. Proof that skipping everything below the highest offset seen is exact:

- An instance starts at a position below which everything that passes is already in this partition (it is
  remembered only after the curated records were acknowledged), and appends what passes in raw order, as
  the one stats record that decided each position says. So, at every place in the log, all that passes
  below an offset that is there is there before it.
- Let an offset be new to us and yet below the highest one seen. The higher one is before it in the log, so
  by the rule it is itself in the log before that, so we have seen it: a contradiction. What is skipped is
  stored, and what is not skipped is not.

The rule holds for what crossed a border as well: the border processor reads one partition of the origin's
curated topic, drops what does not rise there, and appends the rest in order to a topic that no other leg
writes; the raw offset that a row carries rises with its position in what was read.

The records are our own output: what cannot be read, or is out of place, is StoreCorrupt and never skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.control_records import decode_control
from pipeline.errors import ConfigError, RecordError, StoreCorrupt
from pipeline.framing import unframe
from pipeline.policy import curated_subject
from pipeline.schemas import SchemaStore
from pipeline.store.account import RawPartition, StatsRecord, apply
from pipeline.store.buffer import Rows
from pipeline.topics import LegTopics

RAW_PARTITION, RAW_OFFSET, ORIGIN = "raw_partition", "raw_offset", "origin"
Door = Callable[[int], None]  # raises when the region may not hold what this schema id describes


class Fetched(Protocol):
    """A run of records of one partition, as the Kafka reader gives them."""

    topic: str
    partition: int
    first_offset: int
    next_offset: int
    values: pa.BinaryArray
    refused: Sequence[tuple[int, int, str]]


@dataclass(frozen=True)
class Curated:
    """A curated topic that the store reads: one event on one leg."""

    leg: LegTopics
    event: str

    @property
    def subject(self) -> str:
        """Under which its schemas are locked."""
        return curated_subject(self.leg.destination, self.event, self.leg.events_from)

    @property
    def topic(self) -> str:
        """Its name."""
        return self.leg.curated(self.event)


class Decoder:
    """Decodes for one region; every new schema id passes the door first. Holds no positions."""

    def __init__(self, schemas: SchemaStore, door: Door) -> None:
        self._schemas, self._door = schemas, door
        self._admitted: set[tuple[str, int]] = set()

    def rows(self, source: Curated, fetched: Fetched, next_raw: int) -> Rows:
        """Rows of a curated source from raw offset ``next_raw`` on.

        Raises StoreCorrupt (unreadable, or of another event, origin or partition) and what the door raises.
        """
        _refuse_gaps(fetched)
        rows = Rows(source.event, [], next_raw, 0)
        ids, bodies = unframe(fetched.values)
        edges = np.flatnonzero(np.diff(ids)) + 1
        for first, end in zip([0, *edges.tolist()], [*edges.tolist(), len(ids)], strict=True):
            if first < end:
                self._admit(source, int(ids[first]), fetched)
                batch, _, bad = self._schemas.codec(int(ids[first])).decode(bodies.slice(first, end - first))
                if bad:
                    raise _corrupt(fetched, f"{len(bad)} curated records cannot be decoded")
                _demand_origin(source, batch, fetched)
                _append(rows, batch, fetched)
        return rows

    def stats(self, fetched: Fetched, accounted: dict[RawPartition, int]) -> list[StatsRecord]:
        """What a stats source adds to the account; ``accounted`` is moved on to match.

        Raises StoreCorrupt: unreadable, a gap, or a raw topic that was recreated.
        """
        _refuse_gaps(fetched)
        added = []
        for value in fetched.values.to_pylist():
            record = StatsRecord.from_control(self._control(value, fetched))
            _refuse_recreated(record.raw, accounted)
            new = apply(record, accounted.get(record.raw, 0))
            if new is not None:
                accounted[new.raw] = new.next
                added.append(new)
        return added

    def _control(self, value: bytes | None, fetched: Fetched) -> Any:
        try:
            name, content = decode_control(self._schemas, value or b"")
        except RecordError as error:
            raise _corrupt(fetched, f"a stats record is {error.reason}") from None
        if name != "stats":
            raise _corrupt(fetched, f"expected stats records, found {name}")
        return content

    def _admit(self, source: Curated, schema_id: int, fetched: Fetched) -> None:
        """Once per subject and id: a known schema of this leg's curated event, and allowed in."""
        subject = source.subject
        if (subject, schema_id) in self._admitted:
            return
        try:
            found = self._schemas.by_id(schema_id).subject
        except KeyError:
            if schema_id < 0:
                raise _corrupt(fetched, "a curated record has no frame") from None
            raise ConfigError(
                f"schema id {schema_id} is not in the lock", operation="storing", place=_place(fetched),
                remedy="deploy the schemas the processor runs with",
            ) from None  # fmt: skip
        if found != subject:
            raise _corrupt(fetched, f"expected schemas of {subject}, found one of {found}")
        self._door(schema_id)
        self._admitted.add((subject, schema_id))


def _demand_origin(source: Curated, batch: pa.RecordBatch, fetched: Fetched) -> None:
    """What came over a border says from where; what landed does not say it."""
    origin = source.leg.events_from
    if origin is None:
        return
    said = batch.column(ORIGIN) if ORIGIN in batch.schema.names else pa.nulls(len(batch), pa.string())
    if pc.all(pc.equal(said, pa.scalar(origin)), skip_nulls=False).as_py() is not True:
        raise _corrupt(fetched, f"a row whose {ORIGIN} is not the leg's")


def _append(rows: Rows, batch: pa.RecordBatch, fetched: Fetched) -> None:
    """Add the rows that rise above all before them, and move ``next_raw_offset`` on."""
    partition = batch.column(RAW_PARTITION).to_numpy(zero_copy_only=False)
    if (partition != fetched.partition).any():
        raise _corrupt(fetched, f"a row whose {RAW_PARTITION} is another partition")
    offsets = batch.column(RAW_OFFSET).to_numpy(zero_copy_only=False)
    before = np.maximum.accumulate(np.concatenate(([rows.next_raw_offset - 1], offsets)))
    fresh = offsets > before[:-1]
    rows.next_raw_offset = int(before[-1]) + 1
    repeats = len(batch) - int(np.count_nonzero(fresh))
    if repeats:
        rows.repeats += repeats
        batch = batch.filter(pa.array(fresh))
    if len(batch):
        rows.batches.append(batch)


def _refuse_gaps(fetched: Fetched) -> None:
    if fetched.refused:
        raise _corrupt(fetched, "record batches that the reader refused")
    if fetched.values.null_count:
        raise _corrupt(fetched, "a record without a value")


def _refuse_recreated(raw: RawPartition, accounted: dict[RawPartition, int]) -> None:
    if raw in accounted:
        return
    for known in accounted:
        if (known.topic, known.partition) == (raw.topic, raw.partition):
            raise StoreCorrupt(
                "the raw topic was recreated: its positions mean other events now",
                operation="accounting", place=f"{raw.topic}/{raw.partition}",
                remedy="use a new topic prefix, or a new store",
            )  # fmt: skip


def _corrupt(fetched: Fetched, problem: str) -> StoreCorrupt:
    return StoreCorrupt(
        f"{problem}, between positions {fetched.first_offset} and {fetched.next_offset}",
        operation="storing", place=_place(fetched),
        remedy="the topic is written by this pipeline alone: find who else wrote, or what was truncated",
    )  # fmt: skip


def _place(fetched: Fetched) -> str:
    return f"{fetched.topic}/{fetched.partition}"
