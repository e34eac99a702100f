"""Packs: those that ship are sound, and a bad one is refused with the sentence that helps."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.events import TAGS
from pipeline.policy import OPERATORS, Packs, check_flow, derived_schemas, load_packs
from pipeline.policy.borders import border_faults
from pipeline.policy.faults import pack_faults
from pipeline.policy.pack import parse_pack
from pipeline.policy.tags import uncovered
from tests.unit.policy.cases import COLLECTING, EVENTS, POLICIES, event, pack, raw_pack

PACKS = load_packs(POLICIES, EVENTS)
KEEP = {"operator": "keep", "source": "a test"}
LANDING = "landing"


def faults_of(changes):
    """Every fault of the small pack with these changes."""
    found, faults = parse_pack(raw_pack(changes))
    of = {"small": event()}
    more = [] if found is None else [*pack_faults(found, of), *border_faults(Packs([found]), of)]
    return list(map(str, faults + more))


def write_pack(folder: Path, region: str, jurisdictions: str, more: str = "") -> None:
    text = (POLICIES / "us-ca.toml").read_text()
    text = text.replace('region = "us-ca"', f'region = "{region}"').replace('["US-CA"]', jurisdictions)
    (folder / f"{region}.toml").write_text(text + more)


# --- what ships


@pytest.mark.parametrize("region", COLLECTING)
@pytest.mark.parametrize("name", sorted(EVENTS))
def test_every_event_type_checks_in_every_region(region, name):
    flow = check_flow(PACKS.terms(region, region), EVENTS[name])
    assert flow.columns
    for decision in flow.columns:
        assert not uncovered(decision.result, flow.allowed)


@pytest.mark.parametrize("region", PACKS.regions)
def test_no_shipped_region_may_hold_what_no_law_here_lets_it(region):
    leg = PACKS.pack(region).landing
    allowed = set(leg.allowed.tags).union(
        *(p.also_allowed.tags for p in leg.events.values() if p.also_allowed)
    )
    for tag in (
        "identifier.direct",
        "identifier.device",
        "location.precise",
        "special.health",
        "text.free",
        "quasi",
    ):
        assert uncovered({tag}, allowed) == (tag,)


@pytest.mark.parametrize("region", PACKS.regions)
def test_every_tag_of_the_vocabulary_has_a_rule_in_every_shipped_pack(region):
    assert uncovered(TAGS, PACKS.pack(region).landing.rules) == ()


@pytest.mark.parametrize("region", PACKS.regions)
def test_spool_lane_and_sequence_never_land(region):
    for name, schema in derived_schemas(PACKS, EVENTS).items():
        if name.startswith(region + "."):
            assert {"spool", "lane", "sequence"}.isdisjoint(field["name"] for field in schema["fields"])


def test_people_seen_by_cameras_do_not_land_in_europe():
    rules = PACKS.pack("eu").landing.event("object_detection").filters
    assert [rule.name for rule in rules] == ["person", "low_score"]
    assert rules[0].drop_when[0].model_dump() == {
        "field": "label",
        "op": "==",
        "value": "person",
        "on_null": None,
    }


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {("landing", "rules", "blood"): KEEP},
            "landing.rules.'blood': unknown tag 'blood'; the vocabulary has identifier.direct,",
        ),
        ({"landing.allowed.tags": ["transport", "times"]}, "landing.allowed: unknown tag 'times'"),
        (
            {("landing", "rules", "quasi"): {"operator": "scramble", "source": "a test"}},
            "landing.rules.'quasi': unknown operator 'scramble'; there are bottom_code, coarsen_",
        ),
        (
            {("landing", "rules", "location.precise", "with", "cell_km2"): 0.5},
            "landing.rules.'location.precise': coarsen_location with cell_km2: 0.5 km2 is below 0.9989 km2, "
            "and an area up to that is a precise location (Cal. Civ. Code 1798.140(w)); raise it",
        ),
        (
            {("landing", "rules", "location.precise", "operator"): "truncate_time",
             ("landing", "rules", "location.precise", "with"): {"to": "day"}},
            "truncate_time does not discharge location.precise: it takes time.precise; choose an operator",
        ),
        (
            {("landing", "rules", "identifier"): KEEP},
            "landing.rules.'identifier': keep leaves identifier, which this destination may not hold; use",
        ),
        (
            {("landing", "rules", "time.precise", "with", "to"): "minute"},
            "truncate_time leaves time.precise, which this destination may not hold",
        ),
        ({("landing", "rules", "time.precise", "with", "to"): "week"}, "truncate_time with to: Input should"),
        ({("landing", "rules", "time.precise", "with", "of"): "day"}, "truncate_time with of: Extra inputs"),
        (
            {("landing", "rules", "identifier", "with", "purpose"): "marketing"},
            "purpose 'marketing' is not one of the pack's: care; declare it with its legal basis",
        ),
        (
            {"retention": {"minimum_days": 365, "maximum_days": 90, "source": "a test"}},
            "retention: rows must be kept 365 days and may be kept 90: no row can satisfy both",
        ),
        ({"landing.events": {"big": {}}}, "landing.events.big: no such event; there are small"),
        (
            {"landing.events": {"small": {"fields": {"colour": KEEP}}}},
            "landing.events.small.fields.colour: no such field; the event has count, event_time",
        ),
        (
            {"landing.events": {"small": {"filters": [
                {"name": "r", "drop_when": [{"field": "colour", "op": "is_null"}], "source": "a test"}]}}},
            "filter r on small.colour: the event has no such field",
        ),
        (
            {"landing.events": {"small": {"filters": [
                {"name": "r", "drop_when": [{"field": "load", "op": "<", "value": n}], "source": "a test"}
                for n in (1.0, 2.0)]}}},
            "landing.events.small.filters: two are named r",
        ),
        ({("landing", "rules", "quasi"): {"operator": "drop"}}, "landing.rules.quasi.source: Field required"),
        ({("landing", "rules", "quasi"): {"operator": "drop", "source": ""}}, "rules.quasi.source: String"),
        ({"version": "one"}, "version: String should match"),
        ({"jurisdictions": ["Germany"]}, "jurisdictions.0: String should match"),
        ({"colour": "blue"}, "colour: Extra inputs are not permitted"),
        ({"landing": None}, "landing: Field required"),
        ({"purposes": {}}, "purposes: Dictionary should have at least 1 item"),
    ],
)  # fmt: skip
def test_a_pack_with_a_fault_is_refused_with_the_reason_and_the_remedy(changes, sentence):
    faults = faults_of(changes)
    assert any(sentence in fault for fault in faults), faults


def test_the_small_pack_itself_has_no_fault():
    assert faults_of({}) == []


def test_every_fault_of_every_file_is_reported_in_one_go(tmp_path: Path):
    write_pack(tmp_path, "one", '["AA"]', more='\n[landing.rules."blood"]\noperator = "drop"\nsource = "x"\n')
    write_pack(tmp_path, "two", '["AA", "BB"]', more="\n[landing.events.big]\n")
    (tmp_path / "three.toml").write_text("region = ")
    (tmp_path / "four.toml").write_text((POLICIES / "eu.toml").read_text())
    with pytest.raises(ConfigError) as caught:
        load_packs(tmp_path, EVENTS)
    for sentence in (
        "one.toml: landing.rules.'blood': unknown tag",
        "two.toml: landing.events.big: no such event",
        "three.toml: file: not TOML",
        "four.toml: region: expected 'four' as in the file's name, got 'eu'",
        "jurisdiction AA: claimed by one and two: one event would have two laws; leave it in one pack",
    ):
        assert sentence in str(caught.value)


def test_a_folder_without_packs_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="no pack here: without a policy nothing may land"):
        load_packs(tmp_path, EVENTS)


def test_a_region_without_a_pack_is_refused():
    with pytest.raises(ConfigError, match="no policy pack for region 'mars'; there are "):
        PACKS.pack("mars")


# --- the hash


def test_the_hash_follows_the_content_and_not_the_layout():
    same = pack().hash
    reordered = parse_pack(dict(reversed(raw_pack().items())))[0]
    assert reordered is not None
    assert reordered.hash == same
    assert pack({"retention": {"minimum_days": 0, "maximum_days": 31, "source": "a test"}}).hash != same
    assert pack({("landing", "rules", "location.precise", "with", "cell_km2"): 2.0}).hash != same


def test_the_hash_of_a_shipped_pack_survives_comments_and_blank_lines():
    text = (POLICIES / "eu.toml").read_text()
    stripped = "\n".join(line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    again = parse_pack(tomllib.loads(stripped))[0]
    assert again is not None
    assert again.hash == PACKS.pack("eu").hash


def test_shipped_packs_use_no_operator_that_is_not_in_the_table():
    for region in PACKS.regions:
        leg = PACKS.pack(region).landing
        rules = [
            *leg.rules.values(),
            *(rule for part in leg.events.values() for rule in part.fields.values()),
        ]
        assert {rule.operator for rule in rules} <= set(OPERATORS)
