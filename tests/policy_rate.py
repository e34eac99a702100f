"""How many rows a second a landing plan transforms on one core: ``python -m tests.policy_rate``.

Made rows of vehicle telemetry, 1,000 vehicles, one hour; decoding, checking and encoding are not in it.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.policy import compile_plan, load_packs
from tests.unit.policy.cases import EVENTS, NOW_US, POLICIES, Keys

SEED = 7
SUBJECTS = 1000
HOUR_US = 3_600_000_000
DEGREES = {"latitude": (36.0, 60.0), "longitude": (-9.0, 30.0)}


@dataclass(frozen=True)
class Rate:
    """Rows a second, by the clock and by the time of the processor."""

    wall: float
    cpu: float


def rows_of(event: str, rows: int, random: np.random.Generator) -> pa.RecordBatch:
    """Made rows of an event."""
    schema = EVENTS[event].arrow
    return pa.RecordBatch.from_arrays([_column(column, rows, random) for column in schema], schema=schema)


def landing_rate(region: str, event: str, *, rows: int = 1_000_000, batch_rows: int = 20_000) -> Rate:
    """Rows a second of ``event`` through the landing plan of ``region``, filters and operators, warm."""
    pa.set_cpu_count(1)
    random = np.random.default_rng(SEED)
    batches = [rows_of(event, batch_rows, random) for _ in range(4)]
    terms = load_packs(POLICIES, EVENTS).terms(region, region)
    plan = compile_plan(terms, EVENTS[event], Keys(), now_us=NOW_US)
    plan.apply(batches[0])
    wall_s, cpu_s, done = time.perf_counter(), time.process_time(), 0
    while done < rows:
        plan.apply(batches[done // batch_rows % len(batches)])
        done += batch_rows
    return Rate(done / (time.perf_counter() - wall_s), done / (time.process_time() - cpu_s))


def _column(column: pa.Field, rows: int, random: np.random.Generator) -> pa.Array:
    if column.name in DEGREES:
        return pa.array(random.uniform(*DEGREES[column.name], rows))
    if column.name in ("event_time", "received_time"):
        return pa.array(NOW_US + random.integers(0, HOUR_US, rows)).cast(column.type)
    if pa.types.is_string(column.type):
        names = pa.array([f"{column.name}-{number:05d}" for number in range(SUBJECTS)])
        return names.take(pa.array(random.integers(0, SUBJECTS, rows)))
    if pa.types.is_boolean(column.type):
        return pa.array(random.integers(0, 2, rows).astype(bool))
    if pa.types.is_floating(column.type):
        return pa.array(random.uniform(0, 1000, rows)).cast(column.type)
    return pa.array(random.integers(1, 1000, rows)).cast(column.type)


if __name__ == "__main__":
    for size in (1_000, 5_000, 20_000, 100_000):
        rate = landing_rate("eu", "vehicle_telemetry", batch_rows=size)
        sys.stdout.write(f"batches of {size}: {rate.wall:,.0f} rows/s, {rate.cpu:,.0f} per CPU-second\n")
