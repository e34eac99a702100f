"""The law's rules that a machine can check, one by one, against the packs that ship.

Each test names its rule (G5 … K) as the project's law table does. They read packs and the schemas that follow
from them, and for each rule that is a refusal, a copy of a pack that breaks it is refused. Engineering input,
not legal advice.
"""

from __future__ import annotations

import math
import re
import shutil
from datetime import UTC, date, datetime
from pathlib import Path

import h3ronpy.vector
import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ConfigError
from pipeline.events import EventType
from pipeline.policy import compile_plan, curated_subject, derived_schemas, load_packs, survey_packs
from pipeline.policy.cells import ELLIPSOID_FACTOR, guaranteed_km2, resolution_for, to_cells
from pipeline.policy.crowd import WINDOW_US
from pipeline.policy.derive import curated_event
from pipeline.policy.pack import Pack
from pipeline.policy.tags import covered
from tests.unit.policy.cases import EVENTS, POLICIES, Keys

PACKS = load_packs(POLICIES, EVENTS)
DERIVED = derived_schemas(PACKS, EVENTS)
BORDERS = [(origin, to) for origin, to in PACKS.legs() if origin != to]
PRECISE_CA_KM2 = math.pi * (1850 * 0.3048 / 1000) ** 2  # 1,850 feet around
PRECISE_US_KM2 = math.pi  # 1,000 m around
EEA = frozenset({
    "AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU", "IE",
    "IS", "IT", "LI", "LT", "LU", "LV", "MT", "NL", "NO", "PL", "PT", "RO", "SE", "SI", "SK",
})  # fmt: skip
CONCERN = ("CN", "HK", "MO", "CU", "IR", "KP", "RU", "VE")
ALWAYS, NO_END = date.min, date.max

# ADQ: where the Commission finds protection adequate, from when and until when (GDPR 45). In the US only
# recipients certified under the Data Privacy Framework; what is not here wants a named safeguard (46).
ADEQUATE: dict[str, tuple[date, date]] = {
    **dict.fromkeys(
        ("AD", "AR", "CA", "CH", "FO", "GG", "IL", "IM", "JE", "JP", "KR", "NZ", "UY"), (ALWAYS, NO_END)
    ),
    "BR": (date(2026, 1, 26), NO_END),
    "GB": (ALWAYS, date(2031, 12, 27)),
}


def adequate(place: str, on: date) -> bool:
    """Whether data may leave the EEA for this place on that day without a further safeguard."""
    start, end = ADEQUATE.get(place.partition("-")[0], (date.max, date.min))
    return place.partition("-")[0] in EEA or start <= on <= end


def columns(destination: str, event: str, origin: str | None = None) -> dict[str, frozenset[str]]:
    """Column → tags of what is held."""
    schema = DERIVED[curated_subject(destination, event, origin)]
    return {field["name"]: frozenset(field["confluent:tags"]) for field in schema["fields"]}


def border_event(origin: str, event: str) -> EventType:
    """What a border reads: the event as its origin holds it."""
    return curated_event(EVENTS[event], DERIVED[curated_subject(origin, event)])


def crossing() -> list[tuple[str, str, str]]:
    """Every (origin, destination, event) that crosses a border."""
    return [(o, d, e) for o, d in BORDERS for e in sorted(EVENTS) if PACKS.terms(o, d).permits(e)]


def changed(folder: Path, region: str, *edits: tuple[str, str], more: str = "") -> Path:
    """A copy of the packs in which one file reads otherwise; every edit has to apply."""
    copy = shutil.copytree(POLICIES, folder / "policies")
    file = copy / f"{region}.toml"
    text = file.read_text()
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    file.write_text(text + more)
    return copy


