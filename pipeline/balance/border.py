"""The balance of a region's borders, see :mod:`pipeline.balance`. Pure.

Comes in: the totals of the origins' stores and of the region's own, and the topics' ends. Goes out: a
:class:`BalanceReport`, in which ``accepted`` is what the origins' policies let through on the legs here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.balance.report import (
    BALANCED,
    OFF,
    OPEN,
    AccountTotals,
    BalanceReport,
    RowTotals,
    StoreTotals,
    TopicPartition,
    check_committed,
    check_distinct,
    unread,
)


@dataclass(frozen=True)
class LegEvidence:
    """One event on its way from one origin: the names of the topics that speak of it.

    ``raw``: where it landed at the origin. ``source``: the origin's curated topic, which the leg reads.
    ``origin_stats`` and ``stats``: fates at the origin, and on the leg.
    """

    origin: str
    event: str
    raw: str
    source: str
    origin_stats: str
    stats: str


@dataclass(frozen=True)
class BorderEvidence:
    """All that the balance rests on, read in this order: ``before``, ``store``, ``ends``, ``after``.

    ``before`` and ``after``: the origins' stores, by region. ``ends``: of every partition of the topics that
    ``legs`` name, and of the region's own curated topics.
    """

    legs: Sequence[LegEvidence]
    before: Mapping[str, StoreTotals]
    store: StoreTotals
    ends: Mapping[TopicPartition, int]
    after: Mapping[str, StoreTotals]


@dataclass(frozen=True)
class _Weighed:
    """One leg; ``moving``: what it says is not final."""

    passed_there: int
    arrived: int
    filtered: int
    quarantined: int
    repeats: int
    holes: int
    stored: int
    on_the_way: int
    waiting: int
    surplus: int
    moving: bool


def border_balance(evidence: BorderEvidence, *, settled: bool = False) -> BalanceReport:
    """Weigh everything that crosses into one region.

    ``settled``: nothing has moved for longer than a flush and a takeover take: what is still on the way will
    not come.
    """
    findings: list[str] = []
    remarks: list[str] = []
    legs = [_weigh(evidence, leg, settled, (findings, remarks)) for leg in evidence.legs]
    for (event, origin, partition), rows in evidence.store.crossed.items():
        check_distinct(f"{event}/{partition} from {origin}", rows, findings)
    check_committed(evidence.store, findings)
    return BalanceReport(
        region=evidence.store.region, snapshot=evidence.store.snapshot,
        accepted=sum(leg.passed_there for leg in legs), foreign=0,
        stored=sum(leg.stored for leg in legs),
        filtered=sum(leg.filtered for leg in legs), quarantined=sum(leg.quarantined for leg in legs),
        evicted=0, in_spool=0, in_kafka=sum(leg.waiting for leg in legs),
        on_the_way=sum(leg.on_the_way for leg in legs), surplus=sum(leg.surplus for leg in legs),
        repeats=sum(leg.repeats for leg in legs), holes=sum(leg.holes for leg in legs),
        unread=unread(evidence.store, evidence.ends),
        status=OFF if findings else OPEN if any(leg.moving for leg in legs) else BALANCED,
        findings=tuple(findings), remarks=tuple(remarks),
    )  # fmt: skip


def _weigh(
    evidence: BorderEvidence, leg: LegEvidence, settled: bool, out: tuple[list[str], list[str]]
) -> _Weighed:
    findings, _ = out
    place = f"{leg.event} from {leg.origin}"
    accounts = _accounts(evidence.store, leg.source)
    arrived = sum(account.arrived for account in accounts.values())
    in_kafka = _in_kafka(evidence.ends, leg.source, accounts, findings)
    passed = [_passed(totals[leg.origin], leg.raw) for totals in (evidence.before, evidence.after)]
    delivered = sum(
        rows.below + rows.ahead
        for (event, _), rows in evidence.before[leg.origin].rows.items()
        if event == leg.event
    )
    if (lost := delivered - arrived - in_kafka) > 0:
        findings.append(f"lost: {lost} rows of {place} are stored there and not in its curated topic")
    waiting, surplus = max(0, passed[1] - arrived), max(0, arrived - passed[1])
    if waiting > in_kafka and settled:
        findings.append(f"lost: {waiting - in_kafka} events of {place} passed there and did not cross")
    final = evidence.after[leg.origin].has_read(leg.origin_stats, evidence.ends)
    quarantined = sum(account.quarantined for account in accounts.values())
    if surplus and final:
        _judge_surplus(surplus, quarantined, place, out)
    on_the_way, ahead = _check_rows(evidence, leg, accounts, (settled, findings))
    stored = sum(rows.below for rows in _rows(evidence.store, leg).values())
    return _Weighed(
        passed_there=passed[1], arrived=arrived,
        filtered=sum(account.filtered for account in accounts.values()), quarantined=quarantined,
        repeats=sum(account.repeats for account in accounts.values()),
        holes=sum(a.accounted - a.arrived - a.repeats for a in accounts.values()),
        stored=stored, on_the_way=on_the_way, waiting=max(0, waiting - ahead), surplus=surplus,
        moving=in_kafka > 0 or waiting > 0 or on_the_way > 0 or ahead > 0 or passed[0] != passed[1]
        or (surplus > 0 and not final),
    )  # fmt: skip


def _accounts(store: StoreTotals, topic: str) -> dict[int, AccountTotals]:
    return {raw.partition: account for raw, account in store.accounts.items() if raw.topic == topic}


def _rows(store: StoreTotals, leg: LegEvidence) -> dict[int, RowTotals]:
    return {
        partition: rows
        for (event, origin, partition), rows in store.crossed.items()
        if (event, origin) == (leg.event, leg.origin)
    }


def _passed(origin: StoreTotals, raw_topic: str) -> int:
    return sum(account.passed for account in _accounts(origin, raw_topic).values())


def _in_kafka(
    ends: Mapping[TopicPartition, int], topic: str, accounts: Mapping[int, AccountTotals], findings: list[str]
) -> int:
    """Curated records not accounted for; a topic that ends below its account was cut or recreated."""
    total = 0
    for partition in {number for name, number in ends if name == topic} | accounts.keys():
        end = ends.get((topic, partition), 0)
        accounted = accounts[partition].accounted if partition in accounts else 0
        if end < accounted:
            findings.append(f"contradiction: {topic}/{partition} ends at {end}, accounted up to {accounted}")
        total += max(0, end - accounted)
    return total


def _check_rows(
    evidence: BorderEvidence,
    leg: LegEvidence,
    accounts: Mapping[int, AccountTotals],
    judged: tuple[bool, list[str]],
) -> tuple[int, int]:
    """P2; rows still to come, and rows whose fate was not read yet."""
    settled, findings = judged
    rows = _rows(evidence.store, leg)
    told = evidence.store.has_read(leg.stats, evidence.ends)
    on_the_way = ahead = 0
    for partition in rows.keys() | accounts.keys():
        passed = accounts[partition].passed if partition in accounts else 0
        missing = passed - (rows[partition].below if partition in rows else 0)
        place = f"{leg.event}/{partition} from {leg.origin}"
        if missing < 0 and told:
            findings.append(f"doubled: {-missing} rows of {place} beyond those that passed")
        elif missing > 0 and settled:
            findings.append(f"lost: {missing} events of {place} passed and are not stored")
        on_the_way += max(0, missing)
        ahead += max(0, -missing)
    return on_the_way, ahead


def _judge_surplus(surplus: int, quarantined: int, place: str, out: tuple[list[str], list[str]]) -> None:
    findings, remarks = out
    if surplus <= quarantined:
        remarks.append(f"{surplus} of the {quarantined} unreadable records of {place} were repeats")
    else:
        findings.append(f"doubled: {surplus} events of {place} beyond those that passed there")
