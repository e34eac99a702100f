"""The codec: what comes out was decoded from exactly the bytes of its own record, whatever lies beside it."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.avro import Malformed, canonicaliser, zigzag
from pipeline.codec import Codec
from pipeline.errors import ConfigError
from pipeline.reasons import Reason
from pipeline.schemas import SchemaStore
from tests.unit.schema_samples import (
    SCHEMAS,
    by_fastavro,
    event,
    event_schema,
    every_type,
    locked,
    random_batch,
    tagged,
)

STORE = SchemaStore.load(SCHEMAS)
EVERY = event(every_type())
EVERY_CODEC = Codec(locked(every_type()))
TELEMETRY = STORE.events["vehicle_telemetry"]
TELEMETRY_CODEC = STORE.codec(TELEMETRY.schema_id)
BATCH = random_batch(TELEMETRY, 64, seed=64)
BODIES: list[bytes] = TELEMETRY_CODEC.encode_bare(BATCH).to_pylist()
ENVELOPE = Codec(locked(event_schema()))
HEAD: bytes = ENVELOPE.encode_bare(random_batch(event(event_schema()), 1, seed=1))[0].as_py()


def bodies(values: list[bytes | None]) -> pa.BinaryArray:
    return pa.array(values, pa.binary())


def with_value(avro_type: Any) -> Codec:
    """A codec of the envelope and one field; a datum is HEAD and the field's bytes."""
    return Codec(locked(event_schema(tagged("value", avro_type))))


def decode_one(codec: Codec, datum: bytes) -> Any:
    """The value of the one field, or the reason there is none."""
    batch, good, bad = codec.decode(bodies([datum]))
    assert len(batch) == len(good) == 1 - len(bad)
    return bad[0] if bad else batch.column("value")[0].as_py()


# -- round trips


@pytest.mark.parametrize("name", sorted(STORE.events))
def test_every_event_comes_back_equal_and_in_the_exact_schema(name: str) -> None:
    codec = STORE.codec(STORE.events[name].schema_id)
    batch = random_batch(STORE.events[name], 500, seed=7)
    back, good, bad = codec.decode(codec.encode_bare(batch))
    assert not bad
    assert good.tolist() == list(range(500))
    assert back.schema.equals(STORE.events[name].arrow, check_metadata=True)
    assert back.equals(batch)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), rows=st.integers(0, 40))
def test_every_kind_of_field_comes_back_and_agrees_with_fastavro_byte_by_byte(seed: int, rows: int) -> None:
    batch = random_batch(EVERY, rows, seed)
    encoded = EVERY_CODEC.encode_bare(batch)
    assert encoded.to_pylist() == by_fastavro(every_type(), batch)
    back, good, bad = EVERY_CODEC.decode(encoded)
    assert not bad
    assert len(good) == rows
    assert back.equals(batch)


def test_a_slice_and_a_selection_of_a_batch_encode_like_their_rows() -> None:
    assert TELEMETRY_CODEC.encode_bare(BATCH.slice(5, 3)).to_pylist() == BODIES[5:8]
    chosen = BATCH.take(pa.array([9, 2]))
    assert TELEMETRY_CODEC.encode_bare(chosen).to_pylist() == [BODIES[9], BODIES[2]]
    back, _, bad = TELEMETRY_CODEC.decode(bodies(BODIES).slice(5, 3))
    assert not bad
    assert back.equals(BATCH.slice(5, 3))


def test_nothing_decodes_to_nothing() -> None:
    batch, good, bad = TELEMETRY_CODEC.decode(bodies([]))
    assert (len(batch), len(good), bad) == (0, 0, {})
    assert batch.schema.equals(TELEMETRY.arrow)
    assert len(TELEMETRY_CODEC.encode(BATCH.slice(0, 0))) == 0


