"""The packs that ship: whose events they claim, what crosses between them, what becomes of known rows.

``tests/golden/policy_core_<origin>.json`` holds what the core keeps of the golden inputs. To accept a change:
``POLICY_GOLDEN_WRITE=1 pytest tests/unit/policy/test_packs.py``, then read the difference.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ConfigError
from pipeline.events import EventType
from pipeline.policy import (
    check_flow,
    compile_plan,
    curated_subject,
    derived_schemas,
    load_packs,
    run_examples,
)
from pipeline.policy.derive import curated_event
from pipeline.policy.keys import KEY_BYTES, hkdf_sha256
from pipeline.policy.plan import Plan
from pipeline.policy.standalone import Unasked
from pipeline.policy.tags import uncovered
from tests.unit.policy.cases import EVENTS, NOW_US, POLICIES, to_batch
from tests.unit.policy.test_policy_golden import (
    GOLDEN,
    INPUTS,
    ROOT,
    as_text,
    one_row_per_line,
    readable,
)

PACKS = load_packs(POLICIES, EVENTS)
DERIVED = derived_schemas(PACKS, EVENTS)
COLLECTING = tuple(region for region in PACKS.regions if PACKS.pack(region).collects)
BORDERS = tuple((origin, to) for origin, to in PACKS.legs() if origin != to)
STATES = (
    "AL", "AK", "AZ", "AR", "CA", "CO", "CT", "DE", "FL", "GA", "HI", "ID", "IL", "IN", "IA", "KS", "KY",
    "LA", "ME", "MD", "MA", "MI", "MN", "MS", "MO", "MT", "NE", "NV", "NH", "NJ", "NM", "NY", "NC", "ND",
    "OH", "OK", "OR", "PA", "RI", "SC", "SD", "TN", "TX", "UT", "VT", "VA", "WA", "WV", "WI", "WY",
)  # fmt: skip


def arriving(leg: tuple[str, str], name: str) -> EventType:
    """What the leg reads: the raw event, or the event as its origin holds it."""
    origin, destination = leg
    if origin == destination:
        return EVENTS[name]
    return curated_event(EVENTS[name], DERIVED[curated_subject(origin, name)])


# --- whose events


def test_the_regions_that_ship():
    assert PACKS.regions == ("br", "ch", "cn", "core", "eu", "in", "jp", "uk", "us", "us-ca")
    assert [region for region in PACKS.regions if region not in COLLECTING] == ["core"]


def test_no_jurisdiction_has_two_laws():
    claims = Counter(j for region in PACKS.regions for j in PACKS.pack(region).jurisdictions)
    assert [j for j, count in claims.items() if count > 1] == []
    assert set(claims) == PACKS.known


def test_every_state_of_the_united_states_has_exactly_one_region_and_no_territory_has():
    for state in STATES:
        assert PACKS.region_of(f"US-{state}") == ("us-ca" if state == "CA" else "us")
    assert len(PACKS.jurisdictions("us")) == len(STATES) - 1 + 1  # without California, with the District
    for territory in ("US", "US-PR", "US-GU", "US-VI", "US-AS", "US-MP", "US-UM", "PR"):
        assert PACKS.region_of(territory) is None


@pytest.mark.parametrize(
    ("region", "claimed", "held"),
    [
        ("uk", ("GB", "GB-SCT", "GB-NIR"), ("UK", "JE", "GG", "IM", "GI")),
        ("ch", ("CH",), ("CH-ZH",)),
        ("cn", ("CN",), ("HK", "MO", "TW", "CN-HK", "CN-TW")),
        ("in", ("IN",), ("IN-MH",)),
        ("jp", ("JP",), ("JP-13",)),
        ("eu", ("LI", "NO", "IS", "DE"), ("DE-BY", "SJ")),
    ],
)
def test_a_place_with_a_law_of_its_own_is_held_rather_than_guessed(region, claimed, held):
    assert {PACKS.region_of(place) for place in claimed} == {region}
    assert {PACKS.region_of(place) for place in held} == {None}


def test_a_second_claim_is_refused(tmp_path):
    copy = shutil.copytree(POLICIES, tmp_path / "policies")
    file = copy / "ch.toml"
    file.write_text(file.read_text().replace('jurisdictions = ["CH"]', 'jurisdictions = ["CH", "LI"]'))
    with pytest.raises(ConfigError, match="jurisdiction LI: claimed by ch and eu"):
        load_packs(copy, EVENTS)


@pytest.mark.parametrize("region", PACKS.regions)
def test_each_pack_says_at_its_top_that_it_is_no_legal_advice(region):
    head = (POLICIES / f"{region}.toml").read_text().splitlines()[:3]
    assert any("Engineering input, not legal advice" in line for line in head)
    assert PACKS.pack(region).title


# --- what crosses


def test_every_region_but_china_may_give_to_the_core_and_to_nobody_else():
    assert tuple((region, "core") for region in COLLECTING if region != "cn") == BORDERS


@pytest.mark.parametrize("leg", PACKS.legs(), ids="-".join)
def test_every_leg_type_checks_for_every_event_it_permits(leg):
    terms = PACKS.terms(*leg)
    subjects = [name for name in EVENTS if terms.permits(name)]
    assert subjects
    for name in subjects:
        flow = check_flow(terms, arriving(leg, name))
        assert flow.columns
        for decision in flow.columns:
            assert decision.source
            assert not uncovered(decision.result, flow.allowed)


def test_what_does_not_cross_has_no_schema_there():
    for origin, destination in BORDERS:
        terms = PACKS.terms(origin, destination)
        for name in EVENTS:
            assert (curated_subject(destination, name, origin) in DERIVED) == terms.permits(name)
    assert not [subject for subject in DERIVED if subject.startswith("core.") and subject.endswith(".cn")]


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_the_core_holds_the_same_columns_whatever_the_origin(name):
    """So that one table can hold all of them, and a model does not learn the region from what is missing."""
    held = {
        origin: [(f["name"], f["type"], f["confluent:tags"]) for f in DERIVED[subject]["fields"]]
        for origin, destination in BORDERS
        if (subject := curated_subject(destination, name, origin)) in DERIVED
    }
    assert len(held) >= 5
    first = next(iter(held.values()))
    assert {origin: columns for origin, columns in held.items() if columns != first} == {}


@pytest.mark.parametrize(("origin", "destination"), BORDERS)
def test_the_core_never_holds_more_columns_than_the_region(origin, destination):
    for name in EVENTS:
        if PACKS.terms(origin, destination).permits(name):
            there = {f["name"] for f in DERIVED[curated_subject(destination, name, origin)]["fields"]}
            here = {f["name"] for f in DERIVED[curated_subject(origin, name)]["fields"]}
            assert there - here == {"origin"}


# --- what becomes of known rows


def positioned(batch: pa.RecordBatch, kept: np.ndarray) -> pa.RecordBatch:
    """The batch as the curated topic has it: with the raw position of each row."""
    partitions, offsets = pa.array([0] * len(batch), pa.int32()), pa.array(kept, pa.int64())
    for name, column in (("raw_partition", partitions), ("raw_offset", offsets)):
        batch = batch.append_column(pa.field(name, column.type, nullable=False), column)
    return batch


class KnownKeys:
    """Keys under the golden files' root, as a key store would derive them."""

    def key(self, region: str, purpose: str, epoch: str) -> bytes:
        """See :class:`pipeline.policy.keys.KeyStore`."""
        names = ("edge-to-core-pipeline/pseudonym-key/v1", region, purpose, epoch)
        return hkdf_sha256(ROOT, b"", b"".join(name.encode() + b"\0" for name in names), KEY_BYTES)


