"""The balance of a landing, see :mod:`pipeline.balance`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

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
from pipeline.store.account import RawPartition


class Ledger(Protocol):
    """A spool's counters of one lane and region; :class:`pipeline.edge.ledger.LaneLedger` is one."""

    @property
    def region(self) -> str: ...
    @property
    def accepted(self) -> int: ...
    @property
    def forwarded(self) -> int: ...
    @property
    def evicted(self) -> int: ...
    @property
    def pending(self) -> int: ...


@dataclass(frozen=True)
class Evidence:
    """All that a balance rests on, read in this order: ``before``, ``store``, ``ends``, ``after``.

    ``ends``: of every raw, curated and stats partition of the region. ``after``: the ledgers again; without
    them a surplus cannot be told from events accepted meanwhile.
    """

    before: Iterable[Ledger]
    store: StoreTotals
    ends: Mapping[TopicPartition, int]
    raw_topics: frozenset[str]
    after: Iterable[Ledger] | None = None


@dataclass(frozen=True)
class Ledgers:
    """Sums over the spools' lanes."""

    accepted: int = 0
    forwarded: int = 0
    evicted: int = 0
    pending: int = 0
    contradictions: int = 0

    @classmethod
    def of(cls, ledgers: Iterable[Ledger], region: str) -> Ledgers:
        """The sums for one region."""
        mine = [one for one in ledgers if one.region == region]
        return cls(
            sum(one.accepted for one in mine), sum(one.forwarded for one in mine),
            sum(one.evicted for one in mine), sum(one.pending for one in mine),
            sum(one.accepted != one.forwarded + one.evicted + one.pending for one in mine),
        )  # fmt: skip


def balance(evidence: Evidence, *, settled: bool = False) -> BalanceReport:
    """Weigh the evidence of one region.

    ``settled``: nothing has moved for longer than a flush and a processor's takeover take, so what is still
    on the way will not come.
    """
    store = evidence.store
    findings: list[str] = []
    remarks: list[str] = []
    before = Ledgers.of(evidence.before, store.region)
    after = before if evidence.after is None else Ledgers.of(evidence.after, store.region)
    accounts = landed_accounts(store, evidence.raw_topics).values()
    foreign = sum(a.foreign for a in accounts)
    arrived = sum(a.arrived for a in accounts) - foreign
    in_kafka = _in_kafka(evidence, findings)
    on_the_way = _check_rows(evidence, settled, findings)
    _check_ledgers(before, after, findings)

    lost = before.forwarded - arrived - in_kafka
    if lost > 0:
        findings.append(f"lost: {lost} events were forwarded and are not in the raw topics")
    quiet = evidence.after is not None and before == after
    surplus = max(0, arrived - after.accepted)
    if quiet and in_kafka == 0 and after.pending == 0:
        surplus = max(0, arrived - after.forwarded)
    _judge_surplus(surplus, after, evidence.after is not None, (findings, remarks))
    ahead = sum(rows.ahead for rows in store.rows.values())  # stored before their account was read
    open_ends = in_kafka > 0 or after.pending > 0 or on_the_way > 0 or not quiet
    return BalanceReport(
        region=store.region, snapshot=store.snapshot, accepted=after.accepted,
        foreign=foreign,
        stored=ahead + sum(rows.below for rows in store.rows.values()),
        filtered=sum(a.filtered for a in accounts), quarantined=sum(a.quarantined for a in accounts),
        evicted=after.evicted, in_spool=after.pending, in_kafka=max(0, in_kafka - ahead),
        on_the_way=on_the_way,
        surplus=surplus, repeats=sum(a.repeats for a in accounts),
        holes=sum(a.accounted - a.arrived - a.repeats for a in accounts), unread=unread(store, evidence.ends),
        status=OFF if findings else OPEN if open_ends else BALANCED,
        findings=tuple(findings), remarks=tuple(remarks),
    )  # fmt: skip


def _in_kafka(evidence: Evidence, findings: list[str]) -> int:
    """Raw records not accounted for; a topic that ends below its account was cut or recreated."""
    accounts = landed_accounts(evidence.store, evidence.raw_topics)
    accounted = {(raw.topic, raw.partition): a.accounted for raw, a in accounts.items()}
    total = 0
    for key in {key for key in evidence.ends if key[0] in evidence.raw_topics} | accounted.keys():
        end = evidence.ends.get(key, 0)
        if end < accounted.get(key, 0):
            findings.append(
                f"contradiction: {key[0]}/{key[1]} ends at {end}, accounted for up to {accounted[key]}"
            )
        total += max(0, end - accounted.get(key, 0))
    return total


def landed_accounts(store: StoreTotals, raw_topics: frozenset[str]) -> dict[RawPartition, AccountTotals]:
    """The account of what edges sent, without what came over a border."""
    return {raw: account for raw, account in store.accounts.items() if raw.topic in raw_topics}


def _check_rows(evidence: Evidence, settled: bool, findings: list[str]) -> int:
    """P2; returns how many rows are still to come."""
    on_the_way, store = 0, evidence.store
    for raw, account in landed_accounts(store, evidence.raw_topics).items():
        rows = store.rows.get((account.event, raw.partition), RowTotals(0, 0))
        missing = account.passed - rows.below
        place = f"{account.event}/{raw.partition}"
        if missing < 0:
            findings.append(f"doubled: {-missing} rows of {place} beyond those that passed")
        elif missing > 0 and settled:
            findings.append(f"lost: {missing} events of {place} passed and are not stored")
        on_the_way += max(0, missing)
    for (event, partition), rows in store.rows.items():
        check_distinct(f"{event}/{partition}", rows, findings)
    check_committed(store, findings)
    return on_the_way


def _check_ledgers(before: Ledgers, after: Ledgers, findings: list[str]) -> None:
    if before.contradictions or after.contradictions:
        findings.append("contradiction: accepted is not forwarded + evicted + pending in a spool's ledger")
    if after.accepted < before.accepted or after.forwarded < before.forwarded:
        findings.append("contradiction: a spool's counters went back while they were read")


def _judge_surplus(surplus: int, after: Ledgers, read_twice: bool, out: tuple[list[str], list[str]]) -> None:
    findings, remarks = out
    if surplus == 0:
        return
    if not read_twice:
        remarks.append(
            f"{surplus} events more than accepted: read the ledgers again after the store to judge"
        )
    elif surplus <= after.evicted:
        remarks.append(f"{surplus} evicted events had been delivered after all")
    else:
        findings.append(f"doubled: {surplus} events beyond those accepted")
