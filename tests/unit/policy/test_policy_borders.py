"""Borders: what may cross, by whose rules, on which basis and until when; and every pack that is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ConfigError
from pipeline.events import EventType, LockedSchema
from pipeline.lint import lint
from pipeline.policy import (
    OPERATORS,
    Packs,
    check_flow,
    compile_plan,
    curated_subject,
    derived_schemas,
    judge_all,
    load_packs,
    survey_packs,
)
from pipeline.policy.door import demand_landable
from pipeline.policy.pack import Pack
from pipeline.policy.plan import Plan
from pipeline.policy.tags import common
from tests.unit.policy.cases import NOW_US, SMALL_FIELDS, Keys, event, field, raw_pack, small_batch

DAY_US = 86_400_000_000
FIELDS = (*SMALL_FIELDS, field("jurisdiction", "string", "jurisdiction"), field("barcode", "string", "quasi"))
SMALL = event(fields=FIELDS)
KEEP = {"operator": "keep", "source": "a test"}
DROP = {"operator": "drop", "source": "a test"}
HELD = ["pseudonym", "location.coarse", "time.coarse", "measurement", "category", "jurisdiction", "transport"]
ORIGIN: dict[Any, Any] = {
    "landing.allowed.tags": HELD,
    ("landing", "rules", "jurisdiction"): KEEP,
    ("landing", "rules", "quasi"): DROP,
    "transfers.core": {
        "basis": "clauses",
        "source": "a test",
        "purposes": ["care"],
        "allowed": {"tags": HELD, "source": "a test"},
    },
}
CORE: dict[Any, Any] = {
    "region": "core",
    "jurisdictions": [],
    "located_in": "IE",
    "landing.allowed.tags": HELD,
    ("landing", "rules"): {
        "pseudonym": {"operator": "pseudonymise", "with": {"purpose": "care"}, "source": "a test"},
        **dict.fromkeys(("location.coarse", "time.coarse", "measurement", "category", "jurisdiction"), KEEP),
    },
}


def packs(origin: Mapping[Any, Any] | None = None, core: Mapping[Any, Any] | None = None) -> Packs:
    """The origin eu and the receiving core, with changes; content unchecked."""
    told = (raw_pack({**ORIGIN, **(origin or {})}), raw_pack({**CORE, **(core or {})}))
    return Packs(Pack.model_validate(content) for content in told)


def landed(of: Packs) -> EventType:
    """The small event as eu lands it."""
    return EventType("small", 0, 0, derived_schemas(of, {"small": SMALL})["eu.curated.small"])


def refused(of: Packs) -> str:
    with pytest.raises(ConfigError) as caught:
        check_flow(of.terms("eu", "core"), landed(of))
    return str(caught.value)


# --- which legs there are


def test_legs_are_landings_then_borders_and_the_rest_is_denied():
    both = packs()
    assert both.legs() == (("eu", "eu"), ("eu", "core"))
    assert both.origins("core") == ("eu",)
    assert both.origins("eu") == ()
    with pytest.raises(ConfigError, match="core collects nothing itself"):
        both.terms("core", "core")
    with pytest.raises(ConfigError, match="no leg from core to eu: what is not permitted is denied"):
        both.terms("core", "eu")


def test_what_was_received_goes_no_further_whatever_a_pack_says():
    both = packs(core={"transfers.eu": {**ORIGIN["transfers.core"]}})
    assert both.legs() == packs().legs()
    with pytest.raises(ConfigError, match="no leg from core to eu"):
        both.terms("core", "eu")


def test_the_hash_of_a_border_changes_with_either_pack():
    hashes = {
        packs().terms("eu", "core").hash,
        packs({"transfers.core.basis": "another"}).terms("eu", "core").hash,
        packs(core={"title": "another"}).terms("eu", "core").hash,
    }
    assert len(hashes) == 3
    assert packs().terms("eu", "eu").hash == packs().pack("eu").hash


def test_only_named_events_cross():
    some = packs({"transfers.core.only_events": ["other"]})
    with pytest.raises(ConfigError, match="small is not among the events of the transfer"):
        check_flow(some.terms("eu", "core"), landed(some))
    assert set(derived_schemas(some, {"small": SMALL})) == {"eu.curated.small"}


def test_what_may_be_held_is_what_both_ends_allow_the_narrower_of_two_tags():
    assert common({"time", "quasi.coarse"}, {"time.coarse", "quasi"}) == {"time.coarse", "quasi.coarse"}
    assert common({"time"}, {"timely"}) == frozenset()
    terms = packs({"transfers.core.allowed.tags": ["time", "transport"]}).terms("eu", "core")
    assert terms.allowed_for("small") == {"time.coarse", "transport"}


def test_a_tag_that_only_one_end_allows_does_not_cross():
    less = [tag for tag in HELD if tag != "measurement"]
    assert "load: keep (rule landing.rules.'measurement') leaves measurement" in refused(
        packs({"transfers.core.allowed.tags": less})
    )
    assert "leaves measurement" in refused(packs(core={"landing.allowed.tags": less}))


# --- which rule serves a field


@pytest.mark.parametrize(
    ("transfer", "gate", "place"),
    [
        ({"events": {"small": {"fields": {"load": DROP}}}, "rules": {"measurement": KEEP}},
         {"small": {"fields": {"load": KEEP}}}, "transfers.core.events.small.fields.load"),
        ({"rules": {"measurement": DROP}}, {"small": {"fields": {"load": KEEP}}},
         "landing.events.small.fields.load"),
        ({"rules": {"measurement": DROP}}, {}, "transfers.core.rules.'measurement'"),
        ({}, {}, "landing.rules.'measurement'"),
    ],
)  # fmt: skip
def test_the_order_in_which_rules_are_asked(transfer, gate, place):
    both = packs(
        {f"transfers.core.{key}": value for key, value in transfer.items()}, {"landing.events": gate}
    )
    flow = check_flow(both.terms("eu", "core"), landed(both))
    (rule,) = (d.rule for d in flow.decisions if d.fields[0].name == "load")
    assert rule == place


def test_the_raw_position_meets_no_operator_and_stands_at_the_end_after_the_origin():
    both = packs({"transfers.core.rules": {"transport": DROP}}, {("landing", "rules", "transport"): DROP})
    flow = check_flow(both.terms("eu", "core"), landed(both))
    assert {"raw_partition", "raw_offset"}.isdisjoint(f.name for d in flow.decisions for f in d.fields)
    schema = derived_schemas(both, {"small": SMALL})["core.curated.small.eu"]
    assert [f["name"] for f in schema["fields"]][-3:] == ["origin", "raw_partition", "raw_offset"]
    assert schema["fields"][-3]["confluent:tags"] == ["jurisdiction"]
    assert schema["namespace"] == "pipeline.curated.core.from_eu"
    assert lint(schema) == []


def test_a_border_takes_curated_events_only():
    with pytest.raises(ConfigError, match="what crosses a border is the origin's curated event"):
        check_flow(packs().terms("eu", "core"), SMALL)


def test_a_key_for_a_purpose_that_the_data_do_not_cross_for_is_refused():
    other = {"purposes.research": {"meaning": "m", "basis": "b"},
             ("landing", "rules", "pseudonym", "with"): {"purpose": "research"}}  # fmt: skip
    assert "pseudonymise works for the purpose research, the data cross for care" in refused(
        packs(core=other)
    )


# --- what crosses


def crossed(of: Packs, rows: list[dict[str, Any]], keys: Keys) -> tuple[pa.RecordBatch, Plan]:
    here = compile_plan(of.terms("eu", "eu"), SMALL, keys, now_us=NOW_US)
    first = here.apply(
        small_batch([{"jurisdiction": "DE", "barcode": "", **row} for row in rows], SMALL)
    ).batch
    position = [pa.array([3] * len(first), pa.int32()), pa.array(np.arange(len(first)), pa.int64())]
    batch = pa.RecordBatch.from_arrays([*first.columns, *position], schema=landed(of).arrow)
    plan = compile_plan(of.terms("eu", "core"), landed(of), keys, now_us=NOW_US)
    return plan.apply(batch).batch, plan


def test_what_crosses_is_named_anew_with_the_destinations_key():
    keys = Keys()
    there, plan = crossed(packs(), [{"person": "someone"}], keys)
    here = compile_plan(packs().terms("eu", "eu"), SMALL, Keys(), now_us=NOW_US)
    before = here.apply(
        small_batch([{"person": "someone", "jurisdiction": "DE", "barcode": ""}], SMALL)
    ).batch
    assert there.schema.equals(plan.arrow)
    assert there.column("person") != before.column("person")
    assert {region for region, _, _ in keys.asked} == {"eu", "core"}
    assert plan.policy_hash not in (packs().pack("eu").hash, packs().pack("core").hash)
    assert plan.region == "core"


def test_a_border_plan_whose_operator_was_swapped_passes_nothing():
    both = packs({"transfers.core.allowed.tags": [t for t in HELD if t != "location.coarse"],
                  "transfers.core.rules": {"location": DROP}})  # fmt: skip
    flow = check_flow(both.terms("eu", "core"), landed(both))
    weak = tuple(
        replace(d, operator=OPERATORS["keep"], output=d.fields[0].name) if d.output is None else d
        for d in flow.decisions
    )
    assert weak != flow.decisions
    plan = Plan(replace(flow, decisions=weak), Keys())
    zeroes = {pa.string(): "", pa.timestamp("us"): 0}
    columns = [
        pa.array([None if column.nullable else zeroes.get(column.type, 0)], column.type)
        for column in landed(both).arrow
    ]
    with pytest.raises(ConfigError, match="has a tag that core may not hold"):
        plan.transform(pa.RecordBatch.from_arrays(columns, schema=landed(both).arrow))


# --- crowds


CROWD = {"k": 5, "subject": "source", "fields": ["barcode"], "window": "day", "source": "a test"}


def crowded(changes: Mapping[Any, Any] | None = None) -> Packs:
    return packs(
        {
            "landing.allowed.tags": [*HELD, "quasi.crowd"],
            ("landing", "rules", "quasi"): KEEP,
            "landing.events.small": {"crowd": CROWD},
            **(changes or {}),
        }
    )


def test_what_a_crowd_shares_is_quasi_crowd_and_nothing_else_is():
    flow = check_flow(crowded().terms("eu", "eu"), SMALL)
    results = {d.output: d.result for d in flow.columns}
    assert results["barcode"] == {"quasi.crowd"}
    assert flow.crowd is not None
    assert flow.crowd.k == 5
    assert flow.crowd_columns == ("barcode",)
    assert all("quasi.crowd" not in tags for name, tags in results.items() if name != "barcode")
    with pytest.raises(ConfigError, match=r"barcode: keep .* leaves quasi, and eu may hold"):
        check_flow(crowded({"landing.events.small": {}}).terms("eu", "eu"), SMALL)


def test_a_crowd_cannot_share_what_is_dropped():
    wrong = {"landing.events.small": {"crowd": {**CROWD, "fields": ["barcode", "person"]},
                                      "fields": {"person": DROP}}}  # fmt: skip
    with pytest.raises(ConfigError, match="person is dropped, so no crowd can share it"):
        check_flow(crowded(wrong).terms("eu", "eu"), SMALL)


def test_two_ends_with_different_crowds_are_a_fault():
    both = packs(
        {"transfers.core.events": {"small": {"crowd": {**CROWD, "fields": ["phase"]}}}},
        {"landing.events": {"small": {"crowd": {**CROWD, "fields": ["phase"], "k": 9}}}},
    )
    assert "both ends of the leg ask for a crowd" in refused(both)


# --- validity


def test_a_basis_holds_through_its_last_day_and_not_a_microsecond_longer():
    last = date(2026, 1, 1)
    terms = packs({"transfers.core.valid_until": last}).terms("eu", "core")
    assert terms.valid_until_us == NOW_US + DAY_US
    terms.demand_valid(NOW_US + DAY_US - 1)
    with pytest.raises(ConfigError, match=r"the basis of the transfer \(clauses\) ended with 2026-01-01"):
        terms.demand_valid(NOW_US + DAY_US)


def test_no_leg_compiles_on_a_basis_that_has_ended():
    both = packs({"transfers.core.valid_until": date(2026, 1, 1) - timedelta(days=1)})
    with pytest.raises(ConfigError, match=r"border at eu to core: the basis of the transfer"):
        compile_plan(both.terms("eu", "core"), landed(both), Keys(), now_us=NOW_US)
    compile_plan(both.terms("eu", "eu"), SMALL, Keys(), now_us=NOW_US)  # the landing goes on


# --- the door


def test_the_door_of_the_store_knows_borders():
    both = packs()
    schema = derived_schemas(both, {"small": SMALL})[curated_subject("core", "small", "eu")]

    def locked(subject: str, of: dict[str, Any] = schema) -> LockedSchema:
        return LockedSchema(1, subject, 1, "", "", of)

    demand_landable(both, "core", locked("core.curated.small.eu"))
    for region, subject in (("eu", "core.curated.small.eu"), ("core", "core.curated.small.br"),
                            ("core", "core.curated.small"), ("core", "core.curated.small.core"),
                            ("eu", "eu.curated.small.core"), ("core", "eu.curated.small.eu")):  # fmt: skip
        with pytest.raises(ConfigError, match="store door"):
            demand_landable(both, region, locked(subject))
    worse = copy.deepcopy(schema)
    worse["fields"][0]["confluent:tags"] = ["identifier.device"]
    with pytest.raises(ConfigError, match=r"source is identifier\.device, which core may not hold"):
        demand_landable(both, "core", locked("core.curated.small.eu", worse))
    closed = packs({"transfers.core.allowed.tags": ["pseudonym"]})
    with pytest.raises(ConfigError, match="which core may not hold"):
        demand_landable(closed, "core", locked("core.curated.small.eu"))


# --- packs that are refused


def toml(value: Any) -> str:
    """A value as an inline TOML value."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return value.isoformat() if isinstance(value, date) else json.dumps(value)