def crossed(origin: str) -> dict[str, Any]:
    """Golden inputs on both legs, under a known key: as if every person had agreed, each in a crowd."""
    found: dict[str, Any] = {}
    for name, rows in INPUTS.items():
        terms, arrived = PACKS.terms(origin, "core"), arriving((origin, "core"), name)
        if not terms.permits(name):
            continue
        landing = compile_plan(PACKS.terms(origin, origin), EVENTS[name], KnownKeys(), now_us=NOW_US)
        kept, _, landed = filtered(landing, to_batch(EVENTS[name].arrow, rows))
        plan = compile_plan(terms, arrived, KnownKeys(), now_us=NOW_US)
        crossing, gone, batch = filtered(plan, positioned(landed, kept))
        found[name] = {
            "kept": kept[crossing].tolist(),
            "filtered": {rule: kept[hits].tolist() for rule, hits in gone.items()},
            "rows": [{key: as_text(value) for key, value in row.items()} for row in readable(batch)],
        }
    return found


def filtered(plan: Plan, batch: pa.RecordBatch) -> tuple[np.ndarray, dict[str, np.ndarray], pa.RecordBatch]:
    """Rows that the filters leave, those that they drop, and what the operators make of the first."""
    gone = plan.filter(batch, Unasked())
    kept = np.setdiff1d(np.arange(len(batch)), np.concatenate([[], *gone.values()])).astype(np.int64)
    return kept, gone, plan.transform(batch.take(pa.array(kept)))


@pytest.mark.parametrize("origin", [origin for origin, _ in BORDERS])
def test_known_rows_become_what_is_written_down_in_the_core(origin):
    file = GOLDEN / f"policy_core_{origin}.json"
    found = crossed(origin)
    if os.environ.get("POLICY_GOLDEN_WRITE"):
        file.write_text(one_row_per_line(found), encoding="utf-8")
    assert found == json.loads(file.read_text(encoding="utf-8"))


def test_region_and_core_share_no_name_for_anybody():
    for origin, _ in BORDERS:
        here = json.loads((GOLDEN / f"policy_{origin}.json").read_text(encoding="utf-8"))
        there = json.loads((GOLDEN / f"policy_core_{origin}.json").read_text(encoding="utf-8"))
        names = {row["source"] for part in here.values() for row in part["rows"]}
        assert names
        assert names.isdisjoint(row["source"] for part in there.values() for row in part["rows"])


@pytest.mark.parametrize("region", PACKS.regions)
def test_every_pack_has_examples_and_they_hold(region):
    results = run_examples(PACKS, region, EVENTS)
    assert len(results) >= 2
    assert [result for result in results if not result.passed] == []
