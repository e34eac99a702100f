"""Examples: those that ship hold, a wrong one is told apart, and none is run under a real key."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pipeline.policy import Packs, load_packs, run_examples
from pipeline.policy.examples import ExampleKeys
from tests.unit.policy.cases import EVENTS, POLICIES, event, pack

PACKS = load_packs(POLICIES, EVENTS)
SMALL = {"small": event()}
GOOD = {
    "name": "an example",
    "event": "small",
    "input": {"event_time": "2026-03-14T10:26:53+01:00", "load": 5.0, "latitude": 52.5, "longitude": 13.4},
    "expected": {"event_time": datetime(2026, 3, 14, 9, tzinfo=UTC), "load": 5, "count": None},
    "absent": ["latitude", "pulse"],
}


def faults(changes=None, pack_changes=None):
    """What the one example of the small pack reports."""
    content = {**GOOD, **(changes or {})}
    (result,) = run_examples(Packs([pack({"examples": [content], **(pack_changes or {})})]), "eu", SMALL)
    assert result.passed == (not result.faults)
    return list(result.faults)


@pytest.mark.parametrize("region", PACKS.regions)
def test_every_shipped_pack_has_examples_and_they_hold(region):
    results = run_examples(PACKS, region, EVENTS)
    assert len(results) >= 2
    assert [result for result in results if not result.passed] == []


def test_an_example_as_expected_has_no_fault():
    assert faults() == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"expected": {"load": 6.0}}, "load: expected 6.0, found 5.0"),
        ({"expected": {"count": 1}}, "count: expected 1, found None"),
        ({"expected": {"latitude": 1.0}}, "latitude: expected, and no such column leaves; there are source"),
        ({"expected": {"load": "much"}}, "load: 'much' is not a value of type double"),
        ({"absent": ["load"]}, "load: expected to be gone, and it leaves"),
        ({"input": {"colour": 1}}, "input: small has no field colour; it has source"),
        ({"input": {"load": "much"}}, "'much' is not a value of type double"),
        ({"input": {"latitude": 1000.0, "longitude": 0.0}}, "coarsen_location on latitude: failed"),
        ({"event": "big"}, "no such event; there are small"),
        (
            {"expected": {}, "absent": [], "filtered": "light"},
            "expected the filter light to drop it, found that no filter does",
        ),
    ],
)
def test_an_example_that_does_not_hold_says_where(changes, fault):
    assert any(fault in found for found in faults(changes)), faults(changes)


def test_a_row_that_a_filter_drops_is_told_from_one_that_passes():
    light = {"name": "light", "drop_when": [{"field": "load", "op": "<", "value": 10.0}], "source": "a test"}
    changes = {"landing.events": {"small": {"filters": [light]}}}
    assert faults(pack_changes=changes) == ["expected it to pass, found it dropped by light"]
    assert faults({"expected": {}, "absent": [], "filtered": "light"}, changes) == []


def test_an_example_says_what_leaves_or_what_drops_it_and_not_both():
    for changes in ({"filtered": "light"}, {"expected": {}, "absent": []}):
        with pytest.raises(ValueError, match="say what leaves"):
            pack({"examples": [{**GOOD, **changes}]})


def test_examples_do_not_change_what_a_pack_is():
    assert pack({"examples": [GOOD]}).hash == pack().hash


def test_the_keys_of_examples_are_those_of_everyone_and_differ_by_name():
    names = [
        ("eu", "care", "2026-01"),
        ("br", "care", "2026-01"),
        ("eu", "x", "2026-01"),
        ("eu", "care", "x"),
    ]
    made = {ExampleKeys().key(*name) for name in names}
    assert len(made) == len(names)
    assert ExampleKeys().key(*names[0]).hex().startswith("c5de876584fc747e")