def folder(path: Path, *contents: Mapping[str, Any]) -> Path:
    """Packs as files."""
    for content in contents:
        lines = (f"{key} = {toml(value)}" for key, value in content.items())
        (path / f"{content['region']}.toml").write_text("\n".join(lines))
    return path


def faults(path: Path, origin: Mapping[Any, Any] | None = None, core: Mapping[Any, Any] | None = None) -> str:
    there = folder(path, raw_pack({**ORIGIN, **(origin or {})}), raw_pack({**CORE, **(core or {})}))
    with pytest.raises(ConfigError) as caught:
        load_packs(there, {"small": SMALL}, now_us=NOW_US)
    return str(caught.value)


def test_the_two_packs_themselves_are_sound(tmp_path):
    there = folder(tmp_path, raw_pack(ORIGIN), raw_pack(CORE))
    survey = survey_packs(there, {"small": SMALL}, now_us=NOW_US)
    judged = judge_all(survey, {"small": SMALL})
    assert judged.violations == ()
    assert [(f.terms.origin, f.region) for f in judged.flows] == [("eu", "eu"), ("eu", "core")]
    assert {(d.origin, d.destination) for d in judged.denied} == {("core", "eu")}


HOUR = {"operator": "truncate_time", "with": {"to": "hour"}, "source": "x"}
DENIED = {"transfers_denied": [{"jurisdictions": ["CN"], "tags": ["location"], "source": "28 CFR 202"}]}
RETENTION = {"minimum_days": 0, "maximum_days": 30, "source": "short"}


