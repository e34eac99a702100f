"""A border makes a pseudonym anew: under the destination's key, in a domain that no identifier has."""

from __future__ import annotations

import hmac

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.plan import compile_plan
from pipeline.policy.terms import landing_terms
from pipeline.policy.typecheck import check_flow
from tests.unit.policy.cases import NOW_US, TIMESTAMP, Keys, event, field, pack

RULE = {"operator": "pseudonymise", "with": {"purpose": "care"}, "source": "a test"}
REMADE = {("landing", "rules", "pseudonym"): RULE, ("landing", "rules", "time.coarse"): {
    "operator": "keep", "source": "a test"}}  # fmt: skip
TIME = field("event_time", TIMESTAMP, "time.coarse", unit="us")
NAMES = st.text(st.characters(codec="ascii"), max_size=8)


def made(tag, values):
    kind = event(fields=[field("who", ["null", "string"], tag), TIME])
    plan = compile_plan(landing_terms(pack(REMADE)), kind, Keys(), now_us=NOW_US)
    times = pa.array([NOW_US] * len(values), pa.int64()).cast(pa.timestamp("us"))
    batch = pa.RecordBatch.from_arrays([pa.array(values, pa.string()), times], schema=kind.arrow)
    return plan.apply(batch).batch.column("who").to_pylist()


@given(st.lists(st.one_of(st.none(), NAMES), max_size=8))
def test_the_domain_is_what_was_discharged(values):
    key = Keys().key("eu", "care", "2026-01")
    for tag in ("pseudonym", "identifier.device", "identifier.direct"):
        defined = [
            None if v is None else hmac.digest(key, f"{tag}\0{v}".encode(), "sha256").hex()[:32]
            for v in values
        ]
        assert made(tag, values) == defined


@given(NAMES)
def test_a_pseudonym_and_an_identifier_of_one_spelling_share_nothing(name):
    assert len({made(tag, [name])[0] for tag in ("pseudonym", "identifier.device", "identifier.direct")}) == 3


def test_the_result_is_said_to_be_a_pseudonym_and_nothing_else():
    kind = event(fields=[field("who", "string", "pseudonym"), TIME])
    (who, _) = check_flow(landing_terms(pack(REMADE)), kind).columns
    assert who.result == {"pseudonym"}
    assert who.taken == {"pseudonym"}
