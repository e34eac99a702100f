"""The judge of the fault tests: exact, to the row, from what is in spool, raw topics and store.

Comes in: a :class:`Way` at rest. Goes out: a :class:`Verdict`; without findings, P1 and P2 held. Four
witnesses must agree: the receipts that the producer noted, the spool's ledger, the raw topics read again from
their beginning, and the store's rows with the sequences that travelled in them. Where the way goes on to the
core, its balance and its rows are judged against the region's.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from connectors.kafka_scan import LogScanner
from connectors.lake import open_reader
from pipeline.balance import BALANCED, BalanceReport
from pipeline.evidence import ledgers, weigh, weigh_settled
from pipeline.framing import unframe
from tests.faults.flow import OUT_OF_RANGE, STREAMS, Stream
from tests.whole_way import CORE, POLL_S, REGION, Way


@dataclass
class Raw:
    """What the raw topics hold. ``foreign``: cycles of the good readings that no spool sent."""

    records: int = 0
    from_spools: int = 0
    distinct: int = 0
    bad: int = 0
    foreign: list[int] = field(default_factory=list)

    @property
    def repeats(self) -> int:
        """Records of a spool beyond the first one of their sequence."""
        return self.from_spools - self.distinct


@dataclass(frozen=True)
class Verdict:
    """``findings``: what broke a promise, in words; none when all held."""

    report: BalanceReport
    raw: Raw
    findings: tuple[str, ...]

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {count}" for name, count in self.report.rows() if count)
        return f"{self.report.status}: {figures}; repeats {self.report.repeats}; findings {self.findings}"


async def judge(way: Way, within_s: float) -> Verdict:
    """Wait until everything has come to rest, then compare the witnesses."""
    report = await at_rest(way, within_s)
    findings = list(report.findings)
    if report.status != BALANCED:
        findings.append(f"the balance is {report.status}: {report.rows()}")
    accepted = accepted_by_lane(way)
    findings += check_receipts(way, accepted)
    raw = await read_raw(way)
    findings += check_account(report, raw, accepted)
    for stream in STREAMS:
        findings += check_rows(way, stream, accepted.get(stream.lane, 0), raw)
    return Verdict(report, raw, tuple(findings))


async def at_rest(way: Way, within_s: float, region: str = REGION) -> BalanceReport:
    """The balance when the store has read all there is: a late repeat would double only then."""
    deadline = time.monotonic() + within_s
    while True:
        left_s = max(0.0, deadline - time.monotonic())
        report = await weigh_settled(way.project, region, left_s, distinct=True)
        if report.unread == 0 or not report.ok or left_s == 0:
            return report
        await asyncio.sleep(POLL_S)


async def weigh_now(way: Way) -> tuple[str, ...]:
    """Findings while everything moves: a balance may be open then, it must never be off."""
    found = (await weigh(way.project, REGION)).findings
    if way.project.config.store_path(CORE).exists():
        found += (await weigh(way.project, CORE)).findings
    return found


async def judge_core(way: Way, landed: BalanceReport, within_s: float) -> tuple[str, ...]:
    """What is off at the core, once everything has come to rest: its balance, and each row against the
    region's store."""
    report = await at_rest(way, within_s, CORE)
    print(f"core: {report.status}, {[row for row in report.rows() if row[1]]}, repeats {report.repeats}")
    findings = list(report.findings)
    if report.status != BALANCED:
        findings.append(f"the core's balance is {report.status}: {report.rows()}")
    if report.accepted != landed.stored:
        findings.append(f"the core accepts {report.accepted} events, {landed.stored} are stored before it")
    for stream in STREAMS:
        columns = f"raw_partition, raw_offset, {stream.identity} AS identity"
        rows = [_rows(way, region, f"SELECT {columns} FROM {stream.event}") for region in (REGION, CORE)]
        here, there = map(_counted, rows)
        if doubled := [place for place, count in there.items() if count > 1]:
            findings.append(f"doubled at the core: {len(doubled)} rows of {stream.event}")
        if here.keys() != there.keys():
            missing, strange = len(here.keys() - there.keys()), len(there.keys() - here.keys())
            findings.append(f"{stream.event} at the core: {missing} missing, {strange} unknown before it")
    return tuple(findings)


def _rows(way: Way, region: str, sql: str) -> pa.Table:
    with open_reader(way.project.config.store_path(region)) as lake:
        return lake.query(sql)


def _counted(rows: pa.Table) -> Counter[tuple[object, ...]]:
    return Counter(zip(*(column.to_pylist() for column in rows.columns), strict=True))