@pytest.mark.parametrize(
    ("origin", "core", "sentence"),
    [
        ({("landing", "rules", "blood"): KEEP}, {}, "eu.toml: landing.rules.'blood': unknown tag 'blood'"),
        ({"transfers.core.allowed.tags": ["blood"]}, {}, "transfers.core.allowed: unknown tag 'blood'"),
        ({"transfers.core.rules": {"blood": KEEP}}, {}, "transfers.core.rules.'blood': unknown tag 'blood'"),
        ({"transfers_denied": [{"jurisdictions": ["CN"], "tags": ["blood"], "source": "x"}]}, {},
         "transfers_denied.0: unknown tag 'blood'"),
        ({("landing", "rules", "quasi"): HOUR}, {},
         "truncate_time does not discharge quasi: it takes time.precise; choose an operator that does"),
        ({"transfers.core.rules": {"category": HOUR}}, {},
         "transfers.core.rules.'category': truncate_time does not discharge category"),
        ({"transfers.core.rules": {"quasi": KEEP}}, {},
         "transfers.core.rules.'quasi': keep leaves quasi, which this destination may not hold"),
        ({("landing", "rules", "location.precise", "with", "cell_km2"): 0.5}, {},
         "0.5 km2 is below 0.9989 km2, and an area up to that is a precise location"),
        ({"transfers.core.valid_until": date(2025, 12, 31)}, {},
         "eu.toml: transfers.core.valid_until: the basis of the transfer (clauses) ended with 2025-12-31; "
         "name a basis that holds, or take the transfer out"),
        ({"jurisdictions": ["DE", "IE"]}, {"jurisdictions": ["IE"]},
         "jurisdiction IE: claimed by core and eu: one event would have two laws; leave it in one pack"),
        ({"transfers.mars": ORIGIN["transfers.core"]}, {},
         "transfers.mars: no region 'mars'; there are core, eu; add its pack"),
        ({"transfers.eu": ORIGIN["transfers.core"]}, {}, "a region needs no transfer to itself"),
        (DENIED, {"located_in": "CN"},
         "transfers.core.allowed: location.coarse may never go to core (CN), in whatever form"),
        (DENIED, {"located_in": "CN-BJ"}, "location.coarse may never go to core (CN-BJ), in whatever form"),
        ({**DENIED, "transfers.core.allowed.tags": ["transport", "jurisdiction"],
          "transfers.core.events": {"small": {"also_allowed": {"tags": ["location.coarse"], "source": "x"}}}},
         {"located_in": "CN"}, "core.events.small.also_allowed: location.coarse may never go to core"),
        ({"transfers_denied": [{"destinations": ["core"], "tags": ["pseudonym"], "source": "x"}]}, {},
         "transfers.core.allowed: pseudonym may never go to core, in whatever form"),
        ({"transfers_denied": [{"tags": ["location"], "source": "x"}]}, {},
         "say destinations or jurisdictions"),
        ({"transfers.core.purposes": ["sales"]}, {}, "core.purposes: purpose 'sales' is not one of"),
        ({"transfers.core.purposes": []}, {}, "transfers.core.purposes: Tuple should have at least 1 item"),
        ({"transfers.core.purposes": None}, {}, "transfers.core.purposes: Field required"),
        ({"transfers.core.basis": None}, {}, "transfers.core.basis: Field required"),
        ({"transfers.core.source": None}, {}, "transfers.core.source: Field required"),
        ({"purposes.sales": {"meaning": "m", "basis": "b"}, "transfers.core.purposes": ["care", "sales"]}, {},
         "core has no purpose 'sales', and what was collected for one may not serve another"),
        ({("landing", "rules", "identifier", "with"): {"purpose": "sales"}}, {},
         "purpose 'sales' is not one of the pack's: care; declare it with its legal basis"),
        ({"transfers.core.only_events": ["big"]}, {}, "transfers.core: no such event 'big'; there are small"),
        ({"transfers.core.events": {"big": {}}}, {}, "transfers.core: no such event 'big'; there are small"),
        ({"transfers.core.events": {"small": {"fields": {"barcode": KEEP}}}}, {},
         "transfers.core.events.small.fields.barcode: no such field; the event has"),  # dropped at landing
        ({}, {"landing.events": {"small": {"fields": {"colour": KEEP}}}},
         "core.toml: landing.events.small.fields.colour: no such field"),
        ({}, {"located_in": None}, "a region without jurisdictions says located_in"),
        ({}, {"transfers.eu": ORIGIN["transfers.core"]}, "core collects nothing, so nothing of it can cross"),
        ({"retention": {**RETENTION, "minimum_days": 31}}, {}, "must be kept 31 days and may be kept 30"),
        ({"retention": {**RETENTION, "events": [
            {"event": "small", "minimum_days": 365, "source": "long"}]}}, {},
         "retention of small from DE: rows must be kept 365 days (long) and may be kept 30 (short)"),
        ({"retention": {**RETENTION, "events": [
            {"event": "small", "jurisdictions": ["FR"], "minimum_days": 365, "source": "long"}]}}, {},
         "retention of small from FR: rows must be kept 365 days (long)"),
        ({"retention": {**RETENTION, "events": [{"event": "big", "minimum_days": 1, "source": "x"}]}}, {},
         "retention.events: no such event 'big'"),
        ({"retention": {**RETENTION, "events": [{"event": "small", "source": "x"}]}}, {},
         "say minimum_days or maximum_days"),
        ({"retention": {**RETENTION, "events": [
            {"event": "small", "jurisdictions": ["AA"], "maximum_days": 1, "source": "x"}]}}, {},
         "nothing comes from AA: neither collected here nor crossing to here"),
        ({}, {"retention": {**RETENTION, "maximum_days": 31}},
         "retention of small from DE: core may keep it 31 days, and eu, where it comes from, 30; "
         "lower maximum_days in the pack of core"),
        ({"retention": {**RETENTION, "events": [
            {"event": "small", "jurisdictions": ["FR"], "maximum_days": 7, "source": "x"}]}}, {},
         "retention of small from FR: core may keep it 30 days, and eu, where it comes from, 7"),
        ({}, {"retention": {**RETENTION, "events": [{"event": "small", "jurisdictions": ["DE"],
                                                     "minimum_days": 60, "source": "long"}]}},
         "rows must be kept 60 days (long) and may be kept 30 (short)"),
        ({"landing.events": {"small": {"consent": {"purpose": "sales", "subject": "person", "mode": "opt-in",
                                                   "source": "x"}}}}, {},
         "landing.events.small.consent: purpose 'sales' is not one of the pack's"),
        ({"landing.events": {"small": {"consent": {"purpose": "care", "subject": "load", "mode": "opt-in",
                                                   "source": "x"}}}}, {}, "subject 'load' is double"),
        ({"transfers.core.events": {"small": {"consent": {"purpose": "care", "subject": "person",
                                                          "mode": "opt-out", "source": "x"}}}}, {},
         "transfers.core.events.small.consent: people are pseudonyms here, so no one's choice"),
        ({}, {"landing.events": {"small": {"consent": {"purpose": "care", "subject": "person",
                                                       "mode": "opt-out", "source": "x"}}}},
         "landing.events.small.consent: the region collects nothing"),
        ({"landing.events": {"small": {"crowd": {**CROWD, "subject": "nobody"}}}}, {},
         "landing.events.small.crowd: subject 'nobody': no such field"),
        ({"landing.events": {"small": {"crowd": {**CROWD, "fields": ["colour"]}}}}, {},
         "landing.events.small.crowd: no such field 'colour'"),
        ({"landing.events": {"small": {"crowd": {**CROWD, "subject": "barcode"}}}}, {},
         "subject 'barcode' is quasi; only an identifier or a pseudonym names a person"),
        ({"landing.events": {"small": {"crowd": {**CROWD, "k": 1}}}}, {}, "greater than or equal to 2"),
        ({"edge.events": {"big": {}}}, {}, "edge.events.big: no such event"),
        ({"edge.events": {"small": {"fields": {"load": DROP}}}}, {}, "edge.events.small.fields.load:"),
    ],
)  # fmt: skip
def test_a_wrong_pack_is_refused_at_load_with_the_sentence_that_says_why(tmp_path, origin, core, sentence):
    assert sentence in faults(tmp_path, origin, core)


