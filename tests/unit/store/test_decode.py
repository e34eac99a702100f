"""Curated records to rows, each raw position once; what is not our own output stops the store."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.control_records import encode_control
from pipeline.errors import ConfigError, StoreCorrupt
from pipeline.store.decode import Curated, Decoder
from tests.store_world import REGION, TOPICS, Run_, World, curated_rows, stats_value

EVENT = "meter_reading"
SOURCE = Curated(TOPICS.landing(REGION), EVENT)
WORLD = World(0, raw_count=0)
CODEC = WORLD.codec(EVENT)


def decoder(door=lambda schema_id: None) -> Decoder:
    return Decoder(WORLD.schemas, door)


def fetched(offsets: list[int], first: int = 0, partition: int = 0) -> Run_:
    values = CODEC.encode(curated_rows(CODEC, partition, np.array(offsets, np.int64)))
    return Run_("t", 0, first, first + len(offsets), values)


def stored(rows) -> list[int]:
    return [offset for batch in rows.batches for offset in batch["raw_offset"].to_pylist()]


@settings(max_examples=60)
@given(st.sets(st.integers(0, 60), min_size=1), st.integers(0, 2**32))
def test_prefix_closed_repeats_are_skipped_exactly(positions, seed):
    """Instances start anywhere below what is delivered and go on from there, as the log allows."""
    passing, chance = sorted(positions), random.Random(seed)
    log: list[int] = []
    reached = 0
    while reached < len(passing):
        start = chance.randint(0, reached)
        end = chance.randint(start, len(passing))
        log += passing[start:end]
        reached = max(reached, end)
    cuts = sorted({0, len(log), *(chance.randint(0, len(log)) for _ in range(4))})
    found, next_raw, repeats = [], 0, 0
    for first, end in pairwise(cuts):
        rows = decoder().rows(SOURCE, fetched(log[first:end], first), next_raw)
        found += stored(rows)
        repeats += rows.repeats
        next_raw = rows.next_raw_offset
    assert found == passing
    assert repeats == len(log) - len(passing)
    assert next_raw == passing[-1] + 1


def test_rows_come_out_as_they_went_in():
    rows = decoder().rows(SOURCE, fetched([3, 4, 9]), 0)
    assert (
        pa.Table.from_batches(rows.batches)
        .to_batches()[0]
        .equals(curated_rows(CODEC, 0, np.array([3, 4, 9])))
    )


def test_nothing_fetched_is_nothing():
    rows = decoder().rows(SOURCE, Run_("t", 0, 5, 7, pa.array([], pa.binary())), 11)
    assert (rows.count, rows.next_raw_offset) == (0, 11)


def test_the_door_is_asked_once_per_schema_and_its_word_counts():
    asked: list[int] = []
    one = decoder(asked.append)
    one.rows(SOURCE, fetched([0, 1]), 0)
    one.rows(SOURCE, fetched([2]), 2)
    assert asked == [CODEC.locked.id]

    def refuse(schema_id: int) -> None:
        raise ConfigError("this region may not hold location.precise")

    with pytest.raises(ConfigError, match=r"location\.precise"):
        decoder(refuse).rows(SOURCE, fetched([0]), 0)


def framed(schema_id: int, body: bytes = b"\x00") -> bytes:
    return b"\0" + schema_id.to_bytes(4, "big") + body


RAW_ID = WORLD.schemas.latest(EVENT).id
OTHER_REGION_ID = WORLD.schemas.latest(f"br.curated.{EVENT}").id


@pytest.mark.parametrize(
    ("value", "error", "problem"),
    [
        (b"", StoreCorrupt, "no frame"),
        (b"secret", StoreCorrupt, "no frame"),
        (framed(CODEC.locked.id, b"secret"), StoreCorrupt, "cannot be decoded"),
        (framed(RAW_ID), StoreCorrupt, "expected schemas of eu.curated.meter_reading"),
        (framed(OTHER_REGION_ID), StoreCorrupt, "expected schemas of eu.curated.meter_reading"),
        (framed(99_999), ConfigError, "99999 is not in the lock"),
        (None, StoreCorrupt, "without a value"),
    ],
)
def test_what_is_not_a_curated_record_stops_the_store(value, error, problem):
    good = fetched([0]).values.to_pylist()
    with pytest.raises(error, match=problem) as caught:
        decoder().rows(SOURCE, Run_("t", 0, 0, 2, pa.array([*good, value], pa.binary())), 0)
    assert "secret" not in str(caught.value)


def test_a_row_of_another_partition_stops_the_store():
    with pytest.raises(StoreCorrupt, match="raw_partition"):
        decoder().rows(SOURCE, fetched([0], partition=1), 0)


def test_batches_the_reader_refused_stop_the_store():
    with pytest.raises(StoreCorrupt, match="refused"):
        decoder().rows(SOURCE, Run_("t", 0, 0, 2, pa.array([], pa.binary()), [(0, 2, "oversize")]), 0)


def stats(*values: bytes) -> Run_:
    return Run_("s", 0, 0, len(values), pa.array(values, pa.binary()))


def stats_record(first: int, next_: int, topic_id: str | None = None) -> bytes:
    raw = WORLD.raw(EVENT, 0)
    value = stats_value(raw, EVENT, (first, next_), {("passed", ""): next_ - first}, [])
    return encode_control(WORLD.schemas, "stats", {**value, "raw_topic_id": topic_id or raw.topic_id})


def test_stats_move_the_account_on_and_are_applied_once():
    accounted: dict = {}
    first = decoder().stats(stats(stats_record(0, 5), stats_record(3, 9)), accounted)
    assert [(r.first, r.next, r.passed) for r in first] == [(0, 5, 5), (5, 9, 4)]
    assert decoder().stats(stats(stats_record(3, 9)), accounted) == []
    assert accounted == {WORLD.raw(EVENT, 0): 9}


def test_a_recreated_raw_topic_stops_the_store():
    accounted = {WORLD.raw(EVENT, 0): 9}
    with pytest.raises(StoreCorrupt, match="recreated"):
        decoder().stats(stats(stats_record(0, 5, "another-id")), accounted)


@pytest.mark.parametrize("value", [b"", b"junk", framed(RAW_ID, b"\x00" * 40)])
def test_an_unreadable_stats_record_stops_the_store(value):
    with pytest.raises(StoreCorrupt):
        decoder().stats(stats(value), {})


def test_another_control_record_is_not_stats():
    value = encode_control(WORLD.schemas, "watermark_entry", {"sequence": 1})
    with pytest.raises(StoreCorrupt, match="expected stats records, found watermark_entry"):
        decoder().stats(stats(value), {})


CROSSED = Curated(TOPICS.border("eu", "core"), EVENT)
CROSSED_CODEC = WORLD.schemas.codec(WORLD.schemas.latest(CROSSED.subject).id)


def crossed(origins: list[str]) -> Run_:
    """Rows over the border from eu that say to come from there, or from elsewhere."""
    batch = curated_rows(CROSSED_CODEC, 0, np.arange(len(origins)))
    index = batch.schema.get_field_index("origin")
    batch = batch.set_column(index, batch.schema.field(index), pa.array(origins))
    return Run_("t", 0, 0, len(origins), CROSSED_CODEC.encode(batch))


def test_what_crossed_is_stored_where_it_says_its_leg_s_origin():
    assert stored(decoder().rows(CROSSED, crossed(["eu"] * 3), 0)) == [0, 1, 2]
    with pytest.raises(StoreCorrupt, match="origin is not the leg's"):
        decoder().rows(CROSSED, crossed(["eu", "br", "eu"]), 0)


def test_rows_of_a_landing_do_not_come_over_a_border():
    with pytest.raises(StoreCorrupt, match=r"expected schemas of core\.curated"):
        decoder().rows(CROSSED, fetched([0]), 0)
