"""The plan: deterministic, complete, and stopping rather than passing."""

from __future__ import annotations

import json
import random
import struct
import traceback
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyruhvro
import pytest
from fastavro import parse_schema
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, TransientError
from pipeline.events import arrow_schema
from pipeline.policy import (
    OPERATORS,
    FileKeyStore,
    Plan,
    check_flow,
    compile_plan,
    create_keys,
    derived_schemas,
    load_packs,
)
from pipeline.policy.standalone import Unasked
from pipeline.policy.wrapping import LocalWrapping
from tests.unit.policy.cases import (
    COLLECTING,
    EVENTS,
    NOW_US,
    POLICIES,
    SMALL_FIELDS,
    Keys,
    event,
    pack,
    small_batch,
    terms,
)

PACKS = load_packs(POLICIES, EVENTS)
FLOWS = [(region, name) for region in COLLECTING for name in sorted(EVENTS)]
MONTH_US = 31 * 86_400_000_000


def small_plan(keys=None, changes=None):
    return compile_plan(terms(changes), event(), keys or Keys(), now_us=NOW_US)


def random_batch(of, rows, rng):
    """Any values of the right types; identifiers that no hex text contains."""
    columns = []
    for field, column in zip(of.fields, of.arrow, strict=True):
        if pa.types.is_timestamp(column.type):
            values = [NOW_US + rng.randrange(MONTH_US * 4) * 1 + 1 for _ in range(rows)]
        elif field.symbols:
            values = [rng.choice(field.symbols) for _ in range(rows)]
        elif pa.types.is_string(column.type):
            values = [f"ID:{field.name}:{rng.randrange(10**9)}" for _ in range(rows)]
        elif pa.types.is_boolean(column.type):
            values = [rng.random() < 0.5 for _ in range(rows)]
        else:
            low, high = field.minimum or 0, field.maximum or 2**40
            values = [rng.uniform(low, high) for _ in range(rows)]
            if pa.types.is_integer(column.type):
                values = [int(v) for v in values]
        if field.nullable:
            values = [None if rng.random() < 0.3 else v for v in values]
        kind = pa.int64() if pa.types.is_timestamp(column.type) else column.type
        columns.append(pa.array(values, kind).cast(column.type))
    return pa.RecordBatch.from_arrays(columns, schema=of.arrow)


