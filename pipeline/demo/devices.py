"""What all simulated devices share: names, a place, a clock of their own, and when they report.

A device reports when its period has passed since it last did; devices are spread over the period. Its clock
runs a constant few milliseconds behind, so the times between its reports are true.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.demo.places import Places

Columns = Mapping[str, np.ndarray | pa.Array]
LAG_US_MAX = 40_000


@dataclass
class Devices:
    """``count`` devices of one kind; ``city`` is an index into ``places``."""

    names: pa.Array
    places: Places
    city: np.ndarray
    period_s: float
    since_s: np.ndarray  # since the last report
    lag_us: np.ndarray

    @classmethod
    def of(cls, kind: str, count: int, places: Places, period_s: float, rng: np.random.Generator) -> Devices:
        """Devices named ``<kind>-0001`` …, spread over the cities and over the period."""
        return cls(
            names=pa.array([f"{kind}-{number:04d}" for number in range(1, count + 1)], pa.string()),
            places=places,
            city=rng.integers(0, len(places), count),
            period_s=period_s,
            since_s=rng.uniform(0, period_s, count),
            lag_us=rng.integers(0, LAG_US_MAX, count),
        )

    def __len__(self) -> int:
        return len(self.names)

    def due(self, dt_s: float) -> np.ndarray:
        """Indices of the devices that report now, ``dt_s`` after the last call."""
        self.since_s += dt_s
        due = np.flatnonzero(self.since_s >= self.period_s - 1e-9)
        self.since_s[due] %= self.period_s
        return due

    def batch(self, devices: np.ndarray, now_us: int, columns: Columns) -> pa.RecordBatch:
        """One row per entry of ``devices``: envelope columns, then ``columns`` in their order."""
        times = (now_us - self.lag_us[devices]).astype("datetime64[us]")
        envelope: dict[str, pa.Array] = {
            "source": self.names.take(pa.array(devices)),
            "event_time": pa.array(times),
            "jurisdiction": pa.array(self.places.jurisdiction[self.city[devices]], pa.string()),
        }
        arrays = {name: c if isinstance(c, pa.Array) else pa.array(c) for name, c in columns.items()}
        return pa.RecordBatch.from_pydict({**envelope, **arrays})


def some(values: np.ndarray, present: np.ndarray) -> pa.Array:
    """Values with null where they are not present."""
    return pa.array(values, mask=~present)


def numbered(prefix: str, numbers: np.ndarray, width: int) -> pa.Array:
    """``<prefix><zero-padded number>`` for each number."""
    return pa.array([f"{prefix}{number:0{width}d}" for number in numbers.tolist()], pa.string())


def serials(rng: np.random.Generator, count: int, first: int) -> np.ndarray:
    """Ascending numbers from about ``first`` with gaps, none twice."""
    return first + np.cumsum(rng.integers(1, 900, count))