def test_a_transfer_that_has_ended_stops_itself_and_no_landing(tmp_path):
    ended = raw_pack({**ORIGIN, "transfers.core.valid_until": date(2025, 12, 31)})
    there = load_packs(folder(tmp_path, ended, raw_pack(CORE)), {"small": SMALL})
    compile_plan(there.terms("eu", "eu"), SMALL, Keys(), now_us=NOW_US)
    survey = survey_packs(tmp_path, {"small": SMALL}, now_us=NOW_US)
    (violation,) = judge_all(survey, {"small": SMALL}).violations
    assert violation.line == (
        "transfers.core.valid_until | eu to core | the basis of the transfer (clauses) ended with 2025-12-31 "
        "| rule transfers.core (a test) | mend: name a basis that holds, or take the transfer out"
    )


def test_of_retention_the_more_specific_rule_speaks_and_of_equals_the_stricter():
    events = [
        {"event": "small", "minimum_days": 5, "source": "e1"},
        {"event": "small", "minimum_days": 9, "maximum_days": 20, "source": "e2"},
        {"event": "small", "jurisdictions": ["FR"], "maximum_days": 25, "source": "j"},
    ]
    retention = packs({"retention": {**RETENTION, "events": events}}).pack("eu").retention
    kept = {j: retention.kept("small", j) for j in ("DE", "FR")}
    assert [(k.minimum_days, k.maximum_days, k.minimum_source, k.maximum_source) for k in kept.values()] == [
        (9, 20, "e2", "e2"), (9, 25, "e2", "j"),
    ]  # fmt: skip
    assert retention.kept("other", "DE").maximum_days == 30
    assert retention.maximum_days_of("small", ["DE", "FR"]) == 20
