"""The account counts every raw position once, whatever is sent again, and refuses what it cannot prove."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batches import FILTERED, PASSED, QUARANTINED, REPEAT, Outcomes, Run
from pipeline.errors import StoreCorrupt
from pipeline.store.account import RawPartition, StatsEntry, StatsRecord, apply, details, runs_of

RAW = RawPartition("eu.raw.meter_reading", "id-1", 0)
KINDS = ((PASSED, ""), (FILTERED, "rule"), (QUARANTINED, "range"), (QUARANTINED, "utf8"), (REPEAT, ""))

fates = st.lists(st.integers(0, len(KINDS) - 1), min_size=1, max_size=40)


def record(first: int, codes: list[int]) -> StatsRecord:
    """A stats record as a processor would write it for these fates."""
    outcomes = Outcomes(np.arange(first, first + len(codes)))
    for code, kind in enumerate(KINDS):
        if code:
            outcomes.mark(np.flatnonzero(np.array(codes) == code), *kind)
    next_ = first + len(codes)
    return StatsRecord(RAW, "meter_reading", first, next_, outcomes.counts(), tuple(outcomes.runs()), "hash")


def control(first: int, next_: int, counts: list, runs: list) -> dict:
    return {
        "raw_topic": RAW.topic,
        "raw_topic_id": RAW.topic_id,
        "raw_partition": 0,
        "first_offset": first,
        "next_offset": next_,
        "event": "meter_reading",
        "policy_hash": "hash",
        "processed_time": 5_000_000,
        "waited_us": 1_000_000,
        "foreign": [{"first": first, "next": first + 1}] if next_ > first else [],
        "counts": [{"outcome": o, "reason": r, "count": n} for o, r, n in counts],
        "runs": [{"first": a, "next": b, "outcome": o, "reason": r} for a, b, o, r in runs],
    }


@given(st.lists(st.tuples(fates, st.integers(0, 60)), min_size=1, max_size=12))
def test_every_position_keeps_its_first_fate_under_any_overlap(batches):
    model: list[int] = []
    entry, end = StatsEntry("meter_reading", "hash", 0, 0), 0
    for codes, back in batches:
        first = max(0, end - back)
        new = apply(record(first, codes), end)
        model += codes[end - first :]
        if new is not None:
            assert new.first == end
            entry.add(new)
            end = new.next
    assert end == len(model)
    found = [0] * end
    for run in entry.runs:
        found[run.first : run.next] = [KINDS.index((run.outcome, run.reason))] * (run.next - run.first)
    assert found == model
    assert {kind: n for kind, n in entry.counts.items() if n} == {
        KINDS[code]: model.count(code) for code in set(model)
    }


@given(fates, st.integers(0, 50))
def test_details_keep_counts_and_runs(codes, first):
    one = record(first, codes)
    assert tuple(runs_of(first, details(first, one.counts, one.runs))) == one.runs


def test_a_gap_stops_the_store():
    with pytest.raises(StoreCorrupt, match="expected an account from position 10, found one from 11"):
        apply(record(11, [0, 1]), 10)


def test_what_was_applied_is_ignored():
    assert apply(record(0, [0, 1, 2]), 3) is None
    assert apply(record(0, [0, 1, 2]), 9) is None


def test_a_range_with_holes_counts_as_it_says_but_cannot_be_cut():
    holey = StatsRecord(
        RAW, "e", 0, 10, {(PASSED, ""): 4, (FILTERED, "r"): 2}, (Run(3, 5, FILTERED, "r"),), "h"
    )
    assert apply(holey, 0) is holey
    with pytest.raises(StoreCorrupt, match="holes"):
        apply(holey, 4)


@pytest.mark.parametrize(
    ("counts", "runs", "problem"),
    [
        ([("passed", "", 9), ("filtered", "r", 2)], [(1, 3, "filtered", "r")], "more records than positions"),
        ([("passed", "", 8), ("filtered", "r", 1)], [(1, 3, "filtered", "r")], "counts and runs differ"),
        ([("passed", "", 8), ("gone", "r", 2)], [(1, 3, "gone", "r")], "counts and runs differ"),
        ([("passed", "", 8), ("filtered", "r", 2)], [(9, 11, "filtered", "r")], "outside the range"),
        ([("filtered", "r", 4)], [(1, 3, "filtered", "r"), (2, 4, "filtered", "r")], "out of order"),
        ([("passed", "", -1)], [], "more records than positions"),
    ],
)
def test_a_record_that_contradicts_itself_is_not_believed(counts, runs, problem):
    with pytest.raises(StoreCorrupt, match=problem):
        StatsRecord.from_control(control(0, 10, counts, runs))


def test_an_empty_range_is_refused():
    with pytest.raises(StoreCorrupt):
        StatsRecord.from_control(control(5, 5, [], []))


def test_foreign_records_are_cut_with_their_range_and_counted_once():
    value = {
        **control(0, 10, [("passed", "", 10)], []),
        "foreign": [{"first": 1, "next": 4}, {"first": 7, "next": 9}],
    }
    whole = StatsRecord.from_control(value)
    rest = apply(whole, 3)
    assert rest is not None
    assert rest.foreign == ((3, 4), (7, 9))
    entry = StatsEntry("meter_reading", "hash", 3, 3)
    entry.add(rest)
    assert entry.columns(RAW)["foreign_records"] == 3
    assert whole.received_us == 4_000_000
