"""Golden outputs: the shipped packs do to known rows, under a known key, exactly what is written down.

``tests/golden/policy_inputs.json`` is written by hand. To accept a change of what leaves:
``POLICY_GOLDEN_WRITE=1 pytest tests/unit/policy/test_policy_golden.py``, then read the difference.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.policy import FileKeyStore, compile_plan, load_packs
from pipeline.policy.root_files import RootName, write_root
from pipeline.policy.standalone import Unasked
from pipeline.policy.wrapping import LocalWrapping
from tests.shared_data import PROJECT
from tests.unit.policy.cases import COLLECTING, EVENTS, POLICIES, to_batch

GOLDEN = PROJECT / "tests" / "golden"
PACKS = load_packs(POLICIES, EVENTS)
INPUTS = json.loads((GOLDEN / "policy_inputs.json").read_text(encoding="utf-8"))
ROOT = bytes(range(32))
WRAPPING = LocalWrapping(bytes(32))


def known_keys(folder: Path, region: str) -> FileKeyStore:
    """A key store whose roots are 00 01 02 … 1f."""
    for purpose in PACKS.pack(region).purposes:
        write_root(folder, RootName(region, purpose), ROOT, WRAPPING)
    return FileKeyStore(folder, WRAPPING)


def outputs(region: str, folder: Path) -> dict[str, Any]:
    """What each event's rows become in the region."""
    found: dict[str, Any] = {}
    for name, rows in INPUTS.items():
        plan = compile_plan(PACKS.terms(region, region), EVENTS[name], known_keys(folder, region))
        applied = plan.apply(to_batch(EVENTS[name].arrow, rows), Unasked())
        found[name] = {
            "kept": applied.kept.tolist(),
            "filtered": {rule: hits.tolist() for rule, hits in applied.filtered.items()},
            "rows": [{key: as_text(value) for key, value in row.items()} for row in readable(applied.batch)],
        }
    return found


def readable(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows without the columns that are null in all of them."""
    return batch.select(
        [c.name for c in batch.schema if batch.column(c.name).null_count < len(batch)]
    ).to_pylist()


def one_row_per_line(found: dict[str, Any]) -> str:
    """JSON in which a changed row is a changed line."""
    parts = []
    for name, event in found.items():
        head = json.dumps({"kept": event["kept"], "filtered": event["filtered"]})[:-1]
        rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in event["rows"])
        parts.append(f'{json.dumps(name)}: {head}, "rows": [\n  {rows}\n]}}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def as_text(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value


@pytest.mark.parametrize("region", COLLECTING)
def test_known_rows_become_what_is_written_down(region, tmp_path):
    file = GOLDEN / f"policy_{region}.json"
    found = outputs(region, tmp_path)
    if os.environ.get("POLICY_GOLDEN_WRITE"):
        file.write_text(one_row_per_line(found), encoding="utf-8")
    assert found == json.loads(file.read_text(encoding="utf-8"))


def test_every_event_has_rows_in_the_golden_files():
    assert set(INPUTS) == set(EVENTS)


def test_a_golden_pseudonym_can_be_made_by_hand():
    """From the root to the pseudonym in three keyed hashes, without the code under test."""
    extracted = hmac.new(bytes(32), ROOT, hashlib.sha256).digest()
    info = b"edge-to-core-pipeline/pseudonym-key/v1\0eu\0maintenance\x002026-q1\0"
    key = hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()
    made = hmac.new(key, b"identifier.device\0gateway-7", hashlib.sha256).hexdigest()[:32]
    golden = json.loads((GOLDEN / "policy_eu.json").read_text(encoding="utf-8"))
    assert golden["vehicle_telemetry"]["rows"][0]["source"] == made
    assert golden["vehicle_telemetry"]["rows"][1]["source"] != made  # one microsecond later, next quarter
    assert golden["machine_reading"]["rows"][0]["source"] == made  # one name in all events of the region


def test_a_driver_and_a_device_of_one_spelling_do_not_share_a_pseudonym():
    golden = json.loads((GOLDEN / "policy_us-ca.json").read_text(encoding="utf-8"))
    row = golden["vehicle_telemetry"]["rows"][4]
    assert row["source"] == row["vin"]
    assert row["driver"] != row["vin"]