def test_extreme_numbers_keep_their_bits() -> None:
    codec = with_value("double")
    for value in (float("inf"), float("-inf"), -0.0, 5e-324, 1.7976931348623157e308):
        assert struct.pack("<d", decode_one(codec, HEAD + struct.pack("<d", value))) == struct.pack(
            "<d", value
        )
    payload = bytes.fromhex("0100000000fff87f")  # a NaN that is not the usual one
    batch, _, bad = codec.decode(bodies([HEAD + payload]))
    assert not bad
    assert batch.column("value").buffers()[1].to_pybytes()[:8] == payload
    longs = with_value("long")
    for number in (-(2**63), 2**63 - 1, -1, 0):
        assert decode_one(longs, HEAD + zigzag(number)) == number


# -- one bad record in a batch


def truncated(body: bytes, draw: random.Random) -> bytes:
    return body[: draw.randrange(len(body))]


def lengthened(body: bytes, draw: random.Random) -> bytes:
    return body + draw.randbytes(draw.randrange(1, 30))


def overwritten(body: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(body))
    return body[:at] + draw.randbytes(draw.randrange(1, 10)) + body[at + 1 :]


def shortened_inside(body: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(body))
    return body[:at] + body[at + draw.randrange(1, 9) :]


def garbage(body: bytes, draw: random.Random) -> bytes:
    return draw.randbytes(draw.randrange(200))


MUTATIONS = [truncated, lengthened, overwritten, shortened_inside, garbage]


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_only_mutated_records_can_be_bad_and_all_others_keep_their_values(seed: int) -> None:
    draw = random.Random(seed)
    values: list[bytes] = list(BODIES)
    touched = set()
    for _ in range(draw.choice([1, 2, 5, 40])):
        row = draw.randrange(len(values))
        values[row] = draw.choice(MUTATIONS)(BODIES[row], draw)
        touched.add(row)
    batch, good, bad = TELEMETRY_CODEC.decode(bodies(values))
    batch.validate(full=True)
    assert sorted([*good.tolist(), *bad]) == list(range(len(values)))
    assert set(bad) <= touched
    where = {row: index for index, row in enumerate(good.tolist())}
    for row in range(len(values)):
        if row not in touched:
            assert batch.slice(where[row], 1).equals(BATCH.slice(row, 1))
        elif row in where:  # it happened to be a datum: then the strict reader gives the same bytes
            again = TELEMETRY_CODEC.encode_bare(batch.slice(where[row], 1))[0].as_py()
            assert again == canonicaliser(TELEMETRY.schema)(values[row])


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_bulk_and_strict_reader_agree_on_every_record_of_nested_types(seed: int) -> None:
    draw = random.Random(seed)
    values: list[bytes] = EVERY_CODEC.encode_bare(random_batch(EVERY, 20, seed)).to_pylist()
    for row in draw.sample(range(20), draw.choice([1, 3, 20])):
        values[row] = draw.choice(MUTATIONS)(values[row], draw)
    batch, good, bad = EVERY_CODEC.decode(bodies(values))
    batch.validate(full=True)
    again = dict(zip(good.tolist(), EVERY_CODEC.encode_bare(batch).to_pylist(), strict=True))
    strict = canonicaliser(every_type())
    for row, value in enumerate(values):
        try:
            expected = strict(value)
        except Malformed:
            assert row in bad
        else:
            assert again[row] == expected


@settings(max_examples=150, deadline=None)
@given(values=st.lists(st.binary(max_size=120), max_size=40))
def test_random_bytes_never_crash_the_decoder(values: list[bytes]) -> None:
    for codec in (TELEMETRY_CODEC, EVERY_CODEC):
        batch, good, bad = codec.decode(bodies(values))
        batch.validate(full=True)
        assert len(batch) == len(good)
        assert len(good) + len(bad) == len(values)


def test_bad_records_at_both_ends_and_in_the_middle() -> None:
    values = [b"", *BODIES[:20], BODIES[0][:-1], *BODIES[20:], BODIES[1] + b"\0", None]
    batch, good, bad = TELEMETRY_CODEC.decode(bodies(values))
    assert bad == dict.fromkeys([0, 21, len(values) - 2, len(values) - 1], Reason.UNDECODABLE)
    assert batch.equals(BATCH)
    assert good.tolist() == [*range(1, 21), *range(22, len(values) - 2)]


