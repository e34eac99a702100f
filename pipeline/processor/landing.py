"""The landing leg: what edges sent into their own region, to what the region may hold.

Comes in: raw records. Their identity is (spool, lane, sequence), given when the event was accepted, so what
an edge sends twice is found; a row carries the position of its raw record on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.checks import Checks, Findings
from pipeline.processor.leg import Leg, Records, int64


@dataclass(frozen=True)
class LandingLeg(Leg):
    """One event type on its way into its region."""

    checks: Checks

    def identities(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Spool, lane and sequence; spool 0 is no identity."""
        return int64(batch, "spool"), int64(batch, "lane"), int64(batch, "sequence")

    def findings(self, batch: pa.RecordBatch, partition: int, now_us: int) -> Findings:
        """The region's plausibility checks."""
        return self.checks.run(batch, now_us)

    def position(self, batch: pa.RecordBatch, partition: int, offsets: np.ndarray) -> tuple[pa.Array, ...]:
        """The raw record's own."""
        return pa.array(np.full(len(offsets), partition, np.int32)), pa.array(offsets)

    def received_us(self, batch: pa.RecordBatch, written_us: np.ndarray) -> np.ndarray:
        """When the edge took the event."""
        return int64(batch, "received_time")

    def foreign(self, records: Records, identified: np.ndarray) -> np.ndarray:
        """Records that no spool sent or that do not say so, refused ones included."""
        unnamed = np.ones(len(records.offsets), dtype=bool)
        unnamed[identified] = False
        refused = [np.arange(first, end) for first, end, _ in records.refused]
        return np.sort(np.concatenate([records.offsets[unnamed], *refused]))
