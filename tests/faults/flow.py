"""The events of the fault tests: each one follows from its lane and sequence, and carries the sequence.

So a producer that was killed goes on where its spool ended, and the set of accepted events is known: 1 to the
last sequence of each lane. Each type has a field that the policy of `eu` keeps as it is; the sequence travels
in it, and from the store's rows it is read back.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.schemas import SchemaStore
from tests.raw_events import framed, raw_batch, replaced

START_US = 1_780_000_000_000_000  # 2026-05-28: the events' own time, a millisecond apart
JURISDICTIONS = ("DE", "FR", "IT")
FILTERED_EVERY = 5  # every fifth detection is a person, whom the policy filters
FOREIGN_FROM = 50_000_000  # cycles of readings from producers without a spool, beyond all sequences
OUT_OF_RANGE = 2_000_000.0  # of setting_1, whose bound is 1,000,000


@dataclass(frozen=True)
class Stream:
    """One event type in a lane of its own. ``identity``: SQL that reads the sequence from a stored row."""

    event: str
    lane: str
    share: float  # of all events
    identity: str
    fields: Callable[[int], dict[str, Any]]
    sources: int
    filtered_every: int = 0

    def row(self, sequence: int) -> dict[str, Any]:
        """The event with this sequence, as ``emit_many`` takes it."""
        return {
            "source": f"{self.event}-{sequence % self.sources}",
            "event_time": START_US + 1000 * sequence,
            "jurisdiction": JURISDICTIONS[sequence % len(JURISDICTIONS)],
            **self.fields(sequence),
        }

    def kept(self, sequences: np.ndarray) -> np.ndarray:
        """Those that the policy does not filter."""
        return sequences[sequences % self.filtered_every != 0] if self.filtered_every else sequences


def _reading(sequence: int) -> dict[str, Any]:
    return {"machine": f"machine-{sequence % 40}", "cycle": sequence, "sensor_1": sequence * 0.25}


def _detection(sequence: int) -> dict[str, Any]:
    return {
        "camera": f"camera-{sequence % 10}", "frame": sequence,
        "label": "parcel" if sequence % FILTERED_EVERY else "person", "score": 0.9,
        "box_x_px": float(sequence // 1000), "box_y_px": float(sequence % 1000),
        "box_width_px": 10.0, "box_height_px": 10.0, "model": "m", "release": "1",
    }  # fmt: skip


def _metering(sequence: int) -> dict[str, Any]:
    return {"meter": f"meter-{sequence % 20}", "tariff": "flat", "energy_kwh": float(sequence)}


STREAMS = (
    Stream("machine_reading", "normal", 0.7, "cycle", _reading, 40),
    Stream("object_detection", "urgent", 0.2, "box_x_px * 1000 + box_y_px", _detection, 10, FILTERED_EVERY),
    Stream("meter_reading", "bulk", 0.1, "energy_kwh", _metering, 20),
)


def targets(events: int) -> dict[str, int]:
    """How many events each stream emits; ``events`` in all."""
    counts = {stream.event: int(events * stream.share) for stream in STREAMS[1:]}
    return {STREAMS[0].event: events - sum(counts.values()), **counts}


def foreign_records(
    schemas: SchemaStore, chance: random.Random, first_cycle: int
) -> tuple[pa.BinaryArray, int]:
    """Raw machine readings as a producer without a spool may send them, and how many cycles they use.

    Good ones, some out of range, and bytes that are no records, in any order.
    """
    event = "machine_reading"
    good, wild, rubbish = (chance.randint(1, 40) for _ in range(3))
    count = good + wild
    zeros = np.zeros(count, np.int64)
    columns = {
        "spool": zeros, "lane": zeros, "sequence": zeros,
        "cycle": np.arange(count) + FOREIGN_FROM + first_cycle,
        "setting_1": np.where(np.arange(count) < good, 1.0, OUT_OF_RANGE),
    }  # fmt: skip
    batch = raw_batch(schemas, event, count)
    for name, values in columns.items():
        batch = replaced(batch, name, values)
    junk = [b"\x01" + chance.randbytes(chance.randint(0, 60)) for _ in range(rubbish)]
    records = pa.concat_arrays([framed(schemas, event, batch), pa.array(junk, pa.binary())])
    order = chance.sample(range(len(records)), len(records))
    return records.take(pa.array(order)), count
