"""Our record batches against aiokafka's own builder and reader: the same rows both ways, hostile ones too."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from dataclasses import replace

import cramjam
import numpy as np
import pyarrow as pa
import pytest
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors import kafka_records
from connectors.kafka_batch import CODECS, HEADER_BYTES, UnsealedBatch
from connectors.kafka_encode import Columns, batch_bounds, encode_batch
from connectors.kafka_records import BytesCorrupt, Fetched, parse_batches
from pipeline.errors import RecordError

ALL_CODECS = {**CODECS, "snappy": 2}
BOUND = 1 << 20
Row = tuple[int, int, bytes | None, bytes | None]  # offset, timestamp, key, value

_bytes = st.one_of(st.binary(max_size=40), st.binary(min_size=60, max_size=300))
_times = st.integers(0, 2**41)
_some_rows = st.lists(st.tuples(_times, st.none() | _bytes, st.none() | _bytes), min_size=1, max_size=60)
_event_rows = st.lists(st.tuples(_times, st.none(), _bytes), min_size=1, max_size=60)
_keyed_rows = st.lists(st.tuples(_times, _bytes, _bytes), min_size=1, max_size=60)


def asked(offset: int = 0) -> Fetched:
    return Fetched("events", 3, offset, offset)


def parse(data: bytes, offset: int = 0, bound: int = BOUND) -> Fetched:
    fetched, used = parse_batches(memoryview(data), asked(offset), bound)
    assert used <= len(data)
    return fetched


def rows_of(fetched: Fetched) -> list[Row]:
    keys = [None] * len(fetched) if fetched.keys is None else fetched.keys.to_pylist()
    return list(
        zip(
            fetched.offsets.tolist(),
            fetched.timestamps_ms.tolist(),
            keys,
            fetched.values.to_pylist(),
            strict=True,
        )
    )


def rows_by_aiokafka(data: bytes) -> list[Row]:
    batch = DefaultRecordBatch(data)
    assert batch.validate_crc()
    return [(r.offset, r.timestamp, r.key, r.value) for r in batch]


def columns(rows: list[tuple[int, bytes | None, bytes | None]]) -> Columns:
    keys = [key for _, key, _ in rows]
    return Columns(
        pa.array([value for *_, value in rows], pa.binary()),
        pa.array(keys, pa.binary()) if any(key is not None for key in keys) else None,
        np.array([time for time, *_ in rows], np.int64),
    )


def built(rows: list[Row], codec: str = "none", headers: list[tuple[str, bytes]] | None = None) -> bytes:
    """A batch by aiokafka's builder; offsets may have holes."""
    builder = DefaultRecordBatchBuilder(2, ALL_CODECS[codec], 0, -1, -1, -1, 1 << 24)
    for offset, time, key, value in rows:
        assert builder.append(offset, time, key, value, headers or []) is not None
    return bytes(builder.build())


def resealed(data: bytes, **changes: int) -> bytes:
    """The batch with header fields changed and a checksum that holds."""
    at = {"base_offset": (0, ">q"), "magic": (16, ">b"), "attributes": (21, ">h"), "last_delta": (23, ">i")}
    at |= {"max_time": (35, ">q"), "count": (57, ">i")}
    out = bytearray(data)
    for name, value in changes.items():
        struct.pack_into(at[name][1], out, at[name][0], value)
    struct.pack_into(">i", out, 8, len(out) - 12)
    struct.pack_into(">I", out, 17, calc_crc32c(bytes(out[21:])))
    return bytes(out)


def with_records(records: bytes, count: int, attributes: int = 0) -> bytes:
    """A sealed batch around any bytes."""
    return UnsealedBatch(records, attributes, count, 1000, 1000).seal()


@pytest.mark.parametrize("codec", sorted(CODECS))
@given(rows=st.one_of(_some_rows, _event_rows, _keyed_rows))
@settings(max_examples=120, deadline=None)
def test_what_we_write_aiokafka_reads(codec: str, rows: list[tuple[int, bytes | None, bytes | None]]) -> None:
    batch = encode_batch(columns(rows), codec)
    data = batch.seal(7, 1, 42)
    expected = [(offset, *row) for offset, row in enumerate(rows)]
    assert rows_by_aiokafka(data) == expected
    header = DefaultRecordBatch(data)
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (7, 1, 42)
    assert (header.first_timestamp, header.max_timestamp) == (rows[0][0], max(row[0] for row in rows))
    assert header.next_offset == len(rows)
    assert rows_of(parse(data)) == expected