def test_a_datum_that_swallows_its_neighbour_leaves_the_neighbour_alone() -> None:
    """The fault bulk decoding is prone to: a string longer than its record reads into the next."""
    columns = [*BATCH.columns[:-1], pa.nulls(len(BATCH), pa.string())]
    unset = pa.RecordBatch.from_arrays(columns, schema=BATCH.schema)
    first, *others = TELEMETRY_CODEC.encode_bare(unset).to_pylist()
    longer = first[:-1] + zigzag(1) + zigzag(len(others[0]))
    batch, good, bad = TELEMETRY_CODEC.decode(bodies([longer, *others]))
    assert list(bad) == [0]
    assert good.tolist() == list(range(1, len(BATCH)))
    assert batch.equals(unset.slice(1))


def test_a_batch_of_nothing_but_bad_records() -> None:
    batch, good, bad = TELEMETRY_CODEC.decode(bodies([b"\xff" * 50] * 200))
    assert (len(batch), len(good)) == (0, 0)
    assert bad == dict.fromkeys(range(200), Reason.UNDECODABLE)


# -- the hostile payloads that other decoders accept, crash on, or take all memory for


@pytest.mark.parametrize(
    ("avro_type", "field"),
    [
        ("int", zigzag(2**40)),
        ("int", zigzag(-(2**31) - 1)),
        ("long", b"\xff" * 9 + b"\x7f"),  # more than 64 bits
        ("long", b"\x80" * 21 + b"\0"),
        ("boolean", b"\x07"),
        ("string", zigzag(-1)),
        ("string", zigzag(2**62)),
        (["null", "long"], zigzag(-1)),
        (["null", "long"], zigzag(2)),
        ({"type": "enum", "name": "K", "symbols": ["A"]}, zigzag(-1)),
        ({"type": "enum", "name": "K", "symbols": ["A"]}, zigzag(1)),
        ({"type": "array", "items": "string"}, zigzag(10**8)),
        ({"type": "array", "items": "double"}, zigzag(2**62)),
        ({"type": "array", "items": "double"}, zigzag(-(2**63)) + zigzag(0)),
        ({"type": "array", "items": "long"}, zigzag(-1) + zigzag(5) + zigzag(3) + b"\0"),  # wrong block size
        ({"type": "array", "items": ["null", "long"]}, zigzag(10**8) + b"\0" * 50),
    ],
)
def test_hostile_bytes_are_undecodable(avro_type: Any, field: bytes) -> None:
    assert decode_one(with_value(avro_type), HEAD + field) is Reason.UNDECODABLE


@pytest.mark.parametrize(
    ("avro_type", "field", "value"),
    [
        ("long", b"\x86\x00", 3),  # a varint with a needless byte
        (["null", "long"], b"\x82\x00" + zigzag(5), 5),
        ({"type": "array", "items": "long"}, zigzag(1) + zigzag(3) + zigzag(1) + zigzag(4) + b"\0", [3, 4]),
        ({"type": "array", "items": "long"}, zigzag(-2) + zigzag(2) + zigzag(3) + zigzag(4) + b"\0", [3, 4]),
    ],
)
def test_unusual_but_valid_encodings_are_read(avro_type: Any, field: bytes, value: Any) -> None:
    assert decode_one(with_value(avro_type), HEAD + field) == value


def test_text_that_is_not_utf8_takes_out_its_row_alone() -> None:
    vin = BATCH.column("vin")[3].as_py().encode()
    values = list(BODIES)
    word = zigzag(len(vin)) + vin
    assert word in values[3]
    values[3] = values[3].replace(word, zigzag(2) + b"\xc3\x28")
    batch, good, bad = TELEMETRY_CODEC.decode(bodies(values))
    assert bad == {3: Reason.UTF8}
    assert 3 not in good
    batch.validate(full=True)
    assert decode_one(with_value("string"), HEAD + zigzag(3) + b"\xed\xa0\x80") is Reason.UTF8  # a surrogate