def accepted_by_lane(way: Way) -> dict[str, int]:
    """What the spools took, by the name of the lane: the last sequence given out."""
    lanes = way.project.config.edge.lanes
    counts: Counter[str] = Counter()
    for ledger in ledgers(way.project):
        counts[lanes[ledger.lane]] += ledger.accepted
    return dict(counts)


def check_receipts(way: Way, accepted: dict[str, int]) -> list[str]:
    """What was acknowledged must have been taken: each sequence once, none beyond the spool's last."""
    findings = []
    for stream in STREAMS:
        path = way.folder / "edge" / "acknowledged" / stream.lane
        receipts = [tuple(map(int, line.split())) for line in path.read_text().splitlines()]
        last = 0
        for first, count in receipts:
            if first <= last:
                findings.append(f"{stream.event}: sequence {first} was acknowledged twice")
            last = first + count - 1
        if last > accepted.get(stream.lane, 0):
            findings.append(f"{stream.event}: {last} were acknowledged, the spool took {accepted}")
    return findings


async def read_raw(way: Way) -> Raw:
    """All raw records from the start of the topics."""
    found = Raw()
    project = way.project
    scan = LogScanner(project.cluster(REGION), project.config.limits)
    for stream in STREAMS:
        sequences = []
        for partition in range(project.config.region(REGION).partitions):
            async for fetched in scan(project.topics.raw(REGION, stream.event), partition, 0):
                sequences.append(_take_in(way, stream.event, fetched.values, found))
        numbers = np.concatenate(sequences) if sequences else np.empty(0, np.int64)
        found.from_spools += len(numbers)
        found.distinct += len(np.unique(numbers))
    return found


def _take_in(way: Way, event: str, values: pa.BinaryArray, found: Raw) -> np.ndarray:
    """Count one run of records; the sequences of those from a spool."""
    schemas = way.project.schemas
    ids, bodies = unframe(values)
    framed = np.flatnonzero(ids >= 0)
    found.records += len(values)
    found.bad += len(values) - len(framed)
    batch, _, bad = schemas.codec(schemas.latest(event).id).decode(bodies.take(pa.array(framed)))
    found.bad += len(bad)
    from_spool = np.asarray(batch.column("spool")) != 0
    if not from_spool.all():
        foreign = batch.filter(pa.array(~from_spool))
        plausible = np.asarray(foreign.column("setting_1").fill_null(0.0)) < OUT_OF_RANGE
        found.bad += int((~plausible).sum())
        found.foreign += foreign.filter(pa.array(plausible)).column("cycle").to_pylist()
    return np.asarray(batch.column("sequence"))[from_spool]


def check_account(report: BalanceReport, raw: Raw, accepted: dict[str, int]) -> list[str]:
    """The store's account against the topics themselves."""
    filtered = sum(
        accepted.get(s.lane, 0) - len(s.kept(np.arange(1, accepted.get(s.lane, 0) + 1))) for s in STREAMS
    )
    expected = {
        "accepted": sum(accepted.values()), "filtered": filtered, "quarantined": raw.bad,
        "repeats": raw.repeats, "foreign": raw.bad + len(raw.foreign), "surplus": 0, "evicted": 0,
        "stored": sum(accepted.values()) - filtered + len(raw.foreign),
    }  # fmt: skip
    return [
        f"{name}: expected {count}, the balance says {getattr(report, name)}"
        for name, count in expected.items()
        if getattr(report, name) != count
    ]


def check_rows(way: Way, stream: Stream, accepted: int, raw: Raw) -> list[str]:
    """The rows of one table: each position once, each accepted event once, and no other."""
    sql = f"SELECT raw_partition, raw_offset, {stream.identity} AS identity FROM {stream.event}"
    with open_reader(way.project.config.store_path(REGION)) as lake:
        rows = lake.query(sql)
    positions = rows.group_by(["raw_partition", "raw_offset"]).aggregate([])
    findings = []
    if len(positions) != len(rows):
        findings.append(f"doubled: {len(rows) - len(positions)} positions of {stream.event}")
    expected = stream.kept(np.arange(1, accepted + 1))
    if stream.event == "machine_reading":
        expected = np.concatenate([expected, np.array(sorted(raw.foreign), dtype=np.int64)])
    numbers, counts = np.unique(np.asarray(rows.column("identity")).astype(np.int64), return_counts=True)
    for what, some in (
        ("missing", np.setdiff1d(expected, numbers)),
        ("stored and never sent", np.setdiff1d(numbers, expected)),
        ("doubled", numbers[counts > 1]),
    ):
        if len(some):
            findings.append(f"{what}: {len(some)} events of {stream.event}, the first {some[:5].tolist()}")
    return findings