def as_bytes(batch):
    """The whole batch as it would be written, uncompressed."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


# --- what leaves


@pytest.mark.parametrize(("region", "name"), FLOWS)
def test_nothing_that_a_rule_took_away_is_in_the_bytes_that_leave(region, name):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    batch = random_batch(EVENTS[name], 300, random.Random(seed))
    plan = compile_plan(PACKS.terms(region, region), EVENTS[name], Keys())
    applied = plan.apply(batch, Unasked())
    assert len(applied.batch) > 0
    written = as_bytes(applied.batch)
    flow = check_flow(PACKS.terms(region, region), EVENTS[name])
    searched = 0
    for decision in flow.decisions:
        if decision.operator.name == "keep":
            continue
        for field in decision.fields:
            column = batch.column(field.name)
            for value in column.drop_null().unique().to_pylist():
                if isinstance(value, str):
                    assert value.encode() not in written, field.name
                    searched += 1
                elif isinstance(value, float) and decision.operator.name in ("coarsen_location", "drop"):
                    assert struct.pack("<d", value) not in written, field.name
                    searched += 1
            if decision.operator.name == "truncate_time":
                for value in column.cast(pa.int64()).to_pylist():
                    assert struct.pack("<q", value) not in written, field.name
                    searched += 1
    assert searched > 300


@pytest.mark.parametrize(("region", "name"), FLOWS)
def test_a_plan_gives_exactly_the_columns_of_its_schema(region, name):
    plan = compile_plan(PACKS.terms(region, region), EVENTS[name], Keys())
    schema = plan.schema
    parse_schema(json.loads(json.dumps(schema)))
    assert schema["namespace"] == f"pipeline.curated.{region.replace('-', '_')}"
    assert schema["name"] == name
    assert [(f["name"], f["type"]) for f in schema["fields"][-2:]] == [
        ("raw_partition", "int"),
        ("raw_offset", "long"),
    ]
    assert all(f["doc"] for f in schema["fields"])
    columns = check_flow(PACKS.terms(region, region), EVENTS[name]).columns
    expected = [(d.output, sorted(d.result)) for d in columns]
    expected += [("raw_partition", ["transport"]), ("raw_offset", ["transport"])]
    assert [(f["name"], f["confluent:tags"]) for f in schema["fields"]] == expected
    assert derived_schemas(PACKS, EVENTS)[f"{region}.curated.{name}"] == schema
    whole = arrow_schema(schema)
    assert pa.schema(pyruhvro.avro_to_arrow_schema(json.dumps(schema))).equals(whole)
    result = plan.transform(random_batch(EVENTS[name], 20, random.Random(1)))
    assert result.schema.equals(pa.schema(list(whole)[:-2]))
    numbers = [pa.array(np.zeros(20), whole.field(name).type) for name in ("raw_partition", "raw_offset")]
    framed = pa.RecordBatch.from_arrays([*result.columns, *numbers], schema=whole)
    assert len(pyruhvro.serialize_record_batch(framed, json.dumps(schema), 1)[0]) == 20


def test_ranges_and_units_follow_what_the_operator_did():
    changes = {"landing.events": {"small": {"fields": {
        "load": {"operator": "generalise_number", "with": {"step": 100.0}, "source": "a test"},
        "count": {"operator": "generalise_number", "with": {"step": 10}, "source": "a test"}}}}}  # fmt: skip
    fields = {f["name"]: f for f in small_plan(changes=changes).schema["fields"]}
    assert (fields["load"]["unit"], fields["load"]["minimum"], fields["load"]["maximum"]) == (
        "kg",
        0.0,
        900.0,
    )
    assert (fields["count"]["minimum"], fields["count"]["maximum"]) == (-10, 90)
    assert isinstance(fields["count"]["minimum"], int)
    assert fields["location_cell"]["type"] == ["null", "long"]
    assert "role" not in fields["location_cell"]
    assert fields["load"]["doc"] == "The load. [generalise_number: lower end of a step of 100; a test]"


@settings(max_examples=30)
@given(st.lists(st.integers(0, MONTH_US * 3), max_size=20), st.integers(0, 20))
def test_the_cut_between_batches_does_not_matter(times, cut):
    rows = [
        {"event_time": NOW_US + t, "source": f"s{i % 3}", "person": f"p{i % 2}"} for i, t in enumerate(times)
    ]
    batch = small_batch(rows)
    whole = small_plan().transform(batch)
    plan = small_plan()
    parts = [plan.transform(part) for part in (batch.slice(0, cut), batch.slice(cut))]
    assert pa.Table.from_batches(parts).equals(pa.Table.from_batches([whole]))


def test_an_empty_batch_gives_an_empty_batch():
    applied = small_plan().apply(small_batch([]))
    assert len(applied.batch) == 0
    assert applied.batch.schema.equals(small_plan().arrow)


def test_rows_are_filtered_before_they_are_transformed_and_named_by_their_filter():
    filters = [
        {"name": "busy", "drop_when": [{"field": "phase", "op": "==", "value": "busy"}], "source": "a test"},
        {"name": "heavy", "drop_when": [{"field": "load", "op": ">", "value": 9}], "source": "a test"},
    ]
    changes = {"landing.events": {"small": {"filters": filters}}}
    rows = [{"load": 1.0}, {"load": 10.0, "phase": "busy"}, {"load": 10.0}, {"load": 2.0}, {"phase": "busy"}]
    applied = small_plan(changes=changes).apply(small_batch(rows))
    assert applied.kept.tolist() == [0, 3]
    assert {name: found.tolist() for name, found in applied.filtered.items()} == {
        "busy": [1, 4],
        "heavy": [2],
    }
    assert applied.batch.column("load").to_pylist() == [1.0, 2.0]
    assert applied.kept.dtype == np.int64
    assert applied.filtered["busy"].dtype == np.int64


def test_the_policy_hash_is_the_packs():
    assert small_plan().policy_hash == pack().hash
    assert small_plan().region == "eu"


# --- keys


def test_a_plan_asks_for_the_current_epochs_keys_before_the_first_batch():
    keys = Keys()
    small_plan(keys)
    assert keys.asked == [("eu", "care", "2026-01")]
    with pytest.raises(ConfigError, match="no key here"):
        small_plan(Keys(frozenset({"2026-01"})))


def test_a_missing_key_of_another_epoch_stops_the_batch_and_passes_nothing():
    plan = small_plan(Keys(frozenset({"2026-02"})))
    plan.transform(small_batch([{}]))
    with pytest.raises(ConfigError, match="no key here"):
        plan.transform(small_batch([{}, {"event_time": NOW_US + MONTH_US}]))


def test_a_key_that_is_too_short_to_be_one_is_refused():
    class Short(Keys):
        def key(self, region, purpose, epoch):
            return b"short"

    with pytest.raises(ConfigError, match="expected a key of 256 bits or more, got 40"):
        small_plan(Short())


def test_a_key_store_that_is_away_for_a_moment_is_not_taken_for_a_fault():
    class Away(Keys):
        def key(self, region, purpose, epoch):
            if epoch != "2026-01":
                raise TransientError("no answer", operation="key store")
            return super().key(region, purpose, epoch)

    with pytest.raises(TransientError):
        small_plan(Away()).transform(small_batch([{"event_time": NOW_US + MONTH_US}]))


def test_a_plan_without_pseudonyms_needs_no_key():
    fields = [f for f in SMALL_FIELDS if f["name"] not in ("source", "person")]
    plan = compile_plan(terms(), event(fields=fields), Keys(frozenset({"2026-01"})), now_us=NOW_US)
    assert len(plan.transform(small_batch([{}], event(fields=fields)))) == 1


def test_keys_from_files_serve_a_plan(tmp_path):
    wrapping = LocalWrapping(bytes(32))
    create_keys(tmp_path, "eu", PACKS.pack("eu").purposes, wrapping)
    of = EVENTS["machine_reading"]
    batch = random_batch(of, 10, random.Random(2))
    plans = [compile_plan(PACKS.terms("eu", "eu"), of, FileKeyStore(tmp_path, wrapping)) for _ in range(2)]
    first, second = (plan.transform(batch) for plan in plans)
    assert first.equals(second)
    assert all(len(text) == 32 and int(text, 16) >= 0 for text in first.column("source").to_pylist())


# --- stopping


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 91.25])
def test_a_value_an_operator_cannot_work_on_stops_the_batch_without_showing_it(value):
    batch = small_batch([{"latitude": 1.0, "longitude": 1.0}, {"latitude": value, "longitude": 2.0}])
    with pytest.raises(ConfigError) as caught:
        small_plan().apply(batch)
    assert "apply policy at eu to eu, small: coarsen_location on latitude: failed (ValueError)" in str(
        caught.value
    )
    shown = "".join(traceback.format_exception(caught.value))
    assert "91.25" not in shown
    assert "got NaN" not in shown
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


def test_a_batch_of_another_schema_is_refused():
    batch = small_batch([{}])
    for other in (batch.select(batch.schema.names[::-1]), batch.drop_columns(["pulse"])):
        with pytest.raises(ConfigError, match="does not have the schema this plan was compiled for"):
            small_plan().apply(other)


@pytest.mark.parametrize("index", range(5))
def test_a_plan_whose_operator_was_swapped_after_the_check_passes_nothing(index):
    """The second of the pair: even with the type check out of the way, the plan looks at what leaves."""
    flow = check_flow(terms(), event())
    decision = flow.decisions[index]
    weak = replace(decision, operator=OPERATORS["keep"], output=decision.fields[0].name)
    mutant = replace(flow, decisions=(*flow.decisions[:index], weak, *flow.decisions[index + 1 :]))
    plan = Plan(mutant, Keys())
    with pytest.raises(ConfigError, match="has a tag that eu may not hold"):
        plan.transform(small_batch([{"person": "someone", "latitude": 1.0, "longitude": 1.0}]))


def test_an_operator_that_gives_another_type_or_length_or_null_passes_nothing():
    for wrong in (
        lambda columns, parameters, context: columns[0].cast(pa.int64()).cast(pa.string()),
        lambda columns, parameters, context: columns[0].slice(1),
        lambda columns, parameters, context: pa.nulls(len(columns[0]), columns[0].type),
    ):
        flow = check_flow(terms(), event())
        broken = replace(flow.decisions[1], operator=replace(flow.decisions[1].operator, run=wrong))
        plan = Plan(replace(flow, decisions=(flow.decisions[0], broken, *flow.decisions[2:])), Keys())
        with pytest.raises(ConfigError, match="nothing of this batch has passed"):
            plan.transform(small_batch([{}, {}]))


def test_operators_that_lose_a_row_together_pass_nothing():
    def shorter(run):
        return lambda columns, parameters, context: run(columns, parameters, context).slice(1)

    flow = check_flow(terms(), event())
    lossy = tuple(
        replace(d, operator=replace(d.operator, run=shorter(d.operator.run))) if d.output else d
        for d in flow.decisions
    )
    with pytest.raises(ConfigError, match="columns or rows differ from what was compiled"):
        Plan(replace(flow, decisions=lossy), Keys()).transform(small_batch([{}, {}]))
