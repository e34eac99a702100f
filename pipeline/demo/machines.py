"""Turbofans that wear out, and the model at the edge that watches them.

A machine lives a number of cycles; its channels drift from new to failing along an exponential, which is how
the engines of NASA's C-MAPSS set behave (Saxena et al. 2008). At the end of its life it is replaced by a new
one with a serial number of its own. Levels, noise and drift per channel are those of set FD001.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.demo.devices import Devices, numbered, some
from pipeline.demo.places import Places

# channel: level when new, standard deviation of the noise, drift until failure
CHANNELS = np.array([
    (518.67, 0, 0), (642.37, 0.293, 1.3455), (1586.82, 3.883, 15.445), (1402.58, 3.887, 27.164),
    (14.62, 0, 0), (21.6095, 0.0012, 0.0005), (553.96, 0.397, -2.5621), (2388.057, 0.0304, 0.1819),
    (9056.15, 4.146, 44.164), (1.3, 0, 0), (47.349, 0.0992, 0.8182), (521.92, 0.2947, -2.1883),
    (2388.055, 0.0289, 0.1862), (8137.47, 3.018, 31.125), (8.4175, 0.0194, 0.1064), (0.03, 0, 0),
    (392.25, 0.912, 4.109), (2388.0, 0, 0), (100.0, 0, 0), (38.934, 0.0972, -0.5067),
    (23.362, 0.0602, -0.2993),
])  # fmt: skip
STEEPNESS = 4.0
LIFE_CYCLES = (1200, 3600)
HORIZON_CYCLES = 30
THRESHOLD = 0.8
MODEL, RELEASE = "turbofan-health", "2026.1.0"


class Machines:
    """``machine_reading`` once per period (one working cycle), ``inference_output`` on every other."""

    def __init__(self, region: str, count: int, period_s: float, rng: np.random.Generator) -> None:
        self._rng = rng
        self.devices = Devices.of(f"{region}-hall", count, Places(region), period_s, rng)
        self._next_serial = 10_000 + count
        self._serial = 10_000 + np.arange(count)
        self._prefix = f"TF-{region.upper()}-"
        self._life = rng.integers(*LIFE_CYCLES, count)
        self.cycle = (self._life * rng.uniform(0.0, 1.0, count)).astype(np.int64)

    @property
    def wear(self) -> np.ndarray:
        """0 new, 1 failing."""
        return np.expm1(STEEPNESS * self.cycle / self._life) / np.expm1(STEEPNESS)

    @property
    def remaining_cycles(self) -> np.ndarray:
        """The truth that the model at the edge tries to tell."""
        return self._life - self.cycle

    def machines(self) -> pa.Array:
        """Serial numbers of the machines now in the halls."""
        return numbered(self._prefix, self._serial, 6)

    def tick(self, now_us: int, dt_s: float) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """One reading of each machine that ended a cycle, and what the edge's model makes of some of them."""
        who = self.devices.due(dt_s)
        self.cycle[who] += 1
        self._replace(who[self.cycle[who] > self._life[who]])
        names = numbered(self._prefix, self._serial[who], 6)
        watched = self.cycle[who] % 2 == 0
        return self._read(who, names, now_us), self._judge(
            who[watched], names.filter(pa.array(watched)), now_us
        )

    def _replace(self, failed: np.ndarray) -> None:
        self._serial[failed] = self._next_serial + np.arange(len(failed))
        self._next_serial += len(failed)
        self._life[failed] = self._rng.integers(*LIFE_CYCLES, len(failed))
        self.cycle[failed] = 1

    def _read(self, who: np.ndarray, names: pa.Array, now_us: int) -> pa.RecordBatch:
        level, noise, drift = CHANNELS.T
        values = level + np.outer(self.wear[who], drift)
        values += self._rng.normal(0, 1, values.shape) * noise
        columns = {
            "machine": names,
            "cycle": self.cycle[who].astype(np.int32),
            "setting_1": self._rng.normal(0, 0.0022, len(who)),
            "setting_2": self._rng.normal(0, 0.0003, len(who)),
            "setting_3": np.full(len(who), 100.0),
            **{f"sensor_{channel + 1}": values[:, channel] for channel in range(len(CHANNELS))},
        }
        return self.devices.batch(who, now_us, columns)

    def _judge(self, who: np.ndarray, names: pa.Array, now_us: int) -> pa.RecordBatch:
        """Odd machines get a probability, even ones a number of cycles: two models' worth of outputs."""
        count = len(who)
        remaining = self.remaining_cycles[who] * np.exp(self._rng.normal(0, 0.25, count))
        score = 0.5 - 0.5 * np.tanh((remaining - HORIZON_CYCLES) / 16.0)
        classifies = self._serial[who] % 2 == 1
        target = np.where(classifies, f"failure_within_{HORIZON_CYCLES}_cycles", "remaining_cycles")
        columns = {
            "model": pa.repeat(MODEL, count),
            "release": pa.repeat(RELEASE, count),
            "subject": names,
            "target": pa.array(target.astype(object), pa.string()),
            "score": some(score, classifies),
            "predicted": some(remaining, ~classifies),
            "threshold": some(np.full(count, THRESHOLD), classifies),
            "acted": classifies & (score >= THRESHOLD),
            "latency_ms": self._rng.lognormal(1.1, 0.35, count),
        }
        return self.devices.batch(who, now_us, columns)
