"""docs/policies.md says what the code does: its tables are the code's, its examples are valid.

To write the tables anew: ``POLICY_DOCS_WRITE=1 pytest tests/unit/policy/test_policy_docs.py``.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.events import TAGS
from pipeline.policy import OPERATORS, Packs, load_packs, run_examples
from pipeline.policy.describe import operators_table, parameters_words, tags_table
from pipeline.policy.filters import Filter
from pipeline.policy.hierarchies import Hierarchy
from pipeline.policy.pack import Example
from pipeline.policy.retention import Retention
from pipeline.policy.rules import Allowed, Consent, Crowd, Rule
from pipeline.policy.tags import covered, known
from pipeline.policy.transfers import Transfer, TransferDenied
from tests.shared_data import PROJECT
from tests.unit.policy.cases import EVENTS, POLICIES

PAGE = PROJECT / "docs" / "policies.md"
TABLES = {"tags": tags_table, "operators": operators_table}
SAMPLES: dict[str, list[dict[str, Any]]] = {
    "constant": [{"value": "x"}],
    "pseudonymise": [{"purpose": "x"}],
    "deterministic_encrypt": [{"purpose": "x"}],
    "coarsen_location": [{"cell_km2": 1.0}, {"cell_km2": 1.0, "grid": "geohash"}],
    "coarsen_cell": [{"cell_km2": 1.0}],
    "snap_location": [{"cell_km2": 1.0}],
    "tokenise": [{"purpose": "x"}],
    "noise": [{"epsilon": 1.0, "lower": 0.0, "upper": 1.0}],
    "randomised_response": [{"epsilon": 1.0}, {"epsilon": 1.0, "values": ["a", "b"]}],
    "truncate_time": [{"to": to} for to in ("second", "minute", "hour", "day")],
    "generalise_date": [{"to": to} for to in ("week", "month", "quarter", "year")],
    "generalise_number": [{"step": 1.0}],
    "top_code": [{"maximum": 1.0}],
    "bottom_code": [{"minimum": 1.0}],
    "truncate": [{"characters": 1}],
    "generalise_category": [{"hierarchy": "x"}],
}


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_of_the_page_are_those_of_the_code(name):
    text = PAGE.read_text(encoding="utf-8")
    between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    wanted = between.sub(lambda match: match[1] + TABLES[name]() + match[2], text)
    if os.environ.get("POLICY_DOCS_WRITE"):
        PAGE.write_text(wanted, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == wanted
    assert TABLES[name]() in wanted


@pytest.mark.parametrize("name", OPERATORS)
def test_what_an_operator_is_said_to_give_is_what_it_gives(name):
    operator = OPERATORS[name]
    taken = [tag for tag in TAGS if covered(tag, operator.takes)]
    assert taken
    for sample in SAMPLES.get(name, [{}]):
        parameters = operator.parameters.model_validate(sample)
        for tag in taken:
            for given in operator.gives(parameters, frozenset({tag})):
                words = operator.gives_words
                assert re.search(rf"(?<![\w.]){re.escape(given)}(?![\w.]\w)", words) or (
                    given == tag and "what it took" in words
                ), (tag, given)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_never_gives_more_than_it_took_or_a_tag_that_is_none(name):
    """Nothing becomes a worse kind of value than it was, and nothing becomes unknown."""
    operator = OPERATORS[name]
    for sample in SAMPLES.get(name, [{}]):
        parameters = operator.parameters.model_validate(sample)
        for tag in TAGS:
            if covered(tag, operator.takes):
                for given in operator.gives(parameters, frozenset({tag})):
                    assert known(given, TAGS)
                    assert given == tag or not given.startswith(("identifier", "special", "text.free"))


def test_parameters_are_told_with_their_bounds_and_defaults():
    assert parameters_words(OPERATORS["truncate"]) == ["`characters` 1 … 16", "`cut_min` 1 … 64 (default 2)"]
    assert parameters_words(OPERATORS["truncate_time"]) == ["`to` second, minute, hour, day"]
    assert parameters_words(OPERATORS["generalise_number"]) == ["`step` > 0"]


def tables(value: Any) -> Iterator[dict[str, Any]]:
    """Every table inside a TOML document."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from tables(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from tables(inner)


def test_the_toml_on_the_page_is_valid_and_its_examples_hold():
    blocks = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    contents = [tomllib.loads(block) for block in blocks]
    found = [table for content in contents for table in tables(content)]
    rules = [Rule.model_validate(table) for table in found if "operator" in table]
    assert len(rules) >= 3
    assert all(rule.checked_parameters for rule in rules)
    said = {
        Hierarchy: "other", Filter: "drop_when", Crowd: "k", Consent: "mode", Transfer: "basis",
        TransferDenied: "jurisdictions", Retention: "minimum_days",
    }  # fmt: skip
    for model, key in said.items():
        wanted = [table for table in found if key in table and set(table) <= set(model.model_fields)]
        assert [model.model_validate(table) for table in wanted], key
    assert [Allowed.model_validate(t) for t in found if set(t) == {"tags", "source"}]
    examples = tuple(Example.model_validate(table) for table in found if "input" in table)
    packs = load_packs(POLICIES, EVENTS)
    told = [packs.pack(name) for name in packs.regions]
    told = [p.model_copy(update={"examples": examples}) if p.region == "eu" else p for p in told]
    assert [result.faults for result in run_examples(Packs(told), "eu", EVENTS)] == [(), ()]
