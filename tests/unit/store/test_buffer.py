"""One commit's worth: when it leaves, and that rows and account say the same."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipeline.batches import PASSED
from pipeline.config import FlushConfig
from pipeline.errors import ConfigError
from pipeline.store.account import ACCOUNT_SCHEMA, RawPartition, Source, StatsRecord
from pipeline.store.buffer import Buffer, Rows

CURATED = Source("c", "eu.curated.e", "id", 1)
STATS = Source("c", "eu.stats", "id2", 1)
RAW = RawPartition("eu.raw.e", "id3", 1)


def batch(count: int, **columns: pa.Array) -> pa.RecordBatch:
    return pa.record_batch({"raw_offset": pa.array(range(count), pa.int64()), **columns})


def stats(first: int, next_: int, policy: str = "p") -> StatsRecord:
    return StatsRecord(RAW, "e", first, next_, {(PASSED, ""): next_ - first}, (), policy)


@pytest.mark.parametrize(
    ("rows", "size", "at_s", "trigger"),
    [(10, 65_536, 0.5, None), (10, 65_536, 1.0, "age"), (100, 65_536, 0.0, "rows"), (99, 65_536, 0.0, None)],
)
def test_whichever_comes_first(rows, size, at_s, trigger):
    buffer = Buffer(FlushConfig(age_s=1.0, rows=100, bytes=size))
    assert not buffer
    assert buffer.trigger(1e9) is None
    buffer.add_rows(CURATED, Rows("e", [batch(rows)], rows, 0))
    buffer.advance(CURATED, 0, rows, 50.0)
    assert buffer.trigger(50.0 + at_s) == trigger


def test_bytes_trigger_and_stats_weigh_too():
    buffer = Buffer(FlushConfig(rows=10**9, bytes=65_536))
    for first in range(0, 2000, 10):
        buffer.add_stats(STATS, [stats(first, first + 10)])
    assert buffer.full
    assert buffer.trigger(0.0) == "bytes"


def test_age_counts_from_the_first_of_the_buffer():
    buffer = Buffer(FlushConfig(age_s=1.0))
    buffer.advance(CURATED, 0, 1, 10.0)
    buffer.advance(CURATED, 1, 2, 10.9)
    assert buffer.trigger(11.0) == "age"


def test_account_rows_carry_positions_rows_and_ranges():
    buffer = Buffer(FlushConfig())
    buffer.add_rows(CURATED, Rows("e", [batch(3), batch(2)], 12, 4))
    buffer.advance(CURATED, 5, 9, 0.0)
    buffer.advance(CURATED, 9, 14, 0.0)
    buffer.add_stats(STATS, [stats(0, 10), stats(10, 15)])
    buffer.advance(STATS, 0, 2, 0.0)
    table = buffer.account(1)
    assert table.schema.equals(ACCOUNT_SCHEMA)
    rows, applied = table.to_pylist()
    assert (rows["next_position"], rows["row_count"], rows["repeat_rows"], rows["next_raw_offset"]) == (
        14,
        5,
        4,
        12,
    )
    assert (applied["first_accounted"], applied["next_accounted"], applied["passed"]) == (0, 15, 15)
    assert buffer.expected == {CURATED: 5, STATS: 0}
    assert len(buffer.tables()["e"]) == 5


def test_a_source_that_only_moved_is_told_as_well():
    buffer = Buffer(FlushConfig())
    buffer.add_stats(STATS, [])
    buffer.advance(STATS, 3, 4, 0.0)
    (row,) = buffer.account(1).to_pylist()
    assert (row["kind"], row["next_position"], row["raw_topic"]) == ("stats", 4, None)


def test_policies_that_take_turns_keep_their_own_ranges():
    buffer = Buffer(FlushConfig())
    buffer.add_stats(STATS, [stats(0, 5, "a"), stats(5, 7, "b"), stats(7, 9, "a"), stats(9, 12, "a")])
    buffer.advance(STATS, 0, 4, 0.0)
    ranges = [
        (r["first_accounted"], r["next_accounted"], r["policy_hash"]) for r in buffer.account(1).to_pylist()
    ]
    assert sorted(ranges) == [(0, 5, "a"), (5, 7, "b"), (7, 12, "a")]


def test_two_schema_versions_share_a_table_and_conflicting_types_do_not():
    buffer = Buffer(FlushConfig())
    buffer.add_rows(CURATED, Rows("e", [batch(2), batch(1, extra=pa.array([1.5]))], 3, 0))
    assert buffer.tables()["e"]["extra"].to_pylist() == [None, None, 1.5]
    buffer.add_rows(CURATED, Rows("e", [batch(1, extra=pa.array(["text"]))], 4, 0))
    with pytest.raises(ConfigError, match="different types"):
        buffer.tables()