@given(rows=st.one_of(_some_rows, _event_rows, _keyed_rows))
@settings(max_examples=120, deadline=None)
def test_our_bytes_are_those_of_aiokafkas_builder(rows: list[tuple[int, bytes | None, bytes | None]]) -> None:
    theirs = built([(offset, *row) for offset, row in enumerate(rows)])
    assert encode_batch(columns(rows), "none").seal() == theirs


@pytest.mark.parametrize("codec", sorted(ALL_CODECS))
@given(
    rows=st.one_of(_some_rows, _event_rows, _keyed_rows),
    gaps=st.lists(st.integers(1, 300), min_size=60, max_size=60),
    base=st.integers(0, 2**50),
    headers=st.sampled_from([[], [("traceparent", b"00-1"), ("empty", b"")]]),
)
@settings(max_examples=60, deadline=None)
def test_what_others_write_we_read_as_aiokafka_does(codec, rows, gaps, base, headers) -> None:
    offsets = np.cumsum(gaps[: len(rows)]).tolist()
    data = built([(offset, *row) for offset, row in zip(offsets, rows, strict=True)], codec, headers)
    data = resealed(data, base_offset=base)
    fetched = parse(data, base)
    assert rows_of(fetched) == rows_by_aiokafka(data)
    assert fetched.next_offset == DefaultRecordBatch(data).next_offset
    assert fetched.refused == ()


@given(first=st.integers(0, 60), many=st.lists(st.one_of(_some_rows, _event_rows, _keyed_rows), max_size=5))
@settings(max_examples=60, deadline=None)
def test_several_batches_are_joined_and_trimmed_to_the_position(first, many) -> None:
    data, expected, base = b"", [], 0
    for rows in many:
        batch = resealed(encode_batch(columns(rows), "lz4").seal(), base_offset=base)
        data += batch
        expected += rows_by_aiokafka(batch)
        base += len(rows)
    fetched = parse(data, first)
    assert rows_of(fetched) == [row for row in expected if row[0] >= first]
    assert fetched.first_offset == first
    assert fetched.next_offset == max(first, base)


