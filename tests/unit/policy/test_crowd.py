"""k-anonymity: what leaves is shared by k people, whatever the rows are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.policy.crowd import too_few


@dataclass(frozen=True)
class Rule:
    k: int
    window: str = "hour"


DAWN = datetime(2026, 3, 14, 9)


def times(minutes: list[int]) -> pa.Array:
    return pa.array([DAWN + timedelta(minutes=m) for m in minutes], pa.timestamp("us"))


def suppressed(rule: Rule, traits: list[list], subjects: list, minutes: list[int]) -> list[int]:
    columns = [pa.array(trait) for trait in traits]
    return too_few(rule, columns, pa.array(subjects, pa.string()), times(minutes)).tolist()


def test_k_counts_people_not_rows():
    rule = Rule(2)
    assert suppressed(rule, [["a"] * 5], ["x"] * 5, [0] * 5) == [0, 1, 2, 3, 4]
    assert suppressed(rule, [["a"] * 3], ["x", "x", "y"], [0] * 3) == []


def test_a_crowd_shares_every_trait_and_the_window():
    rule = Rule(2)
    assert suppressed(rule, [["a", "a"], [1, 2]], ["x", "y"], [0, 0]) == [0, 1]
    assert suppressed(rule, [["a", "a"]], ["x", "y"], [0, 60]) == [0, 1]
    assert suppressed(rule, [["a", "a"]], ["x", "y"], [0, 59]) == []
    assert suppressed(Rule(2, "day"), [["a", "a"]], ["x", "y"], [0, 60]) == []


def test_a_row_about_no_one_helps_no_crowd_but_may_leave_in_one():
    rule = Rule(2)
    assert suppressed(rule, [["a"] * 3], ["x", None, None], [0] * 3) == [0, 1, 2]
    assert suppressed(rule, [["a"] * 3], ["x", "y", None], [0] * 3) == []


def test_a_missing_trait_is_a_trait():
    rule = Rule(2)
    assert suppressed(rule, [["a", None, None]], ["x", "y", "z"], [0] * 3) == [0]


def test_no_rows_no_suppression():
    assert suppressed(Rule(5), [[]], [], []) == []


@st.composite
def rows(draw):
    count = draw(st.integers(1, 60))
    column = lambda kind: st.lists(kind, min_size=count, max_size=count)  # noqa: E731
    return (
        draw(column(st.sampled_from(["a", "b", None]))),
        draw(column(st.integers(0, 2))),
        draw(column(st.sampled_from(["u", "v", "w", "x", None]))),
        draw(column(st.integers(-120, 120))),
    )


@settings(deadline=None, max_examples=150, print_blob=True)
@given(rows(), st.integers(2, 4), st.sampled_from(["hour", "day"]))
def test_what_leaves_is_k_anonymous_and_nothing_else_stays(table, k, window):
    first, second, subjects, minutes = table
    gone = set(suppressed(Rule(k, window), [first, second], subjects, minutes))
    step = timedelta(hours=1) if window == "hour" else timedelta(days=1)
    groups: dict[tuple, set] = {}
    keys = []
    for a, b, subject, minute in zip(first, second, subjects, minutes, strict=True):
        key = (a, b, (DAWN + timedelta(minutes=minute) - datetime(1970, 1, 1)) // step)
        keys.append(key)
        groups.setdefault(key, set())
        if subject is not None:
            groups[key].add(subject)
    for row, key in enumerate(keys):
        assert (row in gone) == (len(groups[key]) < k)


def test_many_traits_of_many_values_do_not_overflow():
    count = 20_000
    random = np.random.default_rng(7)
    traits = [pa.array(random.integers(0, count, count)) for _ in range(6)]
    subjects = pa.array([str(n) for n in range(count)])
    gone = too_few(Rule(2), traits, subjects, times([0] * count))
    assert len(gone) == count  # all different: no crowd anywhere


@pytest.mark.parametrize("k", [2, 5])
def test_two_released_sets_together_are_still_a_crowd(k):
    """Whatever the cut between two sets: what leaves each has k people in its own set already."""
    random = np.random.default_rng(k)
    traits = random.integers(0, 6, 400)
    people = [str(n) for n in random.integers(0, 40, 400)]
    for cut in (50, 200, 350):
        for part in (slice(0, cut), slice(cut, 400)):
            gone = set(suppressed(Rule(k), [traits[part].tolist()], people[part], [0] * len(people[part])))
            for trait in set(traits[part].tolist()):
                left = {
                    person
                    for row, (one, person) in enumerate(zip(traits[part].tolist(), people[part], strict=True))
                    if one == trait and row not in gone
                }
                assert not left or len(left) >= k
