"""Raw events as an edge would send them, without an edge: for tests that begin at the raw topic."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline.demo.fleet import Fleet, FleetSize
from pipeline.schemas import SchemaStore

SPOOL = 7_000_000_001


def raw_batch(
    schemas: SchemaStore,
    event: str,
    count: int,
    *,
    region: str = "eu",
    first_sequence: int = 1,
    seed: int = 1,
) -> pa.RecordBatch:
    """``count`` plausible events of one source spool in the event's full Arrow schema, just received."""
    batch = pa.concat_batches(list(_fleet_batches(event, count, region, seed)))[:count]
    now_us = time.time_ns() // 1000
    envelope = {
        "spool": pa.array(np.full(count, SPOOL)),
        "lane": pa.array(np.ones(count, np.int32)),
        "sequence": pa.array(np.arange(first_sequence, first_sequence + count)),
        "received_time": pa.array(np.full(count, now_us)).cast(pa.timestamp("us")),
    }
    columns = [
        envelope[f.name] if f.name in envelope else batch.column(f.name) for f in schemas.events[event].arrow
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schemas.events[event].arrow)


def _fleet_batches(event: str, count: int, region: str, seed: int) -> Iterator[pa.RecordBatch]:
    fleet = Fleet(region, seed, FleetSize(vehicles=50, meters=50, machines=20, cameras=10))
    now_us, made = (time.time_ns() // 1000) - 3_600_000_000, 0
    while made < count:
        now_us += 1_000_000
        for name, batch in fleet.tick(now_us, 1.0).items():
            if name == event and len(batch):
                made += len(batch)
                yield batch


def replaced(batch: pa.RecordBatch, name: str, values: list | np.ndarray) -> pa.RecordBatch:
    """The batch with one column replaced."""
    index = batch.schema.get_field_index(name)
    return batch.set_column(
        index, batch.schema.field(index), pa.array(values, batch.schema.field(index).type)
    )


def framed(schemas: SchemaStore, event: str, batch: pa.RecordBatch) -> pa.BinaryArray:
    """As on the wire."""
    return schemas.codec(schemas.latest(event).id).encode(batch)