def test_damaged_records_are_read_as_aiokafka_does_or_refused() -> None:
    """Ten thousand damages under a checksum that holds: never other rows than aiokafka's, never a crash."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    refused = read = 0
    for _ in range(10_000):
        keyed = dice.random() < 0.5
        rows: list[Row] = [
            (
                n,
                1000 + n,
                dice.randbytes(dice.randrange(9)) if keyed else None,
                dice.randbytes(dice.randrange(90)),
            )
            for n in range(dice.randrange(1, 12))
        ]
        data = bytearray(built(rows))
        for _ in range(dice.randrange(1, 4)):
            at = dice.randrange(HEADER_BYTES, len(data))
            match dice.randrange(3):
                case 0:
                    data[at] = dice.randrange(256)
                case 1:
                    data[at : at + 1] = b"" if len(data) > HEADER_BYTES + 1 else b"\0"
                case 2:
                    data[at:at] = bytes([dice.choice([0, 1, 0x80, 0xFF])])
        damaged = resealed(bytes(data))
        fetched = parse(damaged)
        assert fetched.next_offset == len(rows)
        try:
            expected = rows_by_aiokafka(damaged)
        except (CorruptRecordException, ValueError, UnicodeDecodeError):
            expected = None
        offsets = [row[0] for row in expected or []]
        if (
            expected is None
            or offsets != sorted(set(offsets))
            or not 0 <= offsets[0] <= offsets[-1] < len(rows)
        ):
            assert fetched.refused[0][:2] == (0, len(rows))
            assert len(fetched) == 0
            refused += 1
        else:
            assert rows_of(fetched) == expected
            read += 1
    assert refused > 1000
    assert read > 1000


def test_padded_varints_do_not_shift_records() -> None:
    """A value length written in two bytes where one suffices, made up for by a shorter neighbour."""
    # Length 9: attributes, time, offset, no key, value length, 3 bytes, no headers.
    plain = b"\x12\0\0\0\x01\x06abc\0"
    padded = b"\x14\0\0\x02\x01\x86\x00abc\0"
    assert rows_of(parse(with_records(plain + padded, 2))) == [
        (0, 1000, None, b"abc"),
        (1, 1000, None, b"abc"),
    ]
    eats_the_end = b"\x12\0\0\0\x01\x06abc\x80"  # its header count would end in the byte after the section
    assert parse(with_records(eats_the_end, 1)).refused == ((0, 1, "records do not fill their batch"),)


@pytest.mark.parametrize("count", [0x7FFFFFFF, 9, -1])
def test_a_false_count_is_refused(count: int) -> None:
    data = resealed(built([(n, 5, None, b"v") for n in range(4)]), count=count)
    assert parse(data).refused == ((0, 4, "records do not fill their batch"),)


def test_offsets_outside_the_batch_are_refused() -> None:
    data = resealed(built([(n, 5, None, b"v") for n in range(4)]), last_delta=2)
    assert parse(data).refused == ((0, 3, "offsets outside their batch"),)


def test_broker_time_is_taken_for_every_record() -> None:
    data = resealed(built([(n, 5 + n, None, b"v") for n in range(4)]), attributes=0x08, max_time=99)
    both = data + resealed(built([(4, 7, None, b"w")]), base_offset=4)
    assert parse(both).timestamps_ms.tolist() == [99, 99, 99, 99, 7]


def test_markers_and_emptied_batches_take_offsets_and_give_no_rows() -> None:
    marker = resealed(built([(0, 5, b"\0\0\0\1", b"\0" * 6)]), attributes=0x20)
    emptied = resealed(with_records(b"", 0), base_offset=1, last_delta=9)
    event = resealed(built([(0, 5, None, b"v")]), base_offset=11)
    fetched = parse(marker + emptied + event)
    assert rows_of(fetched) == [(11, 5, None, b"v")]
    assert fetched.next_offset == 12
    assert parse(marker + emptied).next_offset == 11


def test_keys_are_none_unless_some_record_has_one() -> None:
    bare = built([(0, 5, None, b"v")])
    keyed = resealed(built([(0, 5, b"k", b"w")]), base_offset=1)
    assert parse(bare).keys is None
    assert parse(bare + keyed).keys.to_pylist() == [None, b"k"]


def test_a_cut_off_last_batch_waits_for_the_next_fetch() -> None:
    whole = built([(0, 5, None, b"v")])
    second = resealed(built([(0, 5, None, b"w")]), base_offset=1)
    for cut in range(1, len(second)):
        fetched, used = parse_batches(memoryview(whole + second[:cut]), asked(), BOUND)
        assert (fetched.next_offset, used, len(fetched)) == (1, len(whole), 1)


def test_a_failed_checksum_ends_the_run_before_it_and_is_raised_when_first() -> None:
    good = built([(0, 5, None, b"v" * 50)])
    bad = bytearray(resealed(built([(0, 5, None, b"w" * 50)]), base_offset=1))
    bad[-5] ^= 1
    fetched, used = parse_batches(memoryview(good + bytes(bad)), asked(), BOUND)
    assert (fetched.next_offset, used) == (1, len(good))
    with pytest.raises(BytesCorrupt, match="checksum"):
        parse(bytes(bad), 1)


def test_old_formats_are_not_guessed_at() -> None:
    with pytest.raises(BytesCorrupt, match="magic 2"):
        parse(resealed(built([(0, 5, None, b"v")]), magic=1))


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd", "snappy", "none"])
def test_a_bomb_is_refused_with_its_positions_and_the_rest_is_read(codec: str) -> None:
    before = built([(0, 5, None, b"before")])
    bomb = resealed(built([(0, 5, None, b"\0" * BOUND), (1, 5, None, b"x")], codec), base_offset=1)
    after = resealed(built([(0, 5, None, b"after")]), base_offset=3)
    fetched = parse(before + bomb + after, bound=BOUND // 2)
    assert fetched.values.to_pylist() == [b"before", b"after"]
    assert [(first, stop) for first, stop, _ in fetched.refused] == [(1, 3)]
    assert "batch_decompressed_bytes_max" in fetched.refused[0][2]
    trimmed = parse(before + bomb + after, 2, bound=BOUND // 2)
    assert [(first, stop) for first, stop, _ in trimmed.refused] == [(2, 3)]


def test_a_bomb_takes_no_more_memory_than_the_bound() -> None:
    program = """
