"""The commands: policy check, explain and test, for people and as JSON, with their exit status."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import ConfigError
from pipeline.policy import Violation, load_packs
from tests.shared_data import PROJECT
from tests.unit.policy.cases import EVENTS, POLICIES

PACKS = load_packs(POLICIES, EVENTS)
EXAMPLES = sum(len(PACKS.pack(region).examples) for region in PACKS.regions)
EXPLAIN = ("policy", "explain", "--event", "vehicle_telemetry", "--region", "eu", "--field")


@pytest.fixture
def schemas(tmp_path: Path) -> Path:
    """A copy of the schemas, and a configuration that names it."""
    shutil.copytree(PROJECT / "schemas", tmp_path / "schemas")
    (tmp_path / "pipeline.toml").write_text(f'schemas = "{tmp_path / "schemas"}"\n')
    return tmp_path / "schemas"


def call(schemas: Path, *arguments: str):
    return CliRunner().invoke(app, ["--config", str(schemas.parent / "pipeline.toml"), *arguments])


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_sound_packs_check_explain_and_test_well(schemas):
    for arguments, part in (
        (("policy", "check"), "0 violations"),
        (("policy", "check"), "the pack of eu permits no such transfer"),
        (("policy", "check", "--fields"), "vehicle_telemetry.latitude: eu to eu: coarsen_location"),
        ((*EXPLAIN, "latitude", "--to", "core"), "crosses from eu to core as location_cell"),
        ((*EXPLAIN, "latitude", "--to", "core"), "basis      within the European Economic Area"),
        ((*EXPLAIN, "driver", "--to", "core"), "does not cross to core: it does not even land in eu"),
        ((*EXPLAIN, "latitude"), "lands in eu as location_cell: location.coarse"),
        ((*EXPLAIN, "driver"), "does not land in eu"),
        (("policy", "test"), f"{EXAMPLES} of {EXAMPLES} examples as expected"),
        (("policy", "test", "--region", "br"), "3 of 3 examples as expected"),
    ):
        result = call(schemas, *arguments)
        assert result.exit_code == 0, result.output
        assert part in result.output


def test_the_same_as_json(schemas):
    checked = json.loads(call(schemas, "--json", "policy", "check").output)
    assert checked["violations"] == []
    assert {row["region"] for row in checked["fields"]} == set(PACKS.regions)
    legs = {(flow["event"], flow["origin"], flow["destination"]) for flow in checked["flows"]}
    denied = {(denial["event"], denial["origin"], denial["destination"]) for denial in checked["denied"]}
    assert ("vehicle_telemetry", "eu", "core") in legs
    assert ("vehicle_telemetry", "eu", "br") in denied
    assert not legs & denied
    pairs = {(origin, to) for origin in PACKS.regions for to in PACKS.regions} - {("core", "core")}
    assert legs | denied == {(name, *pair) for name in EVENTS for pair in pairs}
    told = json.loads(call(schemas, "--json", *EXPLAIN, "latitude").output)
    assert (told["operator"], told["denied"], told["becomes"]) == (
        "coarsen_location",
        False,
        ["location.coarse"],
    )
    examples = json.loads(call(schemas, "--json", "policy", "test").output)
    assert all(example["passed"] for example in examples)


def test_a_pack_that_holds_too_much_is_told_with_every_field_and_ends_with_2(schemas):
    edit(
        schemas / "policies" / "eu.toml",
        'operator = "pseudonymise"\nwith = { purpose = "maintenance" }', 'operator = "keep"',
    )  # fmt: skip
    result = call(schemas, "policy", "check")
    assert result.exit_code == 2
    lines = [line for line in result.output.splitlines() if "| to eu |" in line or "| eu to core |" in line]
    for place in ("vehicle_telemetry.vin", "vehicle_telemetry.source", "meter_reading.meter"):
        (line,) = (line for line in lines if line.startswith(place) and "| to eu |" in line)
        assert "[identifier.device]" in line
        assert "GDPR 4(5)" in line
        assert "mend: use a stronger operator, or drop the field" in line
    found = json.loads(call(schemas, "--json", "policy", "check").output)["violations"]
    assert len(found) == len(lines)
    assert set(found[0]) == {field.name for field in dataclasses.fields(Violation)}
    told = call(schemas, *EXPLAIN, "vin")
    assert told.exit_code == 0
    assert "denied: vehicle_telemetry may not land in eu" in told.output
    assert json.loads(call(schemas, "--json", *EXPLAIN, "vin").output)["denied"] is True


def test_an_example_that_does_not_hold_ends_with_1(schemas):
    edit(schemas / "policies" / "eu.toml", "odometer_km = 128000.0", "odometer_km = 127000.0")
    result = call(schemas, "policy", "test")
    assert result.exit_code == 1
    assert "odometer_km: expected 127000.0, found 128000.0" in result.output
    assert f"{EXAMPLES - 1} of {EXAMPLES} examples as expected" in result.output


def test_a_pack_that_cannot_be_read_is_wrong_use(schemas):
    (schemas / "policies" / "eu.toml").write_text("region = ")
    for arguments in ((*EXPLAIN, "vin"), ("policy", "test")):
        assert isinstance(call(schemas, *arguments).exception, ConfigError)
    checked = call(schemas, "policy", "check")
    assert checked.exit_code == 2
    assert "not TOML" in checked.output
    assert "us-ca" in checked.output


def test_unknown_names_are_wrong_use(schemas):
    for event, field, region in (("x", "vin", "eu"), ("vehicle_telemetry", "x", "eu"),
                                 ("vehicle_telemetry", "vin", "mars")):  # fmt: skip
        result = call(schemas, "policy", "explain", "--event", event, "--field", field, "--region", region)
        assert isinstance(result.exception, ConfigError)


def test_a_basis_that_has_ended_is_told_and_ends_with_2(schemas):
    edit(schemas / "policies" / "uk.toml", "valid_until = 2031-12-27", "valid_until = 2025-12-27")
    result = call(schemas, "policy", "check")
    assert result.exit_code == 2
    assert "transfers.core.valid_until | uk to core | the basis of the transfer" in result.output
    assert "ended with 2025-12-27" in result.output
    assert "mend: name a basis that holds, or take the transfer out" in result.output
    told = call(schemas, *EXPLAIN, "vin")
    assert "ended" not in told.output  # not this region's business


def test_the_record_is_told_for_people_and_for_machines(schemas):
    with (schemas.parent / "pipeline.toml").open("a") as file:
        file.write('[record]\norganisation = "Example Works"\n')
    page = call(schemas, "policy", "record")
    assert page.exit_code == 0, page.output
    assert "Example Works" in page.output
    assert "## eu: European Economic Area, GDPR" in page.output
    for arguments in (("policy", "record", "--json"), ("--json", "policy", "record")):
        assert json.loads(call(schemas, *arguments).output)["controller"]["organisation"] == "Example Works"
