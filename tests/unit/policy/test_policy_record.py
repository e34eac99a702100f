"""The record of processing activities: complete, true to what runs, and the same on every day."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from pipeline.errors import ConfigError
from pipeline.policy import Packs, derived_schemas, load_packs
from pipeline.policy.record import NOT_SAID, processing_record, record_markdown
from tests.unit.policy.cases import COLLECTING, EVENTS, POLICIES, event, pack

PACKS = load_packs(POLICIES, EVENTS)


@dataclass(frozen=True)
class Who:
    organisation: str = "Example Works"
    contact: str = ""
    dpo: str = "dpo@example.org"


RECORD = processing_record(PACKS, EVENTS, PACKS.regions, Who())


def of(region):
    (found,) = (entry for entry in RECORD["regions"] if entry["region"] == region)
    return found


def small_page(changes=None):
    return record_markdown(processing_record(Packs([pack(changes)]), {"small": event()}, ["eu"], Who()))


def test_every_part_that_the_article_asks_for_is_there():
    """GDPR 30(1)(a) to (g): who, what for, whose and which data, to whom, where, how long, how protected."""
    assert RECORD["controller"] == {
        "organisation": "Example Works", "contact": NOT_SAID, "dpo": "dpo@example.org",
    }  # fmt: skip
    for entry in RECORD["regions"]:
        for part in ("purposes", "data", "retention", "measures", "policy_hash", "title"):
            assert entry[part], (entry["region"], part)
        assert all(purpose["legal_basis"] and purpose["meaning"] for purpose in entry["purposes"])
        assert all(kept["source"] and kept["maximum_days"] >= 1 for kept in entry["retention"])


@pytest.mark.parametrize("region", COLLECTING)
def test_what_it_says_is_held_is_what_the_schemas_hold(region):
    schemas = derived_schemas(PACKS, EVENTS)
    landed = [data for data in of(region)["data"] if data["origin"] == region]
    assert {data["event"] for data in landed} == set(EVENTS)
    for data in landed:
        fields = schemas[f"{region}.curated.{data['event']}"]["fields"][:-2]
        assert data["categories_held"] == sorted({tag for f in fields for tag in f["confluent:tags"]})
        assert {f["name"] for f in fields}.isdisjoint(data["left_out"])


def test_transfers_and_recipients_are_those_of_the_packs():
    for region in COLLECTING:
        entry, transfers = of(region), PACKS.pack(region).transfers
        assert entry["recipients"] == sorted(transfers)
        for transfer in entry["transfers"]:
            said = transfers[transfer["to"]]
            assert (transfer["basis"], transfer["source"]) == (said.basis, said.source)
            assert transfer["valid_until"] == str(said.valid_until or "")
    assert of("uk")["transfers"][0]["valid_until"] == "2031-12-27"
    assert {data["origin"] for data in of("core")["data"]} == set(PACKS.origins("core"))


def test_a_deployment_without_the_destination_tells_of_no_transfer_to_it():
    (entry,) = processing_record(PACKS, EVENTS, ["eu"], Who())["regions"]
    assert (entry["transfers"], entry["recipients"]) == ([], [])
    assert {data["origin"] for data in entry["data"]} == {"eu"}


def test_retention_covers_each_jurisdiction_once_per_event():
    for region in COLLECTING:
        entry = of(region)
        for name in EVENTS:
            rows = [row for row in entry["retention"] if row["event"] == name]
            assert sorted(j for row in rows for j in row["jurisdictions"]) == entry["jurisdictions"]


def test_measures_name_the_fields_they_protect():
    measures = {(m["measure"], name) for m in of("eu")["measures"] for name in m["fields"]}
    assert ("pseudonymise", "vehicle_telemetry.vin") in measures
    assert ("coarsen_location", "vehicle_telemetry.latitude") in measures
    assert ("drop", "vehicle_telemetry.driver") in measures
    assert not any(measure == "keep" for measure, _ in measures)


def test_the_same_packs_give_the_same_bytes_and_another_pack_gives_others():
    again = processing_record(load_packs(POLICIES, EVENTS), EVENTS, reversed(PACKS.regions), Who())
    assert record_markdown(again) == record_markdown(RECORD)
    assert json.loads(json.dumps(RECORD)) == RECORD
    assert small_page() == small_page()
    assert small_page() != small_page({("landing", "rules", "special", "source"): "another law"})


def test_the_page_to_the_letter():
    page = small_page({"title": "a pipe | in a title"})
    assert page.startswith("""# Record of processing activities

Generated from the policy packs; engineering input, not legal advice (GDPR 30(1)).

| controller | contact | data protection officer |
| --- | --- | --- |
| Example Works | not configured: [record] in pipeline.toml | dpo@example.org |

## eu: a pipe | in a title

Policy version 2026.1, SHA-256 """)
    for line in (
        "| care | keep it running | a test |",
        "| small | DE, FR | 0 | 30 | a test |",
        "None: nothing leaves this region.",
        "| drop | The field does not leave: no column of it exists at the destination. | - | small.pulse |",
    ):
        assert line in page.splitlines()
    piped = small_page({"purposes.care.meaning": "this | that"})
    assert "| care | this \\| that | a test |" in piped.splitlines()


def test_a_flow_that_does_not_check_has_no_record():
    keep = {"operator": "keep", "source": "a test"}
    weak = Packs([pack({("landing", "rules", "identifier"): keep})])
    with pytest.raises(ConfigError, match=r"leaves identifier\.direct"):
        processing_record(weak, {"small": event()}, ["eu"], Who())