import cramjam, resource
from connectors.kafka_batch import UnsealedBatch
from connectors.kafka_records import Fetched, parse_batches
parts = []
for name, codec in (("gzip", 1), ("lz4", 3), ("zstd", 4)):
    packer = getattr(cramjam, name).Compressor()
    for _ in range(256):
        packer.compress(bytes(1 << 20))
    parts.append(UnsealedBatch(bytes(packer.finish()), codec, 1, 0, 0).seal())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for part in parts:
    fetched, _ = parse_batches(memoryview(part), Fetched("t", 0, 0, 0), 8 << 20)
    assert len(fetched.refused) == 1, fetched
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(done.stdout) < 40 * 1024  # KiB; each bomb holds 256 MiB


def test_truncated_and_foreign_compression_is_refused() -> None:
    packed = bytes(cramjam.zstd.compress(b"x" * 5000))
    for codec, body in (
        (4, packed[:-3]),
        (3, packed),
        (1, b""),
        (2, packed),
        (5, packed),
        (2, b"\x82SNAPPY\0" * 3),
    ):
        fetched = parse(with_records(body, 1, codec))
        assert fetched.refused[0][:2] == (0, 1)
        assert str(packed) not in fetched.refused[0][2]


def test_javas_snappy_blocks_are_read() -> None:
    records = b"\x12\0\0\0\x01\x06abc\0" + b"\x12\0\0\x02\x01\x06def\0"
    blocks = [bytes(cramjam.snappy.compress_raw(part)) for part in (records[:7], records[7:])]
    body = b"\x82SNAPPY\0" + struct.pack(">ii", 1, 1)
    body += b"".join(struct.pack(">i", len(block)) + block for block in blocks)
    assert parse(with_records(body, 2, 2)).values.to_pylist() == [b"abc", b"def"]


def test_a_run_ends_early_when_much_was_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_records, "_PARSE_STOP_BYTES", 5000)
    batches = [resealed(built([(0, 5, None, b"v" * 3000)], "zstd"), base_offset=n) for n in range(5)]
    data, position, runs = memoryview(b"".join(batches)), 0, []
    while data:
        fetched, used = parse_batches(data, asked(position), BOUND)
        data, position = data[used:], fetched.next_offset
        runs.append(len(fetched))
    assert runs == [2, 2, 1]


@given(
    sizes=st.lists(st.integers(0, 700), max_size=80),
    key_size=st.none() | st.integers(0, 200),
    spread=st.integers(0, 2**60),
    room=st.integers(1200, 4000),
)
@settings(max_examples=100, deadline=None)
def test_split_batches_stay_within_their_bound_and_keep_the_order(sizes, key_size, spread, room) -> None:
    count = len(sizes)
    rows = Columns(
        pa.array([b"v" * size for size in sizes], pa.binary()),
        None if key_size is None else pa.array([b"k" * key_size] * count, pa.binary()),
        np.linspace(0, spread, count).astype(np.int64)[::-1],
    )
    bounds = batch_bounds(rows, room)
    assert [stop for _, stop in bounds[:-1]] == [start for start, _ in bounds[1:]]
    assert ([bounds[0][0], bounds[-1][1]] if count else bounds) == ([0, count] if count else [])
    values: list[bytes] = []
    for start, stop in bounds:
        data = encode_batch(rows.slice(start, stop), "none").seal()
        assert len(data) <= room
        values += parse(data).values.to_pylist()
    assert values == rows.values.to_pylist()


def test_a_record_that_fits_no_batch_is_refused_before_anything_is_sent() -> None:
    rows = Columns(pa.array([b"fine", b"v" * 5000], pa.binary()))
    with pytest.raises(RecordError, match="expected at most 2939 bytes") as caught:
        batch_bounds(rows, 3000)
    assert caught.value.reason == "oversize"


def test_sliced_columns_are_sent_as_they_look() -> None:
    rows = Columns(
        pa.array([b"a", b"b", b"c", b"d"], pa.binary()), pa.array([b"1", None, b"3", b"4"], pa.binary())
    )
    cut = rows.slice(1, 3)
    fetched = parse(encode_batch(cut, "none").seal())
    assert fetched.values.to_pylist() == [b"b", b"c"]
    assert fetched.keys.to_pylist() == [None, b"3"]


def test_incompressible_rows_are_sent_plain() -> None:
    rows = Columns(pa.array([random.randbytes(400) for _ in range(20)], pa.binary()))
    assert encode_batch(rows, "lz4").attributes == 0


def test_an_empty_answer_moves_nothing() -> None:
    assert parse(b"", 17) == replace(asked(17))
