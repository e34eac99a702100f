"""The bytes on the wire: fixed rows, fixed ids, fixed bytes. A change here breaks every reader out there."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from pipeline.codec import decode_control, encode_control, unframe
from pipeline.schemas import SchemaStore
from tests.unit.schema_samples import SCHEMAS

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "wire.json").read_text(encoding="utf-8"))
STORE = SchemaStore.load(SCHEMAS)
TIMES = ("event_time", "received_time")


def batch_of(name: str) -> pa.RecordBatch:
    rows = [case["row"] for case in GOLDEN["events"][name]]
    schema = STORE.events[name].arrow
    return pa.RecordBatch.from_arrays(
        [pa.array([r[f.name] for r in rows], f.type) for f in schema], schema=schema
    )


def test_every_event_and_control_record_has_its_bytes_on_file() -> None:
    assert GOLDEN["events"].keys() == STORE.events.keys()
    control = {subject for subject in STORE.subjects() if subject.startswith("control.")}
    assert {f"control.{name}" for name in GOLDEN["control"]} == control


@pytest.mark.parametrize("name", sorted(GOLDEN["events"]))
def test_events_encode_to_the_bytes_on_file_and_back(name: str) -> None:
    codec = STORE.codec(STORE.events[name].schema_id)
    expected = [case["hex"] for case in GOLDEN["events"][name]]
    assert [value.hex() for value in codec.encode(batch_of(name)).to_pylist()] == expected
    ids, bodies = unframe(pa.array([bytes.fromhex(h) for h in expected], pa.binary()))
    assert set(ids.tolist()) == {STORE.events[name].schema_id}
    batch, _, bad = codec.decode(bodies)
    assert not bad
    assert batch.equals(batch_of(name))


@pytest.mark.parametrize("name", sorted(GOLDEN["events"]))
def test_another_implementation_reads_the_bytes_on_file(name: str) -> None:
    schema = fastavro.parse_schema(json.loads(json.dumps(STORE.events[name].schema)))
    for case in GOLDEN["events"][name]:
        record = fastavro.schemaless_reader(io.BytesIO(bytes.fromhex(case["hex"])[5:]), schema, None)
        assert micros(record) == case["row"]


@pytest.mark.parametrize("name", sorted(GOLDEN["events"]))
def test_a_stock_confluent_client_writes_and_reads_the_same(name: str) -> None:
    """Its registry stands in memory; it takes our tags and attributes; the id alone differs."""
    registry = SchemaRegistryClient.new_client({"url": f"mock://{name}"})
    text = json.dumps(STORE.events[name].schema)
    context = SerializationContext(name, MessageField.VALUE)
    registry.register_schema(f"{name}-value", Schema(text, "AVRO"))
    write = AvroSerializer(registry, text, conf={"auto.register.schemas": False})
    read = AvroDeserializer(registry)
    for case in GOLDEN["events"][name]:
        theirs, ours = write(case["row"], context), bytes.fromhex(case["hex"])
        assert theirs[0] == ours[0] == 0
        assert theirs[5:] == ours[5:]
        assert micros(read(theirs[:5] + ours[5:], context)) == case["row"]


@pytest.mark.parametrize("name", sorted(GOLDEN["control"]))
def test_control_records_encode_to_the_bytes_on_file_and_back(name: str) -> None:
    for case in GOLDEN["control"][name]:
        assert encode_control(STORE, name, case["row"]).hex() == case["hex"]
        assert decode_control(STORE, bytes.fromhex(case["hex"])) == (name, case["row"])


def micros(record: Any) -> dict[str, Any]:
    """The record with its times as µs: other libraries hand out datetimes."""
    times = {name: round(record[name].timestamp() * 10**6) for name in TIMES}
    return record | times
