"""The store's account of raw positions: what became of each, and applied exactly once. Pure.

Comes in: stats records (one per processed batch: a half-open range of raw positions, counts per fate, runs of
all that did not pass). Goes out: the part of each that the store has not yet applied, and the rows of the
``_account`` table.

Invariant, per raw partition: ``next_accounted`` only rises, and every position below it was counted once.
A range below it is ignored (sent again), one that straddles it is cut by its runs (two owners of the
partition met, the first record in the log counts), one beyond it is a gap: records are missing, so
StoreCorrupt.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from pipeline.batches import FILTERED, PASSED, QUARANTINED, REPEAT, Run
from pipeline.errors import StoreCorrupt

ROWS, STATS = "rows", "stats"
OUTCOMES = (PASSED, FILTERED, QUARANTINED, REPEAT)


@dataclass(frozen=True, order=True)
class Source:
    """One partition of one incarnation of a topic that the store reads."""

    cluster_id: str
    topic: str
    topic_id: str
    partition: int


@dataclass(frozen=True, order=True)
class RawPartition:
    """One partition of one incarnation of a raw topic: what positions in the account belong to."""

    topic: str
    topic_id: str
    partition: int


@dataclass(frozen=True)
class StoreState:
    """What a store says of itself: all that a writer needs to go on.

    ``positions``: next Kafka offset to read per source. ``next_raw``: per curated source, the raw offset
    below which every row is stored. ``accounted``: per raw partition, the raw offset below which all is
    accounted for.
    """

    positions: Mapping[Source, int] = field(default_factory=dict)
    next_raw: Mapping[Source, int] = field(default_factory=dict)
    accounted: Mapping[RawPartition, int] = field(default_factory=dict)


@dataclass(frozen=True)
class StatsRecord:
    """Fates of the raw positions ``[first, next)``; ``runs`` hold all that did not pass, ascending.

    ``foreign``: ranges of records that no spool sent. ``received_us``: mean receipt of what passed.
    """

    raw: RawPartition
    event: str
    first: int
    next: int
    counts: Mapping[tuple[str, str], int]
    runs: tuple[Run, ...]
    policy_hash: str
    foreign: tuple[tuple[int, int], ...] = ()
    received_us: int = 0

    @classmethod
    def from_control(cls, value: Mapping[str, Any]) -> StatsRecord:
        """From a decoded ``control.stats`` record. Raises StoreCorrupt when it contradicts itself."""
        raw = RawPartition(value["raw_topic"], value["raw_topic_id"], value["raw_partition"])
        record = cls(
            raw, value["event"], value["first_offset"], value["next_offset"],
            {(c["outcome"], c["reason"]): c["count"] for c in value["counts"]},
            tuple(Run(r["first"], r["next"], r["outcome"], r["reason"]) for r in value["runs"]),
            value["policy_hash"],
            tuple((f["first"], f["next"]) for f in value["foreign"]),
            value["processed_time"] - value["waited_us"],
        )  # fmt: skip
        _check(record)
        return record

    @property
    def passed(self) -> int:
        """Records that became rows."""
        return self.counts.get((PASSED, ""), 0)


def apply(record: StatsRecord, next_accounted: int) -> StatsRecord | None:
    """The part of ``record`` from ``next_accounted`` on; None when all of it was applied before.

    Raises StoreCorrupt for a gap, and for a range with holes that has to be cut: the runs do not say on
    which side of the cut the holes lie, so the number that passed would be a guess.
    """
    if record.next <= next_accounted:
        return None
    if record.first > next_accounted:
        raise StoreCorrupt(
            f"expected an account from position {next_accounted}, found one from {record.first}",
            operation="accounting", place=_place(record.raw),
            remedy="stats records are missing: check the retention of the stats topic",
        )  # fmt: skip
    if record.first == next_accounted:
        return record
    return _cut(record, next_accounted)


def _cut(record: StatsRecord, start: int) -> StatsRecord:
    if sum(record.counts.values()) != record.next - record.first:
        raise StoreCorrupt(
            f"a range with holes overlaps what is accounted for up to {start}",
            operation="accounting", place=_place(record.raw),
            remedy="raw topics must hold no transaction markers and no compacted records",
        )  # fmt: skip
    runs = tuple(
        Run(max(run.first, start), run.next, run.outcome, run.reason)
        for run in record.runs
        if run.next > start
    )
    counts: Counter[tuple[str, str]] = Counter()
    for run in runs:
        counts[(run.outcome, run.reason)] += run.next - run.first
    passed = record.next - start - counts.total()
    if passed:
        counts[(PASSED, "")] = passed
    foreign = tuple((max(first, start), end) for first, end in record.foreign if end > start)
    return replace(record, first=start, counts=counts, runs=runs, foreign=foreign)


def _check(record: StatsRecord) -> None:
    """Counts and runs say the same thing twice; believe neither when they differ."""
    lengths: Counter[tuple[str, str]] = Counter()
    position = record.first
    for run in record.runs:
        if run.first < position or run.next <= run.first:
            _refuse(record, "runs overlap or are out of order")
        position = run.next
        lengths[(run.outcome, run.reason)] += run.next - run.first
    if any(first < record.first or end > record.next or end <= first for first, end in record.foreign):
        _refuse(record, "foreign records lie outside the range")
    others = {kind: n for kind, n in record.counts.items() if kind != (PASSED, "")}
    if record.next <= record.first or position > record.next:
        _refuse(record, "runs lie outside the range")
    if lengths != others or any(outcome not in OUTCOMES for outcome, _ in record.counts):
        _refuse(record, "counts and runs differ")
    if min(record.counts.values(), default=0) < 0 or sum(record.counts.values()) > record.next - record.first:
        _refuse(record, "more records than positions")


def _refuse(record: StatsRecord, problem: str) -> None:
    raise StoreCorrupt(
        f"{problem} in the range [{record.first}, {record.next})",
        operation="accounting",
        place=_place(record.raw),
    )


def _place(raw: RawPartition) -> str:
    return f"{raw.topic}/{raw.partition}"


# --- the table -----------------------------------------------------------------------------------------

ACCOUNT_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),  # rows: a curated source · stats: a stats source
        pa.field("cluster_id", pa.string(), nullable=False),
        pa.field("topic", pa.string(), nullable=False),
        pa.field("topic_id", pa.string(), nullable=False),
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("next_position", pa.int64(), nullable=False),  # of the source: first offset not yet read
        pa.field("event", pa.string()),
        pa.field("raw_topic", pa.string()),  # stats only, as the next one
        pa.field("raw_topic_id", pa.string()),
        pa.field("raw_partition", pa.int32()),
        pa.field("next_raw_offset", pa.int64()),  # rows only, as the next two
        pa.field("row_count", pa.int64()),
        pa.field("repeat_rows", pa.int64()),
        pa.field("first_accounted", pa.int64()),  # stats only, as all that follow
        pa.field("next_accounted", pa.int64()),
        pa.field("passed", pa.int64()),
        pa.field("filtered", pa.int64()),
        pa.field("quarantined", pa.int64()),
        pa.field("repeats", pa.int64()),
        pa.field("foreign_records", pa.int64()),  # among the ones above: no spool sent them
        pa.field("details", pa.string()),  # JSON, see details()
        pa.field("policy_hash", pa.string()),
        pa.field("committed_time", pa.timestamp("us"), nullable=False),  # UTC
    ]
)


@dataclass
class RowsEntry:
    """What one commit adds to one curated source; ``next_raw_offset`` as in :class:`StoreState`."""

    event: str
    next_raw_offset: int
    row_count: int = 0
    repeat_rows: int = 0

    def columns(self, source: Source) -> dict[str, Any]:
        """Its columns of ACCOUNT_SCHEMA."""
        return {
            "kind": ROWS, "event": self.event, "raw_partition": source.partition,
            "next_raw_offset": self.next_raw_offset, "row_count": self.row_count,
            "repeat_rows": self.repeat_rows,
        }  # fmt: skip


@dataclass
class StatsEntry:
    """What one commit adds to one raw partition's account: a contiguous range under one policy."""

    event: str
    policy_hash: str
    first: int
    next: int
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    runs: list[Run] = field(default_factory=list)
    foreign: int = 0

    def add(self, record: StatsRecord) -> None:
        """Append the next range; it must start where this one ends."""
        assert record.first == self.next
        self.counts.update(record.counts)
        self.foreign += sum(end - first for first, end in record.foreign)
        for run in record.runs:
            last = self.runs[-1] if self.runs else None
            if last and last.next == run.first and (last.outcome, last.reason) == (run.outcome, run.reason):
                self.runs[-1] = Run(last.first, run.next, run.outcome, run.reason)
            else:
                self.runs.append(run)
        self.next = record.next

    def columns(self, raw: RawPartition) -> dict[str, Any]:
        """Its columns of ACCOUNT_SCHEMA."""
        totals: Counter[str] = Counter()
        for (outcome, _), count in self.counts.items():
            totals[outcome] += count
        return {
            "kind": STATS, "event": self.event, "raw_topic": raw.topic, "raw_topic_id": raw.topic_id,
            "raw_partition": raw.partition, "first_accounted": self.first, "next_accounted": self.next,
            "passed": totals[PASSED], "filtered": totals[FILTERED], "quarantined": totals[QUARANTINED],
            "repeats": totals[REPEAT], "foreign_records": self.foreign,
            "details": details(self.first, self.counts, self.runs), "policy_hash": self.policy_hash,
        }  # fmt: skip


def details(first: int, counts: Mapping[tuple[str, str], int], runs: Iterable[Run]) -> str:
    """Counts per reason and the runs as compact JSON.

    ``{"counts": [[outcome, reason, n], …], "runs": [[gap, length, index into counts], …]}``: a gap counts
    from the end of the run before it (from ``first`` for the first one). Small numbers, so Parquet packs
    them well.
    """
    kinds = [kind for kind in counts if kind != (PASSED, "")]
    index = {kind: number for number, kind in enumerate(kinds)}
    packed, position = [], first
    for run in runs:
        packed.append([run.first - position, run.next - run.first, index[(run.outcome, run.reason)]])
        position = run.next
    value = {"counts": [[*kind, counts[kind]] for kind in kinds], "runs": packed}
    return json.dumps(value, separators=(",", ":"))


def runs_of(first: int, text: str) -> list[Run]:
    """The inverse of :func:`details`, for audits: which position had which fate."""
    value, position, runs = json.loads(text), first, []
    for gap, length, number in value["runs"]:
        outcome, reason, _ = value["counts"][number]
        runs.append(Run(position + gap, position + gap + length, outcome, reason))
        position += gap + length
    return runs
