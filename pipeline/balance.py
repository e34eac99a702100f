"""The balance of a region, to the row: is every accepted event somewhere, and in the store once?

Comes in: the spools' ledgers, the store's totals, the topics' ends. Goes out: a :class:`BalanceReport`. Pure.

**P1, nothing lost.** ``accepted + foreign = stored + filtered + quarantined + evicted + pending``; pending is
in a spool, in the raw topic, or passed and not stored yet. Per raw partition the store knows ``accounted``:
below it every position has one fate. So, over all partitions of the region::

    arrived  = passed + filtered + quarantined − foreign (repeats are the same events again)
    in_kafka = end of the raw topic − accounted         (events and perhaps repeats, not accounted for yet)
    lost     = forwarded − arrived − in_kafka           when that is above 0

Read in the order ledgers, store, ends. What a ledger calls forwarded was acknowledged before it was read, so
it lies below the ends read later; and the store's account is a part of that log. Everything can move
meanwhile, but only such that arrived + in_kafka grows: a positive difference is a loss even while the
pipeline runs.

**Nothing too much** needs the ledgers once more, *after* the store: an event must be accepted before it is
stored, so ``arrived − accepted`` above 0 is a surplus: doubled events. Records that no spool sent (another
producer's, or bytes that are no event) are no ledger's; the account counts them apart, and they are not in
``arrived`` here. An event that was evicted while its acknowledgement was on the way counts as evicted and
arrived: a surplus of up to ``evicted`` is explained by that.

**P2, once.** Of one snapshot of the store: rows below ``accounted`` against ``passed``, per partition, and
all rows against the sum of what the commits say they added. More rows than passed are doubled rows, always.
Fewer are on their way (a fate is recorded before the row is delivered) and lost only if that stays so:
``settled``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.store.account import RawPartition, Source

BALANCED, OPEN, OFF = "balanced", "open", "off"
TopicPartition = tuple[str, int]


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
class AccountTotals:
    """What became of the raw positions ``[0, accounted)`` of one raw partition."""

    event: str
    accounted: int
    passed: int
    filtered: int
    quarantined: int
    repeats: int
    foreign: int = 0  # among the first three: no spool sent them

    @property
    def arrived(self) -> int:
        """Events, each once."""
        return self.passed + self.filtered + self.quarantined


@dataclass(frozen=True)
class RowTotals:
    """Rows of one (event, raw partition), below ``accounted`` and beyond; ``distinct`` positions."""

    below: int
    ahead: int
    distinct: int | None = None


@dataclass(frozen=True)
class StoreTotals:
    """One snapshot of a store. ``committed``: rows per event as the commits say, summed."""

    region: str
    snapshot: int
    accounts: Mapping[RawPartition, AccountTotals] = field(default_factory=dict)
    rows: Mapping[tuple[str, int], RowTotals] = field(default_factory=dict)
    committed: Mapping[str, int] = field(default_factory=dict)
    positions: Mapping[Source, int] = field(default_factory=dict)


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


@dataclass(frozen=True)
class BalanceReport:
    """Where the accepted events of a region are. All counts are events, except ``repeats`` and ``unread``.

    ``foreign``: arrived without a spool's identity, so no ledger accepted them. ``on_the_way``: passed, not
    stored yet. ``surplus``: arrived beyond what was accepted. ``holes``: raw positions without a record.
    ``unread``: curated and stats records the store has not read. ``findings``: what is off.
    """

    region: str
    snapshot: int
    accepted: int
    foreign: int
    stored: int
    filtered: int
    quarantined: int
    evicted: int
    in_spool: int
    in_kafka: int
    on_the_way: int
    surplus: int
    repeats: int
    holes: int
    unread: int
    status: str
    findings: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Nothing is off; it may still be moving."""
        return self.status != OFF

    @property
    def pending(self) -> int:
        """Accepted and without a final fate yet."""
        return self.in_spool + self.in_kafka + self.on_the_way

    def rows(self) -> list[tuple[str, int]]:
        """The equation, line by line: the first two are the sum of the others when it is balanced."""
        return [
            ("accepted", self.accepted),
            ("without a spool", self.foreign),
            ("stored", self.stored),
            ("filtered", self.filtered),
            ("quarantined", self.quarantined),
            ("evicted", self.evicted),
            ("pending in spools", self.in_spool),
            ("pending in kafka", self.in_kafka),
            ("pending on the way to the store", self.on_the_way),
            ("surplus", -self.surplus),
        ]


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
    accounts = store.accounts.values()
    foreign = sum(a.foreign for a in accounts)
    arrived = sum(a.arrived for a in accounts) - foreign
    in_kafka = _in_kafka(evidence, findings)
    on_the_way = _check_rows(store, settled, findings)
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
        holes=sum(a.accounted - a.arrived - a.repeats for a in accounts), unread=_unread(evidence),
        status=OFF if findings else OPEN if open_ends else BALANCED,
        findings=tuple(findings), remarks=tuple(remarks),
    )  # fmt: skip


def _in_kafka(evidence: Evidence, findings: list[str]) -> int:
    """Raw records not accounted for; a topic that ends below its account was cut or recreated."""
    accounted = {(raw.topic, raw.partition): a.accounted for raw, a in evidence.store.accounts.items()}
    total = 0
    for key in {key for key in evidence.ends if key[0] in evidence.raw_topics} | accounted.keys():
        end = evidence.ends.get(key, 0)
        if end < accounted.get(key, 0):
            findings.append(
                f"contradiction: {key[0]}/{key[1]} ends at {end}, accounted for up to {accounted[key]}"
            )
        total += max(0, end - accounted.get(key, 0))
    return total


def _check_rows(store: StoreTotals, settled: bool, findings: list[str]) -> int:
    """P2; returns how many rows are still to come."""
    on_the_way = 0
    for raw, account in store.accounts.items():
        rows = store.rows.get((account.event, raw.partition), RowTotals(0, 0))
        missing = account.passed - rows.below
        place = f"{account.event}/{raw.partition}"
        if missing < 0:
            findings.append(f"doubled: {-missing} rows of {place} beyond those that passed")
        elif missing > 0 and settled:
            findings.append(f"lost: {missing} events of {place} passed and are not stored")
        on_the_way += max(0, missing)
    for (event, partition), rows in store.rows.items():
        if rows.distinct is not None and rows.distinct != rows.below + rows.ahead:
            findings.append(f"doubled: {rows.below + rows.ahead - rows.distinct} rows of {event}/{partition}")
    for event in store.committed.keys() | {event for event, _ in store.rows}:
        there = sum(rows.below + rows.ahead for (name, _), rows in store.rows.items() if name == event)
        said = store.committed.get(event, 0)
        if there != said:
            findings.append(f"contradiction: {event} holds {there} rows, its commits added {said}")
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


def _unread(evidence: Evidence) -> int:
    return sum(
        max(0, evidence.ends.get((source.topic, source.partition), position) - position)
        for source, position in evidence.store.positions.items()
    )
