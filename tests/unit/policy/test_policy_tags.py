"""Tags: a parent covers its children and nothing else."""

from __future__ import annotations

import pytest

from pipeline.policy.tags import covers, known, most_specific, uncovered


@pytest.mark.parametrize(
    ("general", "tag", "expected"),
    [
        ("identifier", "identifier", True),
        ("identifier", "identifier.direct", True),
        ("identifier", "identifier.direct.name", True),
        ("identifier.direct", "identifier", False),
        ("identifier.direct", "identifier.device", False),
        ("ident", "identifier.direct", False),
        ("time.coarse", "time.coarser", False),
        ("*", "anything", True),
    ],
)
def test_a_parent_covers_its_children_and_nothing_else(general, tag, expected):
    assert covers(general, tag) is expected


def test_the_most_specific_rule_serves_a_tag():
    rules = ["identifier", "identifier.direct", "location"]
    assert most_specific("identifier.direct", rules) == "identifier.direct"
    assert most_specific("identifier.device", rules) == "identifier"
    assert most_specific("text.free", rules) is None


def test_what_is_not_covered_is_named():
    assert uncovered({"time.precise", "pseudonym", "quasi"}, ["pseudonym", "time.coarse"]) == (
        "quasi",
        "time.precise",
    )


def test_the_vocabulary_knows_parents_but_no_inventions():
    vocabulary = ["identifier.direct", "quasi"]
    assert known("identifier", vocabulary)
    assert known("identifier.direct", vocabulary)
    assert not known("identifier.direct.name", vocabulary)
    assert not known("quasi.coarse", vocabulary)
