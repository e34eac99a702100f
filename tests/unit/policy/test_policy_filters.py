"""Filters: they drop what a plain reading of their conditions says, and say what a null does."""

from __future__ import annotations

import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.filters import Condition, Filter, dropped, filter_faults
from tests.unit.policy.cases import event, small_batch

PLAIN = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


def plainly(condition, row):
    """The definition, for one row."""
    value = row[condition.field]
    if condition.op == "is_null":
        return value is None
    if condition.op == "not_null":
        return value is not None
    if value is None:
        return condition.on_null == "drop"
    if condition.op in ("in", "not_in"):
        return (value in condition.value) == (condition.op == "in")
    return PLAIN[condition.op](value, condition.value)


ON_NULL = st.sampled_from(["drop", "pass"])
CONDITIONS = st.one_of(
    st.builds(
        Condition,
        field=st.just("count"),
        op=st.sampled_from(list(PLAIN)),
        value=st.integers(-2, 2),
        on_null=ON_NULL,
    ),
    st.builds(
        Condition, field=st.just("load"), op=st.sampled_from(list(PLAIN)), value=st.sampled_from([0.5, 1, 2])
    ),
    st.builds(
        Condition,
        field=st.just("person"),
        op=st.sampled_from(["in", "not_in"]),
        value=st.lists(st.sampled_from("abc"), min_size=1, max_size=2).map(tuple),
        on_null=ON_NULL,
    ),
    st.builds(Condition, field=st.just("person"), op=st.sampled_from(["is_null", "not_null"])),
    st.builds(Condition, field=st.just("phase"), op=st.sampled_from(["==", "!="]), value=st.just("busy")),
)
RULES = st.lists(st.lists(CONDITIONS, min_size=1, max_size=3), max_size=3).map(
    lambda lists: tuple(
        Filter(name=f"r{i}", drop_when=tuple(c), source="a test") for i, c in enumerate(lists)
    )
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "count": st.one_of(st.none(), st.integers(-2, 2)),
            "load": st.sampled_from([0.5, 1.0, 2.0]),
            "person": st.sampled_from([None, "a", "b", "c"]),
            "phase": st.sampled_from(["idle", "busy"]),
        }
    ),
    max_size=12,
)


@given(RULES, ROWS)
def test_filters_drop_what_their_conditions_say_row_by_row(rules, rows):
    for rule in rules:
        assert list(filter_faults(rule, event())) == []
    expected: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        for rule in rules:
            if all(plainly(condition, row) for condition in rule.drop_when):
                expected.setdefault(rule.name, []).append(index)
                break
    found = dropped(rules, small_batch(rows))
    assert {name: rows.tolist() for name, rows in found.items()} == expected


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        (
            {"field": "colour", "op": "==", "value": 1},
            "small.colour: the event has no such field; it has source,",
        ),
        ({"field": "load", "op": "<"}, "< needs one value"),
        ({"field": "load", "op": "<", "value": [1.0]}, "< needs one value"),
        ({"field": "load", "op": "in", "value": 1.0}, "in needs a list of values"),
        ({"field": "load", "op": "in", "value": []}, "in needs a list of values"),
        ({"field": "load", "op": "<", "value": "1"}, "the field is double; write values of that type"),
        ({"field": "load", "op": "<", "value": True}, "the field is double; write values of that type"),
        (
            {"field": "load", "op": "<", "value": 1.0, "on_null": "drop"},
            "the field is never null; remove on_null",
        ),
        (
            {"field": "count", "op": "<", "value": 1},
            'the field can be null; say on_null = "drop" or on_null = "pass"',
        ),
        ({"field": "count", "op": "<", "value": 1.5, "on_null": "pass"}, "the field is int; write values of"),
        ({"field": "source", "op": "<", "value": "b"}, "< has no meaning for string; use =="),
        (
            {"field": "phase", "op": "==", "value": "Busy"},
            "'Busy' is not among idle, busy: it would never match",
        ),
        ({"field": "person", "op": "is_null", "value": "x"}, "is_null takes neither value nor on_null"),
        ({"field": "event_time", "op": "<", "value": 1}, "< does not work on timestamp-micros"),
    ],
)
def test_a_filter_that_cannot_mean_what_it_says_is_a_fault(condition, sentence):
    rule = Filter(name="r", drop_when=(Condition.model_validate(condition),), source="a test")
    faults = list(filter_faults(rule, event()))
    assert any(sentence in fault and fault.startswith("filter r on small.") for fault in faults), faults
