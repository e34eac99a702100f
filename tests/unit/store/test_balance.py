"""The balance finds every lost and doubled event, and says "open" only while something can still come."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.balance import (
    BALANCED,
    OFF,
    OPEN,
    AccountTotals,
    BalanceReport,
    Evidence,
    RowTotals,
    StoreTotals,
    balance,
)
from pipeline.edge.ledger import LaneLedger
from pipeline.store.account import RawPartition, Source

EVENT, TOPIC = "meter_reading", "eu.raw.meter_reading"
RAW = RawPartition(TOPIC, "id", 0)
CURATED = Source("c", "eu.curated.meter_reading", "id2", 0)


def ledger(accepted: int = 100, forwarded: int = 100, evicted: int = 0, pending: int = 0) -> LaneLedger:
    return LaneLedger(7, 1, "eu", accepted, forwarded, evicted, pending)


def totals(**changes) -> StoreTotals:
    """100 events accounted for at 105 raw positions: 90 stored, 7 filtered, 3 quarantined, 5 sent twice."""
    account = AccountTotals(EVENT, 105, 90, 7, 3, 5)
    plain = StoreTotals("eu", 3, {RAW: account}, {(EVENT, 0): RowTotals(90, 0)}, {EVENT: 90}, {CURATED: 95})
    return replace(plain, **changes)


def evidence(store: StoreTotals | None = None, end: int = 105, **changes) -> Evidence:
    ends = {(TOPIC, 0): end, (CURATED.topic, 0): 95}
    plain = Evidence([ledger()], store or totals(), ends, frozenset({TOPIC}), [ledger()])
    return replace(plain, **changes)


def adds_up(report: BalanceReport) -> bool:
    (_, accepted), (_, foreign), *parts = report.rows()
    return accepted + foreign == sum(count for _, count in parts)


def test_all_there_is_balanced_to_the_row():
    report = balance(evidence())
    assert (report.status, report.findings, report.remarks) == (BALANCED, (), ())
    assert adds_up(report)
    assert (report.stored, report.filtered, report.quarantined, report.repeats, report.holes) == (
        90,
        7,
        3,
        5,
        0,
    )


def test_an_empty_region_is_balanced():
    report = balance(Evidence([], StoreTotals("eu", 0), {(TOPIC, 0): 0}, frozenset({TOPIC}), []))
    assert report.status == BALANCED
    assert adds_up(report)


def test_other_regions_spools_do_not_count():
    other = LaneLedger(8, 1, "br", 5, 0, 0, 5)
    assert balance(evidence(before=[ledger(), other], after=[ledger(), other])).status == BALANCED


@pytest.mark.parametrize(
    "moving",
    [
        {"before": [ledger(110, 100, 0, 10)], "after": [ledger(110, 100, 0, 10)]},
        {"end": 109},
        {"after": [ledger(120, 120)], "end": 125},
        {"after": None},
    ],
    ids=["spool", "kafka", "accepted meanwhile", "ledgers read once"],
)
def test_what_still_moves_is_open(moving):
    before = {"before": [ledger(104, 104)], "after": [ledger(104, 104)]} if moving == {"end": 109} else {}
    report = balance(evidence(**before, **moving))
    assert (report.status, report.findings) == (OPEN, ())
    assert report.ok


def test_pending_in_spool_and_kafka_adds_up():
    ledgers = [ledger(120, 104, 6, 10)]
    report = balance(evidence(before=ledgers, after=ledgers, end=109))
    assert (report.in_spool, report.in_kafka, report.evicted) == (10, 4, 6)
    assert adds_up(report)


def test_a_forwarded_event_that_is_nowhere_is_lost_even_while_it_moves():
    report = balance(evidence(before=[ledger(103, 103)], after=[ledger(200, 200)]))
    assert report.status == OFF
    assert report.findings == ("lost: 3 events were forwarded and are not in the raw topics",)


def test_an_event_more_than_accepted_is_found():
    report = balance(evidence(before=[ledger(99, 99)], after=[ledger(99, 99)]))
    assert report.status == OFF
    assert report.findings == ("doubled: 1 events beyond those accepted",)
    assert adds_up(report)


def test_what_no_spool_sent_is_on_its_own_line_and_hides_neither_loss_nor_surplus():
    store = totals(accounts={RAW: AccountTotals(EVENT, 105, 90, 7, 3, 5, foreign=40)})

    def weighed(forwarded: int) -> BalanceReport:
        counts = [ledger(forwarded, forwarded)]
        return balance(evidence(store, before=counts, after=counts))

    report = weighed(60)
    assert (report.status, report.foreign, report.surplus) == (BALANCED, 40, 0)
    assert adds_up(report)
    assert weighed(61).findings == ("lost: 1 events were forwarded and are not in the raw topics",)
    assert weighed(59).findings == ("doubled: 1 events beyond those accepted",)


def test_an_evicted_event_may_have_arrived():
    ledgers = [ledger(102, 99, 3, 0)]
    report = balance(evidence(before=ledgers, after=ledgers))
    assert report.status == BALANCED
    assert report.remarks == ("1 evicted events had been delivered after all",)


def test_sent_but_not_acknowledged_is_open_not_doubled():
    ledgers = [ledger(100, 95, 0, 5)]
    assert balance(evidence(before=ledgers, after=ledgers)).status == OPEN


def test_a_doubled_row_is_off_at_once():
    report = balance(evidence(totals(rows={(EVENT, 0): RowTotals(91, 0)}, committed={EVENT: 91})))
    assert report.findings == ("doubled: 1 rows of meter_reading/0 beyond those that passed",)


def test_one_row_doubled_and_one_missing_is_seen_by_distinct_positions():
    rows = {(EVENT, 0): RowTotals(90, 0, distinct=89)}
    assert balance(evidence(totals(rows=rows))).findings == ("doubled: 1 rows of meter_reading/0",)


def test_a_row_that_is_missing_is_open_until_settled():
    store = totals(rows={(EVENT, 0): RowTotals(88, 0)}, committed={EVENT: 88})
    moving, settled = balance(evidence(store)), balance(evidence(store), settled=True)
    assert (moving.status, moving.on_the_way) == (OPEN, 2)
    assert adds_up(moving)
    assert settled.findings == ("lost: 2 events of meter_reading/0 passed and are not stored",)


def test_rows_ahead_of_their_account_are_no_fault():
    store = totals(rows={(EVENT, 0): RowTotals(90, 4)}, committed={EVENT: 94})
    report = balance(evidence(store, end=109, before=[ledger(104, 104)], after=[ledger(104, 104)]))
    assert (report.status, report.findings) == (OPEN, ())
    assert (report.stored, report.in_kafka) == (94, 0)
    assert adds_up(report)


def test_rows_that_no_commit_added_are_found():
    report = balance(evidence(totals(committed={EVENT: 89})))
    assert report.findings == ("contradiction: meter_reading holds 90 rows, its commits added 89",)


def test_a_topic_shorter_than_its_account_is_found():
    assert "ends at 90, accounted for up to 105" in balance(evidence(end=90)).findings[0]


def test_a_ledger_that_contradicts_itself_is_found():
    bad = [ledger(100, 99, 0, 0)]
    report = balance(evidence(before=bad, after=bad))
    assert any("forwarded + evicted + pending" in finding for finding in report.findings)


def test_unread_records_of_the_stores_topics_are_told():
    ends = {(TOPIC, 0): 105, (CURATED.topic, 0): 99}
    assert balance(evidence(ends=ends)).unread == 4
