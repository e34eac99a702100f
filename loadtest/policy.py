"""The policy by itself: rows a second through a landing plan on one core, and the time of the whole check.

Rows are the fleet's, decoded and checked beforehand; Kafka and Avro are not in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline.demo.fleet import Fleet, FleetSize
from pipeline.policy import compile_plan, judge_all, survey_packs
from pipeline.policy.examples import ExampleKeys
from pipeline.policy.tokens import ExampleVault
from pipeline.service import Project

BATCH_ROWS = (1_000, 20_000)
Line = tuple[str, float, str, float | None, float | None]


def measure_policy(project: Project, region: str, event: str, rows: int) -> Iterator[Line]:
    """Lines of the table: name, value, unit, floor, ceiling."""
    kind = project.schemas.events[event]
    plan = compile_plan(project.packs.terms(region, region), kind, ExampleKeys(), vault=ExampleVault())
    for size in BATCH_ROWS:
        batches = [_batch(kind.arrow, region, event, size, seed) for seed in range(4)]
        plan.apply(batches[0])
        done, wall_s, cpu_s = 0, time.perf_counter(), time.process_time()
        while done < rows:
            plan.apply(batches[done // size % len(batches)])
            done += size
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        name = f"policy, {region} landing plan, batches of {size:,}"
        yield name, done / wall_s, "events/s", 500_000 if size == BATCH_ROWS[-1] else None, None
        yield f"{name}, per CPU-second", done / cpu_s, "events/s", None, None
    started, now_us = time.perf_counter(), time.time_ns() // 1000
    survey = survey_packs(project.config.schemas_path() / "policies", project.schemas.events, now_us=now_us)
    judged = judge_all(survey, project.schemas.events)
    assert not judged.violations
    yield "policy, check of all packs and events", (time.perf_counter() - started) * 1e3, "ms", None, 1000


def _batch(schema: pa.Schema, region: str, event: str, rows: int, seed: int) -> pa.RecordBatch:
    """``rows`` of the event as the edge would have stamped them."""
    fleet, parts, found = Fleet(region, seed, FleetSize(vehicles=1000)), [], 0
    now_us = time.time_ns() // 1000 - 3_600_000_000
    while found < rows:
        now_us += 1_000_000
        part = fleet.tick(now_us, 1.0)[event]
        parts.append(part)
        found += len(part)
    made = pa.concat_batches(parts)[:rows]
    stamps = {
        "spool": pa.array(np.full(rows, 7)), "lane": pa.array(np.ones(rows, np.int32)),
        "sequence": pa.array(np.arange(rows)), "received_time": made.column("event_time"),
    }  # fmt: skip
    columns = [stamps[f.name] if f.name in stamps else made.column(f.name) for f in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
