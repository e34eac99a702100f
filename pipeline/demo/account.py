"""The account of one demonstration, and how it is printed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.balance import BALANCED, BalanceReport
from pipeline.cli.output import Session
from pipeline.demo.emission import Emission
from pipeline.demo.samples import Sample


@dataclass(frozen=True)
class Crossing:
    """Events of one kind that went over one border, as the receiving store accounts for them."""

    origin: str
    destination: str
    event: str
    basis: str
    count: int


@dataclass
class Account:
    """What was seen. Seconds count from the first event; ``spooled``: what waited when the outage ended."""

    seed: int
    regions: list[str]
    offered: dict[str, int] = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)
    emitted_s: float = 0.0
    commit_p50_ms: float = 0.0
    commit_p99_ms: float = 0.0
    outage_s: float = 0.0
    accepted_in_outage: int = 0
    spooled: dict[str, int] = field(default_factory=dict)
    drained_s: float = 0.0
    settled_s: float = 0.0
    reports: list[BalanceReport] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    answers: dict[str, pa.Table] = field(default_factory=dict)
    crossings: list[Crossing] = field(default_factory=list)

    def note_emission(self, emission: Emission) -> None:
        """Take over the counts of a finished emission."""
        self.offered, self.accepted = dict(emission.offered), dict(emission.accepted)
        self.emitted_s = emission.took_s
        self.commit_p50_ms, self.commit_p99_ms = emission.commit_ms(50), emission.commit_ms(99)

    @property
    def accepted_total(self) -> int:
        """Events acknowledged in this run, all regions."""
        return sum(self.accepted.values())

    @property
    def balanced(self) -> bool:
        """Whether every region's books close exactly."""
        return bool(self.reports) and all(report.status == BALANCED for report in self.reports)

    def as_json(self) -> dict[str, Any]:
        """Everything but the samples' values, which are not for machines."""
        return {
            "seed": self.seed,
            "seconds": {"emitted": self.emitted_s, "drained": self.drained_s, "settled": self.settled_s},
            "commit_ms": {"p50": self.commit_p50_ms, "p99": self.commit_p99_ms},
            "outage": {
                "seconds": self.outage_s, "accepted": self.accepted_in_outage, "spooled": self.spooled,
            },
            "offered": self.offered,
            "accepted": self.accepted,
            "balanced": self.balanced,
            "balance": {
                r.region: {"status": r.status, **dict(r.rows()), "findings": r.findings} for r in self.reports
            },
            "crossings": [asdict(one) for one in self.crossings],
            "answers": {region: rows.to_pylist() for region, rows in self.answers.items()},
        }  # fmt: skip


def print_account(here: Session, account: Account) -> None:
    """For people: samples, rates, queries, the balance last; JSON when the session says so."""
    if here.json:
        here.print_json(account.as_json())
        return
    for one in account.samples:
        _print_sample(here, one)
    for region, rows in account.answers.items():
        here.console.print(f"\n[bold]A query in {region}'s store[/bold], read-only, beside its writer")
        here.print_rows(rows.column_names, [list(row.values()) for row in rows.to_pylist()])
    _print_crossings(here, account)
    _print_rates(here, account)
    _print_balance(here, account)


def _print_sample(here: Session, one: Sample) -> None:
    place = f"{one.topic}, partition {one.partition}, offset {one.offset}"
    here.console.print(f"\n[bold]One event in {one.region}[/bold]: {place}")
    headings = ("field", "from the device", "in the store", *([f"at the {one.beyond}"] if one.beyond else []))
    here.print_table(headings, one.changed)
    here.console.print(f"unchanged: {', '.join(one.kept)}", style="dim")


def _print_crossings(here: Session, account: Account) -> None:
    if account.crossings:
        here.console.print("\n[bold]Over the borders[/bold], by what permits it")
        rows = [(one.origin, one.destination, one.event, one.basis, one.count) for one in account.crossings]
        here.print_table(("from", "to", "event", "basis", "events"), rows)


def _print_rates(here: Session, account: Account) -> None:
    total, last_s = account.accepted_total, account.emitted_s
    lines = [
        f"{total:,} events acknowledged in {last_s:.1f} s, {total / last_s:,.0f} a second; "
        f"an acknowledgement (on disk) took {account.commit_p50_ms:.0f} ms, "
        f"99 of 100 at most {account.commit_p99_ms:.0f} ms",
    ]
    if account.outage_s:
        lines.append(
            f"{account.outage_s:.1f} s without a broker: {account.accepted_in_outage:,} events acknowledged "
            f"meanwhile, {sum(account.spooled.values()):,} waited in the spools"
        )
    lines.append(
        f"spools empty {account.drained_s - last_s:.1f} s after the last event, everything in the stores and "
        f"accounted for {account.settled_s - last_s:.1f} s after it"
    )
    here.console.print("\n[bold]Rates[/bold]")
    for line in lines:
        here.console.print(line)


def _print_balance(here: Session, account: Account) -> None:
    """The equation, one column per region."""
    here.console.print("\n[bold]The balance[/bold]: every acknowledged event, to the row")
    lines = zip(*(report.rows() for report in account.reports), strict=True)
    table: list[tuple[Any, ...]] = [(line[0][0], *(count for _, count in line)) for line in lines]
    table.append(("status", *(report.status for report in account.reports)))
    here.print_table(("events", *(report.region for report in account.reports)), table)
    if account.crossings:
        beyond = " and ".join(sorted({one.destination for one in account.crossings}))
        here.console.print(f"{beyond} accepts what the other regions' policies let cross to it", style="dim")
    for report in account.reports:
        for finding in report.findings:
            here.console.print(f"{report.region}: {finding}", style="red")
