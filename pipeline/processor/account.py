"""What a processor says of a batch beside its rows: the stats record, and the quarantine's records.

Comes in: what a batch became. Goes out: contents of ``control.stats`` and records of ``control.quarantine``.
Invariant: positions, reasons, names of fields; the values stay in the source topic.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.batches import ranges
from pipeline.codec import Codec
from pipeline.processor.leg import Landed, Leg
from pipeline.processor.state import RawPartition


def stats_of(raw: RawPartition, leg: Leg, region: str, landed: Landed, start: int) -> dict[str, Any]:
    """The fate of every position from ``start`` on, under which policy, in the region where the leg ends."""
    now_us = time.time_ns() // 1000
    foreign = landed.foreign[np.searchsorted(landed.foreign, start) :]
    return {
        "raw_topic": raw.topic, "raw_topic_id": raw.topic_id, "raw_partition": raw.partition,
        "first_offset": start, "next_offset": landed.next_offset,
        "event": leg.event.name, "region": region,
        "policy_hash": leg.plan.policy_hash, "processed_time": now_us,
        "counts": [
            {"outcome": outcome, "reason": reason, "count": count}
            for (outcome, reason), count in landed.outcomes.counts(start).items()
        ],
        "runs": [
            {"first": run.first, "next": run.next, "outcome": run.outcome, "reason": run.reason}
            for run in landed.outcomes.runs(start)
        ],
        "foreign": [{"first": first, "next": end} for first, end in ranges(foreign)],
        "waited_us": int(np.mean(now_us - landed.received_us)) if len(landed.received_us) else 0,
    }  # fmt: skip


def quarantine_of(raw: RawPartition, leg: Leg, codec: Codec, landed: Landed) -> pa.BinaryArray:
    """One record per quarantined position; none is an empty column. ``codec``: of ``control.quarantine``."""
    offsets, reasons = landed.outcomes.quarantined()
    if len(offsets) == 0:
        return pa.array([], pa.binary())
    columns: dict[str, Any] = {
        "raw_topic": raw.topic, "raw_topic_id": raw.topic_id, "raw_partition": raw.partition,
        "raw_offset": offsets, "event": leg.event.name, "reason": [str(reason) for reason in reasons],
        "field": [landed.faulty_fields.get(offset, "") for offset in offsets.tolist()],
        "policy_hash": leg.plan.policy_hash, "quarantined_time": time.time_ns() // 1000,
    }  # fmt: skip
    arrays = [_column(columns[target.name], len(offsets), target.type) for target in codec.arrow]
    return codec.encode(pa.RecordBatch.from_arrays(arrays, schema=codec.arrow))


def _column(values: Any, length: int, kind: pa.DataType) -> pa.Array:
    if isinstance(values, int):
        return pa.repeat(pa.scalar(values, pa.int64()).cast(kind), length)
    return pa.repeat(pa.scalar(values, kind), length) if isinstance(values, str) else pa.array(values, kind)
