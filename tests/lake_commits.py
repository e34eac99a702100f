"""Commits of made-up rows to a real store, as a writer would make them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from connectors.lake import Committed, Lake, open_reader
from pipeline.batches import PASSED
from pipeline.config import FlushConfig
from pipeline.store.account import RawPartition, Source, StatsRecord
from pipeline.store.buffer import Buffer, Rows

EVENT = "meter_reading"
CURATED, STATS = Source("c", "eu.curated.meter_reading", "id1", 0), Source("c", "eu.stats", "id2", 0)
RAW = RawPartition("eu.raw.meter_reading", "id3", 0)
DAY_US = 86_400_000_000
SCHEMA = pa.schema(
    [
        ("source", pa.string()), ("event_time", pa.timestamp("us")), ("energy_kwh", pa.float64()),
        ("raw_partition", pa.int32()), ("raw_offset", pa.int64()),
    ]
)  # fmt: skip


def rows(first: int, count: int, days: int = 1) -> pa.RecordBatch:
    """Rows of raw offsets from ``first`` on; every value follows from the offset."""
    offsets = np.arange(first, first + count)
    moment = 1_767_225_600_000_000 + (offsets % days) * DAY_US
    columns = [
        pa.array([f"meter-{i % 7}" for i in range(count)]), pa.array(moment).cast(pa.timestamp("us")),
        pa.array(offsets * 0.5), pa.array(np.zeros(count, np.int32)), pa.array(offsets),
    ]  # fmt: skip
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def gathered(first: int, count: int, days: int = 1) -> Buffer:
    """``count`` rows from raw offset ``first`` on, read from the same curated offsets, and their account."""
    buffer = Buffer(FlushConfig())
    buffer.add_rows(CURATED, Rows(EVENT, [rows(first, count, days)], first + count, 0))
    buffer.advance(CURATED, first, first + count, 0.0)
    record = StatsRecord(RAW, EVENT, first, first + count, {(PASSED, ""): count}, (), "p")
    buffer.add_stats(STATS, [record])
    buffer.advance(STATS, first, first + count, 0.0)
    return buffer


def commit(lake: Lake, first: int, count: int, days: int = 1) -> Committed:
    """Commit such rows to a store that is there up to ``first``."""
    buffer = gathered(first, count, days)
    return lake.commit(buffer.tables(), buffer.account(1), buffer.expected)


def counted(path: Path) -> int:
    """Rows that a reader sees now."""
    with open_reader(path) as reader:
        return reader.query(f"SELECT count(*) AS n FROM {EVENT}")["n"][0].as_py()
