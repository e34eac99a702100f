"""Explanations: what happens to a field and why, also when it is denied; and every fault, not the first."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigError
from pipeline.policy import Packs, explain, judge_all, load_packs, survey_packs
from tests.unit.policy.cases import COLLECTING, EVENTS, POLICIES, event, pack

PACKS = load_packs(POLICIES, EVENTS)
KEEP = {"operator": "keep", "source": "a test"}


def test_a_field_is_explained_from_its_tag_to_the_law():
    told = explain(PACKS, EVENTS["vehicle_telemetry"], "latitude", "eu", "eu")
    assert told.outcome == "lands in eu as location_cell: location.coarse"
    assert told.tags == {"location.precise": "a place known to better than 0.9989 km2"}
    assert (told.rule, told.operator) == ("landing.rules.'location.precise'", "coarsen_location")
    assert told.parameters["cell_km2"] == 1.0
    assert told.effect == "H3 cell of resolution 7; the smallest is 2.6 km2"
    assert told.source.startswith("GDPR 5(1)(c), 25(1)")
    assert (told.denied, told.against, told.others) == (False, (), 0)


def test_a_field_that_is_dropped_says_by_which_rule():
    told = explain(PACKS, EVENTS["vehicle_telemetry"], "driver", "eu", "eu")
    assert told.outcome == "does not land in eu"
    assert (told.operator, told.column, told.becomes) == ("drop", None, ())
    assert told.source == "GDPR 5(1)(c): maintenance needs the machine, not the person"


def test_a_rule_of_its_own_and_the_filters_that_look_at_a_field_are_named():
    frame = explain(PACKS, EVENTS["object_detection"], "frame", "eu", "eu")
    assert frame.rule == "landing.events.object_detection.fields.frame"
    label = explain(PACKS, EVENTS["object_detection"], "label", "eu", "eu")
    assert set(label.filters) == {"person"}


@pytest.mark.parametrize("region", COLLECTING)
@pytest.mark.parametrize("name", sorted(EVENTS))
def test_every_field_of_every_event_can_be_explained_in_every_region(region, name):
    for field in EVENTS[name].fields:
        told = explain(PACKS, EVENTS[name], field.name, region, region)
        assert not told.denied
        assert told.source
        assert told.rule
        assert (told.column is None) == (told.operator == "drop")


def test_a_denied_field_says_what_is_left_and_what_would_mend_it():
    told = explain(Packs([pack({("landing", "rules", "identifier"): KEEP})]), event(), "person", "eu", "eu")
    assert told.denied
    assert told.outcome == "denied: small may not land in eu"
    (fault,) = told.against
    assert (fault.event, fault.fields, fault.tags) == ("small", ("person",), ("identifier.direct",))
    assert (fault.destination, fault.rule, fault.source) == ("eu", "landing.rules.'identifier'", "a test")
    assert fault.remedy == "use a stronger operator, or drop the field"
    assert told.others == 1  # source, for the same reason


def test_a_field_without_a_rule_is_denied_without_an_operator():
    told = explain(Packs([pack({("landing", "rules", "measurement"): None})]), event(), "load", "eu", "eu")
    assert (told.denied, told.operator, told.column) == (True, "", None)
    assert told.against[0].problem == "no rule for tag measurement: what no rule serves is denied"


def test_a_sound_field_of_a_denied_event_says_that_the_event_does_not_land():
    told = explain(Packs([pack({("landing", "rules", "measurement"): None})]), event(), "person", "eu", "eu")
    assert (told.denied, told.against, told.others) == (True, (), 2)


def test_a_field_the_event_has_not_is_wrong_use():
    with pytest.raises(ConfigError, match="small has no field 'colour'; it has source, event_time"):
        explain(Packs([pack()]), event(), "colour", "eu", "eu")


@pytest.mark.parametrize("parameters", [{"to": "century"}, {"until": "day"}, {}])
def test_a_rule_whose_parameters_do_not_fit_is_a_fault_and_not_a_crash(parameters):
    told = explain(
        Packs([pack({("landing", "rules", "time.precise", "with"): parameters})]),
        event(),
        "event_time",
        "eu",
        "eu",
    )
    assert told.against[0].problem == "the parameters of truncate_time do not fit"
    assert told.against[0].remedy == "mend the rule"


# --- all that is wrong


def test_everything_wrong_with_every_pack_and_flow_is_found_at_once(tmp_path):
    text = (POLICIES / "eu.toml").read_text()
    identifier = (
        '[landing.rules."identifier.device"]\noperator = "pseudonymise"\nwith = { purpose = "maintenance" }'
    )
    assert identifier in text
    weak = text.replace(identifier, '[landing.rules."identifier.device"]\noperator = "keep"')
    weak = weak.replace('[landing.rules."measurement"]', '[landing.rules."blood"]')
    (tmp_path / "eu.toml").write_text(weak)
    (tmp_path / "br.toml").write_text("region = ")
    survey = survey_packs(tmp_path, EVENTS)
    assert survey.packs.regions == ("eu",)
    judged = judge_all(survey, EVENTS)
    flows, violations = judged.flows, judged.violations
    assert len(flows) == len(EVENTS)
    lines = [violation.line for violation in violations]
    for part in (
        "file | to br | not TOML",
        "landing.rules.'blood' [blood] | to eu | unknown tag 'blood'",
        "landing.rules.'identifier.device' [identifier.device] | to eu | keep leaves identifier.device",
        "vehicle_telemetry.vin [identifier.device] | to eu | keep (rule landing.rules.'identifier.device')",
        "machine_reading.machine [identifier.device] | to eu",
        "meter_reading.energy_kwh [measurement] | to eu | no rule for tag measurement",
        "| rule landing.rules.'identifier.device' (GDPR 4(5), 25(1), 32(1)(a); EDPB Guidelines 01/2025) | ",
    ):
        assert any(part in line for line in lines), part
    fields = {(v.event, name) for v in violations for name in v.fields}
    wanted = {
        (e.name, f.name)
        for e in EVENTS.values() for f in e.fields
        if f.tags & {"identifier.device", "measurement"}
        and f.name not in PACKS.pack("eu").landing.event(e.name).fields
    }  # fmt: skip
    assert wanted <= fields
