"""The type check: nothing that the destination may not hold gets past it, whatever the pack says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.events import TAGS
from pipeline.policy import OPERATORS, Packs, check_flow, load_packs
from pipeline.policy.tags import covered
from pipeline.policy.typecheck import flow_faults
from tests.unit.policy.cases import COLLECTING, EVENTS, POLICIES, SMALL_FIELDS, event, field, pack, terms

PACKS = load_packs(POLICIES, EVENTS)
DROP = {"operator": "drop", "source": "a test"}
KEEP = {"operator": "keep", "source": "a test"}


def refused(changes, fields=SMALL_FIELDS):
    """The message of the type check."""
    with pytest.raises(ConfigError) as caught:
        check_flow(terms(changes), event(fields=fields))
    return str(caught.value)


def own_rule(name, operator, **parameters):
    rule = {"operator": operator, "with": parameters, "source": "a test"}
    return {"landing.events": {"small": {"fields": {name: rule}}}}


def test_the_small_event_is_decided_field_by_field():
    flow = check_flow(terms(), event())
    assert [(d.operator.name, d.output, sorted(d.result)) for d in flow.decisions] == [
        ("pseudonymise", "source", ["pseudonym"]),
        ("truncate_time", "event_time", ["time.coarse"]),
        ("pseudonymise", "person", ["pseudonym"]),
        ("coarsen_location", "location_cell", ["location.coarse"]),
        ("drop", None, []),
        ("keep", "load", ["measurement"]),
        ("keep", "count", ["measurement"]),
        ("keep", "phase", ["category"]),
    ]


@pytest.mark.parametrize("region", COLLECTING)
@pytest.mark.parametrize("name", sorted(EVENTS))
def test_no_decision_can_be_weakened_without_the_check_noticing(region, name):
    flow = check_flow(PACKS.terms(region, region), EVENTS[name])
    weakened = 0
    for index, decision in enumerate(flow.decisions):
        left = [tag for tag in decision.tags if not covered(tag, flow.allowed)]
        if not left:
            continue
        kept = replace(decision, operator=OPERATORS["keep"], output=decision.fields[0].name)
        mutant = replace(flow, decisions=(*flow.decisions[:index], kept, *flow.decisions[index + 1 :]))
        faults = list(map(str, flow_faults(mutant)))
        assert any(decision.fields[0].name in fault and left[0] in fault for fault in faults), faults
        weakened += 1
    assert weakened >= 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {("landing", "rules", "measurement"): None},
            "load: no rule for tag measurement: what no rule serves is denied; add one",
        ),
        (
            own_rule("person", "keep"),
            "person: keep (rule landing.events.small.fields.person) leaves identifier.direct, and",
        ),
        (
            own_rule("latitude", "drop"),
            "longitude: coarsen_location takes exactly one field per role latitude, long",
        ),
        (own_rule("longitude", "coarsen_location", cell_km2=20.0), "with the same parameters; drop the rest"),
        (
            own_rule("load", "coarsen_location", cell_km2=2.0),
            "load: coarsen_location takes fields in the roles",
        ),
        (
            own_rule("person", "truncate_time", to="day"),
            "person: truncate_time works on timestamp-micros, the fi",
        ),
        (
            own_rule("load", "pseudonymise", purpose="care"),
            "load: pseudonymise takes none of its tags measurement",
        ),
        (
            own_rule("count", "generalise_number", step=0.5),
            "count: generalise_number works on a number (and a who",
        ),
        (
            {
                "landing.allowed.tags": [
                    "pseudonym",
                    "location.coarse",
                    "time.coarse",
                    "measurement",
                    "category",
                ]
            },
            "raw_partition and raw_offset: eu must be allowed to hold transport",
        ),
    ],
)
def test_a_flow_that_does_not_fit_is_refused_with_field_tag_and_rule(changes, sentence):
    assert sentence in refused(changes)


def test_every_fault_of_a_flow_is_reported_in_one_go():
    message = refused({("landing", "rules", "measurement"): None, ("landing", "rules", "special"): None})
    for name in ("load", "count", "pulse"):
        assert f"{name}: no rule for tag" in message
    assert message.startswith("policy check at eu to eu, small: ")


def test_a_field_without_a_tag_is_refused():
    assert "extra: has no tag" in refused({}, (*SMALL_FIELDS, field("extra", "string")))


def test_a_tag_that_the_operator_does_not_take_stays_on_the_result():
    fields = (*SMALL_FIELDS, field("badge", "string", "identifier.direct", "special.health"))
    message = refused(own_rule("badge", "pseudonymise", purpose="care"), fields)
    assert "badge: pseudonymise (rule landing.events.small.fields.badge) leaves special.health" in message


def test_of_several_rules_drop_wins_and_keep_gives_way():
    fields = (*SMALL_FIELDS, field("badge", "string", "identifier.direct", "special.health"),
              field("nickname", "string", "category", "identifier.direct"))  # fmt: skip
    flow = check_flow(terms(), event(fields=fields))
    found = {d.fields[0].name: (d.operator.name, d.result) for d in flow.decisions}
    assert found["badge"][0] == "drop"
    assert found["nickname"] == ("pseudonymise", {"pseudonym", "category"})


def test_two_different_operators_for_one_field_are_refused():
    fields = (*SMALL_FIELDS, field("shift", "string", "identifier.direct", "time.precise"))
    told = refused({}, fields)
    assert "shift: the rules landing.rules.'identifier', landing.rules.'time.precise' ask for" in told


def test_the_parts_of_a_nested_field_cannot_slip_through_under_the_tag_of_the_whole():
    inner = {"type": "record", "name": "Inner", "fields": [field("name", "string", "identifier.direct")]}
    fields = (*SMALL_FIELDS, field("detail", inner, "measurement"))
    assert "detail: keep works on a column that is not nested" in refused({}, fields)
    assert check_flow(terms(own_rule("detail", "drop")), event(fields=fields))


def test_two_results_of_one_name_are_refused():
    fields = (*SMALL_FIELDS, field("location_cell", "long", "measurement", unit="1"))
    assert "location_cell: two columns of that name would leave" in refused({}, fields)


def test_an_epoch_needs_the_time_of_the_event():
    fields = tuple(f for f in SMALL_FIELDS if f["name"] != "event_time")
    assert "event_time: pseudonymise needs it" in refused({}, fields)


def test_a_border_that_the_pack_does_not_name_is_closed():
    with pytest.raises(ConfigError, match="no leg from eu to core: what is not permitted is denied"):
        Packs([pack(), pack({"region": "core", "jurisdictions": ["AA"]})]).terms("eu", "core")
    with pytest.raises(ConfigError, match="no policy pack for region 'core'"):
        Packs([pack()]).terms("eu", "core")


TAG = st.sampled_from(sorted(TAGS))
ANYWHERE = [KEEP, DROP, {"operator": "constant", "with": {"value": "x"}, "source": "a test"}]
FITTING = {
    "identifier": [{"operator": "pseudonymise", "with": {"purpose": "care"}, "source": "a test"}],
    "time": [
        {"operator": "truncate_time", "with": {"to": to}, "source": "a test"} for to in ("second", "day")
    ],
    "measurement": [{"operator": "generalise_number", "with": {"step": 10.0}, "source": "a test"}],
}
RULES = st.fixed_dictionaries(
    {tag: st.sampled_from(ANYWHERE + 2 * FITTING.get(tag.split(".")[0], [])) for tag in sorted(TAGS)}
)
KIND = st.sampled_from(["string", "double", {"type": "long", "logicalType": "timestamp-micros"}])


@settings(max_examples=300)
@given(
    st.lists(st.tuples(KIND, st.sets(TAG, min_size=1, max_size=3)), max_size=4),
    RULES,
    st.sets(TAG, max_size=6).map(lambda denied: set(TAGS) - denied),  # most random packs would pass nothing
)
def test_whatever_pack_passes_leaves_only_what_is_allowed(kinds, rules, allowed):
    """The promise itself, computed apart from the checker: each tag of each result is allowed."""
    fields = [SMALL_FIELDS[1], *(field(f"f{i}", kind, *sorted(tags)) for i, (kind, tags) in enumerate(kinds))]
    changes = {"landing.rules": rules, "landing.allowed.tags": [*sorted(allowed), "transport"]}
    try:
        flow = check_flow(terms(changes), event(fields=fields))
    except ConfigError:
        return
    for decision in flow.columns:
        operator = decision.operator.name
        (source,) = decision.fields
        after = {
            "keep": source.tags,
            "generalise_number": source.tags,
            "constant": {"category"},
            "pseudonymise": {t for t in source.tags if not t.startswith("identifier.")} | {"pseudonym"},
            "truncate_time": (source.tags - {"time.precise"})
            | {"time.coarse" if decision.parameters.model_dump().get("to") == "day" else "time.precise"},
        }[operator]
        assert after == decision.result
        may = allowed | {"transport"}
        assert all(tag in may or tag.rpartition(".")[0] in may for tag in after)
