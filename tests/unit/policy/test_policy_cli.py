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
        (("policy", "check"), "coarsen"),
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
    lines = [line for line in result.output.splitlines() if "| to eu |" in line]
    for place in ("vehicle_telemetry.vin", "vehicle_telemetry.source", "meter_reading.meter"):
        (line,) = (line for line in lines if line.startswith(place))
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
