"""What a balance speaks of: what a store holds, what its account says, and the report on both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.store.account import RawPartition, Source

BALANCED, OPEN, OFF = "balanced", "open", "off"
TopicPartition = tuple[str, int]


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
    """One snapshot of a store.

    ``rows``: what landed, per (event, raw partition). ``crossed``: what came over a border, per (event,
    origin, raw partition); all of it is ``below``. ``committed``: rows per event as the commits say, summed.
    """

    region: str
    snapshot: int
    accounts: Mapping[RawPartition, AccountTotals] = field(default_factory=dict)
    rows: Mapping[tuple[str, int], RowTotals] = field(default_factory=dict)
    committed: Mapping[str, int] = field(default_factory=dict)
    positions: Mapping[Source, int] = field(default_factory=dict)
    crossed: Mapping[tuple[str, str, int], RowTotals] = field(default_factory=dict)

    def has_read(self, topic: str, ends: Mapping[TopicPartition, int]) -> bool:
        """Whether the store has taken in every record of the topic that lies before ``ends``."""
        read = {
            (source.topic, source.partition): position
            for source, position in self.positions.items()
            if source.topic == topic
        }
        return all(read.get(key, 0) >= end for key, end in ends.items() if key[0] == topic)


@dataclass(frozen=True)
class BalanceReport:
    """Where the accepted events of a region are. All counts are events, except ``repeats`` and ``unread``.

    Of a region's borders, ``accepted`` is what the origins' policies let through. ``foreign``: arrived
    without a spool's identity, so no ledger accepted them. ``on_the_way``: passed, not stored yet.
    ``surplus``: arrived beyond what was accepted. ``holes``: raw positions without a record. ``unread``:
    curated and stats records the store has not read. ``findings``: what is off.
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


def check_distinct(place: str, rows: RowTotals, findings: list[str]) -> None:
    """A position that is stored twice, where distinct ones were counted."""
    if rows.distinct is not None and rows.distinct != rows.below + rows.ahead:
        findings.append(f"doubled: {rows.below + rows.ahead - rows.distinct} rows of {place}")


def check_committed(store: StoreTotals, findings: list[str]) -> None:
    """All rows of an event against what the commits say they added."""
    there: dict[str, int] = dict.fromkeys(store.committed, 0)
    held = [(key[0], rows) for key, rows in store.rows.items()]
    held += [(key[0], rows) for key, rows in store.crossed.items()]
    for event, rows in held:
        there[event] = there.get(event, 0) + rows.below + rows.ahead
    for event, count in there.items():
        said = store.committed.get(event, 0)
        if count != said:
            findings.append(f"contradiction: {event} holds {count} rows, its commits added {said}")


def unread(store: StoreTotals, ends: Mapping[TopicPartition, int]) -> int:
    """Curated and stats records that the store has not read."""
    return sum(
        max(0, ends.get((source.topic, source.partition), position) - position)
        for source, position in store.positions.items()
    )
