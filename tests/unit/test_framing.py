"""Frames: the bytes that name the schema, ours and other people's."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.framing import FRAME_BYTES, frame, unframe
from pipeline.schemas import SchemaStore, avro_fingerprint
from tests.shared_data import shared_data
from tests.unit.schema_samples import SCHEMAS, random_batch

STORE = SchemaStore.load(SCHEMAS)


def one(value: bytes | None) -> tuple[int, bytes]:
    ids, bodies = unframe(pa.array([value], pa.binary()))
    return int(ids[0]), bodies[0].as_py()


def test_a_frame_is_a_zero_byte_and_the_id_big_endian() -> None:
    assert frame(1) == b"\0\0\0\0\1"
    assert one(frame(0x01020304) + b"body") == (0x01020304, b"body")
    assert one(frame(2**32 - 1)) == (2**32 - 1, b"")


def test_what_has_no_frame_has_no_id_and_no_body() -> None:
    for value in (None, b"", b"\0\0\0\1", b"\1\0\0\0\1body", b"{json}"):
        assert one(value) == (-1, b"")


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(
        st.one_of(st.none(), st.binary(max_size=12), st.binary(max_size=9).map(lambda b: b"\0" + b))
    )
)
def test_a_batch_unframes_like_its_records(values: list[bytes | None]) -> None:
    whole = pa.array([b"before", *values], pa.binary()).slice(1)
    ids, bodies = unframe(whole)
    for index, value in enumerate(values):
        framed = value is not None and len(value) >= FRAME_BYTES and value[0] == 0
        assert ids[index] == (int.from_bytes(value[1:5], "big") if framed else -1)
        assert bodies[index].as_py() == (value[5:] if framed else b"")


def test_encoded_batches_carry_the_locked_id() -> None:
    event = STORE.events["machine_reading"]
    codec = STORE.codec(event.schema_id)
    batch = random_batch(event, 10, 1)
    ids, bodies = unframe(codec.encode(batch))
    assert ids.tolist() == [event.schema_id] * 10
    assert bodies.equals(codec.encode_bare(batch))


def test_single_object_records_are_read_beside_framed_ones() -> None:
    event = STORE.events["meter_reading"]
    codec = STORE.codec(event.schema_id)
    batch = random_batch(event, 3, 1)
    framed, bare = codec.encode(batch).to_pylist(), codec.encode_bare(batch).to_pylist()
    mark = b"\xc3\x01" + bytes.fromhex(STORE.by_id(event.schema_id).fingerprint)[::-1]
    values = pa.array([framed[0], mark + bare[1], framed[2], b"\xc3\x01unknown!", b"\xc3\x01"], pa.binary())
    ids, bodies = unframe(values, STORE.fingerprints("meter_reading"))
    assert ids.tolist() == [event.schema_id] * 3 + [-1, -1]
    assert codec.decode(bodies.slice(0, 3))[0].equals(batch)
    assert unframe(values)[0].tolist() == [event.schema_id, -1, event.schema_id, -1, -1]


def test_confluent_vectors() -> None:
    for case in json.loads(shared_data("vectors", "confluent_wire.json").read_text())["framing"]:
        schema_id, body = one(bytes.fromhex(case["hex"]))
        assert schema_id == case.get("id", -1)
        if case["name"] == "avro_v0_id":
            assert frame(case["id"]) == bytes.fromhex(case["hex"])
            assert body == b""


def test_single_object_vector_of_the_avro_project() -> None:
    folder = shared_data("vectors", "avro", "data", "messageV1")
    schema = json.loads((folder / "test_schema.avsc").read_text())
    message = (folder / "test_message.bin").read_bytes()
    key = bytes.fromhex(avro_fingerprint(schema))[::-1]
    ids, bodies = unframe(pa.array([message], pa.binary()), {key: 42})
    assert ids.tolist() == [42]
    assert bodies[0].as_py() == message[10:]
    assert bodies[0].as_py().startswith(b"\x54\x08Bill")  # id 42, name Bill
    assert np.issubdtype(ids.dtype, np.int64)
