"""The demonstration's own parts: a steady emission, an honest account, a comparison that hides nothing."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import fields
from datetime import datetime

import pytest

from pipeline.balance import BALANCED, OFF, BalanceReport
from pipeline.demo.account import Account
from pipeline.demo.emission import TICK_S, Emission
from pipeline.demo.fleet import Fleet, FleetSize
from pipeline.demo.samples import GONE, compare
from pipeline.edge import Receipt
from pipeline.errors import TransientError

SMALL = FleetSize(vehicles=30, meters=10, machines=10, cameras=2)


class SlowEdge:
    """A client whose acknowledgements come when the test says so; ``fail`` makes them errors."""

    def __init__(self) -> None:
        self.open: list[tuple[Future[Receipt], int]] = []
        self.fail = False
        self.instant = True

    def submit_many(self, event, rows):
        future: Future[Receipt] = Future()
        self.open.append((future, len(rows)))
        if self.instant:
            self.acknowledge()
        return future

    def acknowledge(self) -> None:
        while self.open:
            future, count = self.open.pop(0)
            if self.fail:
                future.set_exception(TransientError("disk full"))
            else:
                future.set_result(Receipt(1, 1, 1, count))


def emission(edge: SlowEdge, seconds: float) -> Emission:
    return Emission({"eu": Fleet("eu", 1, SMALL)}, {"eu": edge}, seconds)


def test_everything_offered_is_counted_when_it_is_acknowledged():
    with emission(SlowEdge(), 1.0) as running:
        running.wait(20)
        assert not running.running
    assert running.accepted == running.offered
    assert running.accepted["eu"] > 30
    assert running.commit_ms(99) >= running.commit_ms(50) > 0


def test_a_slow_edge_does_not_slow_the_fleet_down():
    edge = SlowEdge()
    edge.instant = False
    with emission(edge, 1.0) as running:
        deadline = time.monotonic() + 20
        while len(edge.open) < 9 and time.monotonic() < deadline:
            running.wait(TICK_S)
        assert running.accepted["eu"] == 0
        assert running.offered["eu"] > 0
        edge.instant = True
        while running.running and time.monotonic() < deadline:
            edge.acknowledge()
            running.wait(TICK_S)
    assert running.accepted == running.offered


def test_a_refusal_ends_the_emission_with_its_error():
    edge = SlowEdge()
    edge.fail = True
    running = emission(edge, 0.5)
    with running, pytest.raises(TransientError, match="disk full"):
        running.wait(20)
    assert running.accepted["eu"] == 0


def test_leaving_early_stops_the_emission():
    before = threading.active_count()
    with emission(SlowEdge(), 3600) as running:
        running.wait(TICK_S)
    assert not running.running
    assert threading.active_count() == before


def report(status: str) -> BalanceReport:
    counts = {field.name: 0 for field in fields(BalanceReport) if field.type == "int"}
    return BalanceReport(region="eu", status=status, **counts)


def test_the_books_are_closed_only_when_every_region_is_balanced():
    account = Account(1, ["eu", "br"])
    assert not account.balanced
    account.reports = [report(BALANCED), report(OFF)]
    assert not account.balanced
    account.reports = [report(BALANCED), report(BALANCED)]
    assert account.balanced


def test_a_comparison_names_every_field_of_either_side_once():
    raw = {"vin": "V1", "driver": None, "speed": 12.5, "at": datetime(2026, 1, 1, 12, 30, 1), "gone": 1}
    stored = {"vin": "p1", "driver": None, "speed": 12.5, "at": datetime(2026, 1, 1, 12), "cell": 7}
    changed, kept = compare(raw, stored)
    assert changed == (
        ("vin", "V1", "p1"), ("at", "2026-01-01 12:30:01", "2026-01-01 12:00:00"), ("gone", "1", GONE),
        ("cell", GONE, "7"),
    )  # fmt: skip
    assert kept == ("driver", "speed")