@pytest.mark.parametrize(
    "avro_type",
    [
        {"type": "array", "items": "string"},
        ["null", {"type": "array", "items": ["null", "string"]}],
        {"type": "record", "name": "R", "fields": [tagged("s", ["null", "string"])]},
        {"type": "array", "items": {"type": "record", "name": "R", "fields": [tagged("s", "string")]}},
    ],
)
def test_text_inside_lists_and_records_takes_out_its_row_alone(avro_type: Any) -> None:
    codec = with_value(avro_type)
    batch = random_batch(event(codec.locked.schema), 60, seed=9)
    values: list[bytes] = codec.encode_bare(batch).to_pylist()
    word = "Zürich".encode()
    broken = {row for row, value in enumerate(values) if word in value}
    assert 0 < len(broken) < 60
    values = [value.replace(word, b"\xff" * len(word)) for value in values]
    back, good, bad = codec.decode(bodies(values))
    assert bad == dict.fromkeys(broken, Reason.UTF8)
    assert back.equals(batch.take(pa.array(good)))


def test_a_time_beyond_the_calendar_comes_out_for_the_checks_to_refuse() -> None:
    codec = with_value({"type": "long", "logicalType": "timestamp-micros"})
    batch, _, bad = codec.decode(bodies([HEAD + zigzag(2**62)]))
    assert not bad
    assert batch.column("value").cast(pa.int64())[0].as_py() == 2**62


def test_the_strict_reader_bounds_memory_by_the_bytes_it_is_given() -> None:
    read = canonicaliser(event_schema(tagged("value", {"type": "array", "items": ["null", "long"]})))
    with pytest.raises(Malformed, match="more items than bytes"):
        read(HEAD + zigzag(10**12) + b"\0" * 100)


# -- what cannot be encoded


def test_a_batch_of_another_shape_is_refused() -> None:
    other = BATCH.rename_columns([*BATCH.schema.names[:-1], "other"])
    with pytest.raises(ConfigError, match="other columns"):
        TELEMETRY_CODEC.encode(other)


def test_nulls_where_the_schema_has_none_are_refused_at_any_depth() -> None:
    index = BATCH.schema.get_field_index("vin")
    holed = BATCH.set_column(index, BATCH.schema.field(index), pa.array([None] * 64, pa.string()))
    with pytest.raises(ConfigError, match="nulls in vin"):
        TELEMETRY_CODEC.encode(holed)
    batch = random_batch(EVERY, 2, 1)
    for name, rows in (("words", [["a", None], []]), ("points", [[{"x": None, "note": "n"}], []])):
        index = batch.schema.get_field_index(name)
        field = batch.schema.field(index)
        with pytest.raises(ConfigError, match=f"nulls in {name}"):
            EVERY_CODEC.encode(batch.set_column(index, field, pa.array(rows, field.type)))


def test_an_unknown_symbol_is_refused_without_quoting_it() -> None:
    meter = STORE.events["meter_reading"]
    batch = random_batch(meter, 1, 1)
    index = batch.schema.get_field_index("tariff")
    secret = batch.set_column(index, batch.schema.field(index), pa.array(["SECRET-VALUE"]))
    with pytest.raises(ConfigError) as caught:
        STORE.codec(meter.schema_id).encode(secret)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_threads_share_a_codec() -> None:
    from concurrent.futures import ThreadPoolExecutor

    parts = [BATCH.slice(i, 8) for i in range(0, 64, 8)]
    with ThreadPoolExecutor(4) as pool:
        results = list(
            pool.map(lambda part: TELEMETRY_CODEC.decode(TELEMETRY_CODEC.encode_bare(part))[0], parts * 5)
        )
    assert all(result.equals(part) for result, part in zip(results, parts * 5, strict=True))
    assert np.all([len(result) == 8 for result in results])