def microseconds(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000


def cells_of(pack: Pack) -> list[float]:
    """``cell_km2`` of every rule of the pack that makes a place coarse."""
    parts = [pack.landing.rules, *(part.fields for part in pack.landing.events.values())]
    rules = [rule for part in parts for rule in part.values()]
    return [rule.parameters["cell_km2"] for rule in rules if "cell_km2" in rule.parameters]


# --- G5: purpose, legal basis, retention


@pytest.mark.parametrize("region", PACKS.regions)
def test_g5_every_row_has_a_purpose_a_basis_and_a_time_to_go(region):
    pack = PACKS.pack(region)
    assert all(purpose.meaning and purpose.basis for purpose in pack.purposes.values())
    for event in EVENTS:
        for place in sorted(pack.places):
            kept = pack.retention.kept(event, place)
            assert 0 <= kept.minimum_days <= kept.maximum_days <= 2 * 366
            assert kept.minimum_source
            assert kept.maximum_source


@pytest.mark.parametrize(("origin", "destination"), BORDERS)
def test_g5_what_crosses_has_a_purpose_of_the_region_that_collected_it(origin, destination):
    transfer = PACKS.pack(origin).transfers[destination]
    assert set(transfer.purposes) <= set(PACKS.pack(origin).purposes)


def test_g5_places_go_sooner_than_the_rest_where_a_pack_says_so():
    for region in ("eu", "core"):
        retention = PACKS.pack(region).retention
        assert retention.kept("vehicle_telemetry", "DE").maximum_days == 180
        assert retention.kept("machine_reading", "DE").maximum_days > 180


def test_g5_a_purpose_that_the_pack_does_not_declare_is_refused(tmp_path):
    copy = changed(tmp_path, "eu", ('purposes = ["training"]', 'purposes = ["marketing"]'))
    with pytest.raises(ConfigError, match="marketing"):
        load_packs(copy, EVENTS)


# --- G25: default deny, pseudonyms before the border


@pytest.mark.parametrize(("origin", "destination", "event"), crossing())
def test_g25_nothing_that_names_or_singles_out_crosses(origin, destination, event):
    forbidden = ("identifier", "location.precise", "special", "text", "quasi")
    for name, tags in columns(destination, event, origin).items():
        assert not any(covered(tag, forbidden) for tag in tags), name


@pytest.mark.parametrize(("origin", "destination", "event"), crossing())
def test_g25_moments_cross_only_where_nobody_moves_with_the_machine(origin, destination, event):
    precise = [name for name, tags in columns(destination, event, origin).items() if "time.precise" in tags]
    assert precise == (["event_time", "received_time"] if event == "machine_reading" else [])


@pytest.mark.parametrize("region", sorted(set(PACKS.regions) - {"core"}))
def test_g25_every_identifier_is_a_pseudonym_or_gone_before_anything_else_is_done(region):
    for event, kind in EVENTS.items():
        held = columns(region, event)
        for field in kind.fields:
            if any(covered(tag, ("identifier",)) for tag in field.tags) and field.name in held:
                assert held[field.name] == {"pseudonym"}


@pytest.mark.parametrize("region", sorted(set(PACKS.regions) - {"core"}))
@pytest.mark.parametrize(
    "tag",
    ["identifier.device", "location.precise", "time.precise", "measurement", "category", "jurisdiction"],
)
def test_g25_what_no_rule_serves_is_denied(region, tag, tmp_path):
    text = (POLICIES / f"{region}.toml").read_text()
    rule = re.compile(rf'\[landing\.rules\."{re.escape(tag)}"\]\n(?:[^\n]+\n)+')
    (found,) = rule.findall(text)
    copy = changed(tmp_path, region, (found, ""))
    with pytest.raises(ConfigError, match=f"no rule for tag {tag}"):
        derived_schemas(load_packs(copy, EVENTS), EVENTS)


@pytest.mark.parametrize(("origin", "destination"), BORDERS)
def test_g25_what_the_origin_does_not_let_out_stays_even_if_the_destination_may_hold_it(
    origin, destination, tmp_path
):
    text = (POLICIES / f"{origin}.toml").read_text()
    before, after = text.split(f"[transfers.{destination}.allowed]")
    copy = changed(tmp_path, origin, (after, after.replace('"measurement", ', "", 1)))
    assert before
    with pytest.raises(ConfigError, match=r"leaves measurement"):
        derived_schemas(load_packs(copy, EVENTS), EVENTS)


def test_g25_no_region_without_a_transfer_lets_anything_out():
    with pytest.raises(ConfigError, match="what is not permitted is denied"):
        PACKS.terms("cn", "core")
    with pytest.raises(ConfigError, match="what is not permitted is denied"):
        PACKS.terms("eu", "us-ca")


def test_g25_the_core_hands_nothing_on():
    assert not [leg for leg in PACKS.legs() if leg[0] == "core"]


# --- G44 and ADQ: the basis of a transfer, and its end


@pytest.mark.parametrize(("origin", "destination"), BORDERS)
def test_g44_every_transfer_names_its_basis_and_its_law(origin, destination):
    terms = PACKS.terms(origin, destination)
    assert terms.basis
    assert PACKS.pack(origin).transfers[destination].source


def test_g44_the_core_stands_in_the_eea_so_that_nothing_from_there_is_a_transfer():
    assert PACKS.pack("core").located_in in EEA
    assert not PACKS.pack("core").collects


@pytest.mark.parametrize(("origin", "destination"), BORDERS)
def test_g44_out_of_the_eea_only_to_where_it_is_adequate_for_as_long_as_it_is(origin, destination):
    """Holds for every EEA pack that ships or will: a transfer out needs the table's place and its date."""
    terms, places = PACKS.terms(origin, destination), PACKS.pack(destination).places
    if not PACKS.pack(origin).places <= EEA:
        return
    last = terms.valid_until or date.max
    for place in places:
        assert adequate(place, date(2026, 11, 22))
        assert place in EEA or adequate(place, last)


@pytest.mark.parametrize(
    ("place", "on", "answer"),
    [
        ("DE", date(2020, 1, 1), True),
        ("BR-SP", date(2026, 1, 25), False),
        ("BR-SP", date(2026, 1, 26), True),
        ("GB", date(2031, 12, 27), True),
        ("GB", date(2031, 12, 28), False),
        ("JP", date(2026, 11, 22), True),
        ("CH", date(2026, 11, 22), True),
        ("US-CA", date(2026, 11, 22), False),  # only certified recipients: a named safeguard
        ("CN", date(2026, 11, 22), False),
        ("IN", date(2026, 11, 22), False),
    ],
)
def test_adq_the_table_has_places_and_days(place, on, answer):
    assert adequate(place, on) is answer


def test_adq_the_pair_with_the_uk_ends_with_the_commissions_decision():
    terms = PACKS.terms("uk", "core")
    assert terms.valid_until == ADEQUATE["GB"][1]
    terms.demand_valid(microseconds(date(2031, 12, 28)) - 1)
    with pytest.raises(ConfigError, match="ended with 2031-12-27"):
        terms.demand_valid(microseconds(date(2031, 12, 28)))


def test_adq_a_basis_that_has_ended_compiles_to_nothing(tmp_path):
    copy = changed(tmp_path, "uk", ("valid_until = 2031-12-27", "valid_until = 2026-11-21"))
    packs = load_packs(copy, EVENTS)
    event = border_event("uk", "machine_reading")
    compile_plan(packs.terms("uk", "core"), event, Keys(), now_us=microseconds(date(2026, 11, 22)) - 1)
    with pytest.raises(ConfigError, match="ended with 2026-11-21"):
        load_packs(copy, EVENTS, now_us=microseconds(date(2026, 11, 22)))
    with pytest.raises(ConfigError, match="ended with 2026-11-21"):
        compile_plan(packs.terms("uk", "core"), event, Keys(), now_us=microseconds(date(2026, 11, 22)))


# --- CA1: a place is coarse beyond 1,850 feet around


@pytest.mark.parametrize("region", PACKS.regions)
def test_ca1_no_cell_of_any_region_is_precise_at_any_latitude(region):
    sizes = cells_of(PACKS.pack(region))
    assert sizes
    for size in sizes:
        resolution = resolution_for(size)
        assert resolution is not None
        assert guaranteed_km2(resolution) > max(size, PRECISE_CA_KM2)


@pytest.mark.parametrize("region", ["us-ca", "us", "core"])
def test_ca1_the_guarantee_holds_for_cells_measured_from_pole_to_pole(region):
    (size,) = cells_of(PACKS.pack(region))
    resolution = resolution_for(size)
    assert resolution is not None
    latitudes, longitudes = np.meshgrid(np.linspace(-90, 90, 361), np.linspace(-180, 180, 73))
    cells = to_cells(pa.array(latitudes.ravel()), pa.array(longitudes.ravel()), resolution)
    areas = np.asarray(h3ronpy.cells_area_km2(pa.array(np.asarray(cells).view(np.uint64))))
    assert areas.min() * ELLIPSOID_FACTOR > max(size, PRECISE_CA_KM2)


def test_ca1_a_smaller_cell_is_refused(tmp_path):
    copy = changed(tmp_path, "us-ca", ("cell_km2 = 0.9989", "cell_km2 = 0.9988"))
    with pytest.raises(ConfigError, match=r"below 0\.9989 km2"):
        load_packs(copy, EVENTS)


def test_ca1_who_says_no_in_california_is_left_out():
    consent = PACKS.pack("us-ca").landing.event("vehicle_telemetry").consent
    assert consent is not None
    assert (consent.mode, consent.subject) == ("opt-out", "vin")


# --- US3: countries of concern


@pytest.mark.parametrize("origin", ["us", "us-ca"])
def test_us3_places_within_a_thousand_metres_do_not_even_cross_to_a_friend(origin):
    (gate,) = cells_of(PACKS.pack("core"))
    resolution = resolution_for(gate)
    assert resolution is not None
    assert guaranteed_km2(resolution) > PRECISE_US_KM2
    assert "location_cell" in columns("core", "vehicle_telemetry", origin)


def test_us3_the_pack_of_the_states_is_coarse_from_the_start():
    (size,) = cells_of(PACKS.pack("us"))
    resolution = resolution_for(size)
    assert resolution is not None
    assert guaranteed_km2(resolution) > PRECISE_US_KM2


@pytest.mark.parametrize("origin", ["us", "us-ca"])
@pytest.mark.parametrize("place", CONCERN)
def test_us3_no_transfer_reaches_a_country_of_concern_however_its_pack_is_worded(origin, place, tmp_path):
    """The core's own gate, moved there: coarse cells and new pseudonyms do not help (28 CFR 202.206)."""
    copy = changed(tmp_path, "core", ('located_in = "DE"', f'located_in = "{place}"'))
    for other in set(PACKS.regions) - {origin, "core"}:
        (copy / f"{other}.toml").unlink()
    found = [v for v in survey_packs(copy, EVENTS).violations if v.rule == "transfers_denied"]
    assert {tag for violation in found for tag in violation.tags} == {"location.coarse", "pseudonym"}
    assert all(violation.source.startswith("28 CFR 202") for violation in found)
    with pytest.raises(ConfigError, match="may never go to core"):
        load_packs(copy, EVENTS)


# --- BR1, CN1, IN1


def test_br1_what_leaves_brazil_names_an_adequacy_decision_or_clauses():
    transfer = PACKS.pack("br").transfers["core"]
    assert transfer.source.startswith("LGPD 33, I")
    assert PACKS.pack("core").located_in in EEA


def test_cn1_nothing_leaves_china_while_nobody_counts_the_people_exported():
    assert PACKS.pack("cn").transfers == {}
    assert not [leg for leg in PACKS.legs() if leg[0] == "cn" and leg[1] != "cn"]


def test_cn1_tracks_are_sensitive_so_they_take_a_yes_and_wide_cells():
    consent = PACKS.pack("cn").landing.event("vehicle_telemetry").consent
    assert consent is not None
    assert consent.mode == "opt-in"
    assert min(cells_of(PACKS.pack("cn"))) > max(cells_of(PACKS.pack("us")))


@pytest.mark.parametrize("event", sorted(EVENTS))
def test_in1_rows_are_held_a_year_whatever_the_year_and_then_go(event):
    kept = PACKS.pack("in").retention.kept(event, "IN")
    assert 366 <= kept.minimum_days < kept.maximum_days
    assert "DPDP Rules 8(3)" in kept.minimum_source


def test_in1_a_duty_to_keep_that_meets_a_shorter_limit_is_found_at_load(tmp_path):
    copy = changed(tmp_path, "in", ("maximum_days = 400", "maximum_days = 180"))
    with pytest.raises(ConfigError, match="no row can satisfy both"):
        load_packs(copy, EVENTS)


def test_in1_consent_is_the_ground_so_a_yes_is_needed():
    for event, subject in (("vehicle_telemetry", "vin"), ("meter_reading", "meter")):
        consent = PACKS.pack("in").landing.event(event).consent
        assert consent is not None
        assert (consent.mode, consent.subject) == ("opt-in", subject)


# --- PS and K: pseudonyms and crowds


@pytest.mark.parametrize(("origin", "destination", "event"), crossing())
def test_ps_every_pseudonym_that_crosses_is_made_anew_for_a_purpose_of_the_destination(
    origin, destination, event
):
    keys = Keys()
    terms = PACKS.terms(origin, destination)
    compile_plan(terms, border_event(origin, event), keys, now_us=microseconds(date(2026, 11, 22)))
    pseudonyms = [name for name, tags in columns(destination, event, origin).items() if "pseudonym" in tags]
    assert pseudonyms
    assert {(region, purpose) for region, purpose, _ in keys.asked} == {(destination, "training")}
    docs = {f["name"]: f["doc"] for f in DERIVED[curated_subject(destination, event, origin)]["fields"]}
    assert all("keyed hash for training" in docs[name] for name in pseudonyms)


def test_k_crowds_count_people_in_windows_as_fine_as_what_is_left_of_time():
    crowds = [
        (origin, event, part.crowd)
        for origin, destination in BORDERS
        for event, part in PACKS.pack(origin).transfers[destination].events.items()
        if part.crowd
    ]
    assert {origin for origin, _, _ in crowds} == {"jp", "uk"}
    for origin, event, crowd in crowds:
        held = columns("core", event, origin)
        assert crowd.k >= 5
        assert WINDOW_US[crowd.window] == 3_600_000_000
        assert held["event_time"] == {"time.coarse"}
        assert columns(origin, event)[crowd.subject] == {"pseudonym"}
        assert set(crowd.fields) <= held.keys()
