"""One event as it left its device, as its region's store has it, and what of it is at the core.

Comes in: a region of a running stack. Goes out: lines of (field, raw, stored, at the core). The raw record is
read from the region's own raw topic, by the position that every stored row carries, also over a border. Only
a demonstration with invented people may print it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from connectors.kafka_records import Fetched
from connectors.kafka_scan import LogScanner
from connectors.lake import ReadOnlyLake
from pipeline.codec import unframe
from pipeline.errors import StoreCorrupt
from pipeline.service import Project

EVENT = "vehicle_telemetry"
ROW = f"""SELECT * FROM {EVENT} WHERE location_cell IS NOT NULL AND speed_m_s > 3
    ORDER BY raw_offset, raw_partition LIMIT 1"""
POSITION = ("raw_partition", "raw_offset")
GONE, SAME = "-", "same"


@dataclass(frozen=True)
class Sample:
    """``changed``: (field, raw, stored) where a policy did something, with a fourth cell where the event
    crossed to ``beyond``; ``kept``: fields that were left alone everywhere."""

    region: str
    topic: str
    partition: int
    offset: int
    changed: tuple[tuple[str, ...], ...]
    kept: tuple[str, ...]
    beyond: str = ""


async def sample(
    project: Project, region: str, lake: ReadOnlyLake, beyond: ReadOnlyLake | None = None
) -> Sample | None:
    """A moving vehicle of the region, looked up ``beyond`` a border as well; None when none is stored."""
    rows = lake.query(ROW).to_pylist()
    if not rows:
        return None
    stored = rows[0]
    partition, offset = (int(stored.pop(name)) for name in POSITION)
    topic = project.topics.raw(region, EVENT)
    raw = await _read_raw(project, region, (topic, partition, offset))
    changed, kept = compare(raw, stored)
    if beyond is not None:
        sql = f"SELECT * FROM {EVENT} WHERE origin = ? AND raw_partition = ? AND raw_offset = ?"
        for row in beyond.query(sql, [region, partition, offset]).to_pylist():
            there = {name: value for name, value in row.items() if name not in POSITION}
            beside, left = compare_beyond(changed, kept, stored, there)
            return Sample(region, topic, partition, offset, beside, left, beyond.region)
    return Sample(region, topic, partition, offset, changed, kept)


async def _read_raw(project: Project, region: str, position: tuple[str, int, int]) -> dict[str, Any]:
    """The event at a raw position, decoded; StoreCorrupt when there is none."""
    scan = LogScanner(project.cluster(region), project.config.limits)
    async with aclosing(cast("AsyncGenerator[Fetched, None]", scan(*position))) as runs:
        async for run in runs:
            if position[2] in run.offsets:
                ids, bodies = unframe(run.values.filter(run.offsets == position[2]))
                batch, _, _ = project.schemas.codec(int(ids[0])).decode(bodies)
                return dict(batch.to_pylist()[0])
    topic, partition, offset = position
    raise StoreCorrupt(
        "a stored row's raw record is gone", operation="demo", place=f"{topic}[{partition}] {offset}"
    )


def compare(
    raw: Mapping[str, Any], stored: Mapping[str, Any]
) -> tuple[tuple[tuple[str, str, str], ...], tuple[str, ...]]:
    """What changed, field by field, the raw ones first; and the names of what did not."""
    changed, kept = [], []
    for name, value in raw.items():
        if name in stored and stored[name] == value:
            kept.append(name)
        else:
            changed.append((name, text(value), text(stored[name]) if name in stored else GONE))
    changed += [(name, GONE, text(value)) for name, value in stored.items() if name not in raw]
    return tuple(changed), tuple(kept)


def compare_beyond(
    changed: Sequence[tuple[str, str, str]],
    kept: Sequence[str],
    stored: Mapping[str, Any],
    there: Mapping[str, Any],
) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """The same lines with a fourth cell for what is beyond the border, and those that only changed there."""
    lines = [(*line, text(there[line[0]]) if line[0] in there else GONE) for line in changed]
    left = []
    for name in kept:
        if name in there and there[name] == stored[name]:
            left.append(name)
        else:
            lines.append((name, text(stored[name]), SAME, text(there[name]) if name in there else GONE))
    known = {line[0] for line in changed} | set(kept)
    lines += [(name, GONE, GONE, text(value)) for name, value in there.items() if name not in known]
    return tuple(lines), tuple(left)


def text(value: object) -> str:
    """A value for a narrow column."""
    if isinstance(value, float):
        return (
            f"{value:.6g}" if abs(value) < 1 or abs(value) >= 1000 else f"{value:.6f}".rstrip("0").rstrip(".")
        )
    if isinstance(value, datetime):
        return value.isoformat(" ", "milliseconds") if value.microsecond else value.isoformat(" ")
    return "null" if value is None else str(value)
