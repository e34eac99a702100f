"""Outcomes: every position has one, the first word wins, runs and counts say the same."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batches import FILTERED, QUARANTINED, REPEAT, Outcomes, Run

KINDS = [(FILTERED, "rule"), (QUARANTINED, "range"), (QUARANTINED, "utf8"), (REPEAT, "")]


@st.composite
def marked(draw):
    """Offsets with holes (a compacted log), and marks in random order."""
    offsets = np.unique(draw(st.lists(st.integers(0, 60), max_size=40))).astype(np.int64)
    marks = []
    if len(offsets):
        rows = st.lists(st.integers(0, len(offsets) - 1), max_size=20, unique=True)
        marks = draw(st.lists(st.tuples(rows, st.sampled_from(KINDS)), max_size=6))
    return offsets, marks


@given(marked())
def test_runs_and_counts_agree_with_a_plain_dictionary(case):
    offsets, marks = case
    outcomes, plain = Outcomes(offsets), {}
    for rows, (outcome, reason) in marks:
        outcomes.mark(np.array(rows, dtype=np.int64), outcome, reason)
        for row in rows:
            plain.setdefault(int(offsets[row]), (outcome, reason))
    from_runs = {
        offset: (run.outcome, run.reason) for run in outcomes.runs() for offset in range(run.first, run.next)
    }
    assert from_runs == plain
    assert offsets[outcomes.passed()].tolist() == [o for o in offsets.tolist() if o not in plain]
    counts = outcomes.counts()
    assert sum(counts.values()) == len(offsets)
    for kind in KINDS:
        assert counts.get(kind, 0) == sum(1 for found in plain.values() if found == kind)


@given(marked(), st.integers(0, 60))
def test_what_was_decided_earlier_survives_todays_rules(case, end):
    offsets, marks = case
    first = Outcomes(offsets)
    for rows, (outcome, reason) in marks:
        first.mark(np.array(rows, dtype=np.int64), outcome, reason)
    decided = [Run(r.first, min(r.next, end), r.outcome, r.reason) for r in first.runs() if r.first < end]
    again = Outcomes(offsets)
    again.decide(end, decided)
    again.mark(np.arange(len(offsets)), FILTERED, "a rule of today")
    assert [r for r in again.runs() if r.first < end and r.reason != "a rule of today"] == decided
    assert again.counts(end) == (
        {(FILTERED, "a rule of today"): int((offsets >= end).sum())} if (offsets >= end).any() else {}
    )
    below = offsets[: np.searchsorted(offsets, end)]
    assert offsets[again.passed()].tolist() == [
        o for o in below.tolist() if not any(r.first <= o < r.next for r in decided)
    ]


def test_positions_that_could_not_be_read_are_quarantined_and_counted():
    outcomes = Outcomes(np.array([0, 1, 7, 8]), [(2, 7, "undecodable")])
    outcomes.mark(np.array([3]), FILTERED, "rule")
    assert outcomes.runs() == [Run(2, 7, QUARANTINED, "undecodable"), Run(8, 9, FILTERED, "rule")]
    assert outcomes.counts()[(QUARANTINED, "undecodable")] == 5
    assert outcomes.counts(start=5)[(QUARANTINED, "undecodable")] == 2
    offsets, reasons = outcomes.quarantined()
    assert offsets.tolist() == [2, 3, 4, 5, 6]
    assert reasons == ["undecodable"] * 5
