"""The balance of a border finds every event that was lost or doubled between two stores."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.balance import (
    BALANCED,
    OFF,
    OPEN,
    AccountTotals,
    BalanceReport,
    BorderEvidence,
    LegEvidence,
    RowTotals,
    StoreTotals,
    border_balance,
)
from pipeline.store.account import RawPartition, Source

EVENT, RAW, CURATED = "e", "eu.raw.e", "eu.curated.e"
LEG = LegEvidence("eu", EVENT, RAW, CURATED, "eu.stats", "core.stats.eu")
ENDS = {(CURATED, 0): 95, ("eu.stats", 0): 7, ("core.stats.eu", 0): 4, ("core.curated.e.eu", 0): 82}


def origin(passed: int = 90, stored: int = 90, read: int = 7) -> StoreTotals:
    """100 raw records, of which 90 passed and are stored."""
    account = AccountTotals(EVENT, 100, passed, 100 - passed, 0, 0)
    positions = {Source("c", "eu.stats", "i", 0): read}
    rows = {(EVENT, 0): RowTotals(stored, 0)}
    return StoreTotals("eu", 5, {RawPartition(RAW, "i", 0): account}, rows, {EVENT: stored}, positions)


def core(rows: int = 80, read: int = 4, distinct: int | None = None, **account: int) -> StoreTotals:
    """Of 95 curated records 5 were repeats, 8 were filtered, 2 unreadable; 80 crossed and are stored."""
    plain = {"accounted": 95, "passed": 80, "filtered": 8, "quarantined": 2, "repeats": 5}
    positions = {Source("c", "core.stats.eu", "i", 0): read, Source("c", "core.curated.e.eu", "i", 0): 82}
    return StoreTotals(
        "core", 3, {RawPartition(CURATED, "i", 0): AccountTotals(EVENT, **(plain | account))}, {},
        {EVENT: rows}, positions, {(EVENT, "eu", 0): RowTotals(rows, 0, distinct)},
    )  # fmt: skip


def evidence(store: StoreTotals | None = None, **changes) -> BorderEvidence:
    plain = BorderEvidence([LEG], {"eu": origin()}, store or core(), ENDS, {"eu": origin()})
    return replace(plain, **changes)


def adds_up(report: BalanceReport) -> bool:
    (_, accepted), (_, foreign), *parts = report.rows()
    return accepted + foreign == sum(count for _, count in parts)


def test_all_there_is_balanced_to_the_row():
    report = border_balance(evidence())
    assert (report.status, report.findings, report.remarks) == (BALANCED, (), ())
    assert adds_up(report)
    figures = (report.accepted, report.stored, report.filtered, report.quarantined, report.repeats)
    assert figures == (90, 80, 8, 2, 5)


@pytest.mark.parametrize(
    "moving",
    [
        {
            "ends": ENDS | {(CURATED, 0): 99},
            "before": {"eu": origin(92, 92)},
            "after": {"eu": origin(94, 92)},
        },
        {"after": {"eu": origin(91, 90)}},
        {"store": core(rows=78)},
        {
            "store": core(rows=80, read=3, accounted=91, passed=76)
        },  # their fates are in stats that were not read yet
    ],
)
def test_what_still_moves_is_open_and_adds_up(moving):
    report = border_balance(evidence(**moving))
    assert (report.status, report.findings) == (OPEN, ())
    assert adds_up(report)


def test_a_row_that_is_stored_before_the_border_and_in_no_topic_is_lost():
    report = border_balance(evidence(core(accounted=95, passed=79, rows=79)))
    assert report.status == OFF
    assert "lost: 1 rows of e from eu" in report.findings[0]


def test_what_passed_there_and_does_not_come_is_lost_once_settled():
    open_ = evidence(after={"eu": origin(93, 90)}, before={"eu": origin(93, 90)})
    assert border_balance(open_).status == OPEN
    report = border_balance(open_, settled=True)
    assert "lost: 3 events of e from eu passed there" in report.findings[0]


def test_a_row_that_passed_the_border_and_is_not_stored_is_lost_once_settled():
    report = border_balance(evidence(core(rows=79)), settled=True)
    assert "lost: 1 events of e/0 from eu passed and are not stored" in report.findings


def test_more_rows_than_passed_are_doubled_once_their_fates_were_read():
    assert "doubled: 1 rows" in border_balance(evidence(core(rows=81))).findings[0]


def test_a_position_that_is_stored_twice_is_doubled_though_the_sums_agree():
    report = border_balance(evidence(core(distinct=79)))
    assert report.findings == ("doubled: 1 rows of e/0 from eu",)


def test_events_beyond_those_that_passed_there_are_doubled_once_the_origin_has_read_its_fates():
    more = core(passed=84, rows=84, repeats=1)
    assert border_balance(evidence(more, after={"eu": origin(90, 90, read=6)})).status == OPEN
    report = border_balance(evidence(more))
    assert "doubled: 4 events of e from eu beyond" in report.findings[0]
    assert adds_up(report)


def test_unreadable_repeats_explain_a_surplus():
    report = border_balance(evidence(core(quarantined=4, repeats=3)))
    assert (report.status, report.findings) == (BALANCED, ())
    assert "2 of the 4 unreadable" in report.remarks[0]


def test_a_curated_topic_that_ends_below_its_account_is_a_contradiction():
    report = border_balance(evidence(ends=ENDS | {(CURATED, 0): 94}))
    assert "contradiction" in report.findings[0]


def test_rows_that_no_commit_added_are_a_contradiction():
    report = border_balance(evidence(replace(core(), committed={EVENT: 79})))
    assert report.findings == ("contradiction: e holds 80 rows, its commits added 79",)
