"""Electricity meters of households: a day's load curve, kettles and ovens, a sun on some roofs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.demo.devices import Devices, numbered
from pipeline.demo.places import Places, hour_of_day

# Mean household load over the day in watts, at 0, 2, … 24 h: asleep, morning, noon, evening peak.
LOAD_W = np.array([210, 160, 150, 260, 420, 380, 400, 370, 390, 560, 780, 520, 210], dtype=float)
MAINS_V = {"eu": 230.0, "us-ca": 120.0, "br": 127.0}
PEAK_H = (17, 21)
JOULES_PER_KWH = 3.6e6


class Meters:
    """``meter_reading``; the register ``energy_kwh`` never runs backwards."""

    def __init__(self, region: str, count: int, period_s: float, rng: np.random.Generator) -> None:
        self._rng = rng
        self.devices = Devices.of(f"{region}-meter", count, Places(region), period_s, rng)
        self._mains_v = MAINS_V.get(region, 230.0)
        serial = rng.choice(90_000_000, count, replace=False) + 10_000_000
        self._serials = numbered("EM", serial, 8)
        self._households = numbered("H", rng.choice(9_000_000, count, replace=False) + 1_000_000, 7)
        self._contracts = numbered("C-2026-", rng.choice(900_000, count, replace=False) + 100_000, 6)
        self._size = rng.lognormal(0.0, 0.45, count)
        self._panel_w = np.where(rng.random(count) < 0.18, rng.uniform(2500, 9000, count), 0.0)
        self._flat = rng.random(count) < 0.45
        self._cloud = rng.uniform(0.2, 1.0, count)
        self._wander = rng.normal(0, 0.2, count)
        self._appliance_w = np.zeros(count)
        self._appliance_s = np.zeros(count)
        self.energy_kwh = rng.uniform(0, 60_000, count)
        self._sum_j = np.zeros(count)  # since the last report
        self._sum_s = np.zeros(count)

    def tick(self, now_us: int, dt_s: float) -> pa.RecordBatch:
        """Let ``dt_s`` seconds pass, then one reading of each meter whose interval is over."""
        power = self._power(now_us, dt_s)
        self._sum_j += power * dt_s
        self._sum_s += dt_s
        counted = np.where(self._panel_w > 0, np.maximum(-power, 0.0), np.maximum(power, 0.0))
        self.energy_kwh += counted * dt_s / JOULES_PER_KWH
        who = self.devices.due(dt_s)
        batch = self._read(who, now_us)
        self._sum_j[who] = self._sum_s[who] = 0.0
        return batch

    def _power(self, now_us: int, dt_s: float) -> np.ndarray:
        """Watts taken from the net; negative when a roof gives more than the house takes."""
        count = len(self.devices)
        hour = hour_of_day(now_us, self.devices.places.utc_h[self.devices.city])
        keep = np.exp(-dt_s / 600.0)
        self._wander = self._wander * keep + self._rng.normal(0, 0.25 * np.sqrt(1 - keep**2), count)
        self._appliance_s -= dt_s
        usual = np.interp(hour, np.arange(13) * 2.0, LOAD_W)
        often = 1 - np.exp(-dt_s / 5000.0 * usual / LOAD_W.mean())
        start = (self._appliance_s <= 0) & (self._rng.random(count) < often)
        self._appliance_w = np.where(self._appliance_s > 0, self._appliance_w, 0.0)
        self._appliance_w[start] = self._rng.uniform(600, 3200, int(start.sum()))
        self._appliance_s[start] = self._rng.uniform(90, 1500, int(start.sum()))
        house = usual * self._size * np.exp(self._wander)
        sun = np.maximum(np.cos((hour - 12.5) / 24.0 * 2 * np.pi) - 0.15, 0.0) * self._cloud
        return house + self._appliance_w - self._panel_w * sun

    def _read(self, who: np.ndarray, now_us: int) -> pa.RecordBatch:
        seconds = np.maximum(self._sum_s[who], 1e-6)
        power = self._sum_j[who] / seconds
        volt = self._mains_v * (1 - power / 400_000) + self._rng.normal(0, self._mains_v * 0.004, len(who))
        hour = hour_of_day(now_us, self.devices.places.utc_h[self.devices.city[who]])
        peak = np.where((hour >= PEAK_H[0]) & (hour < PEAK_H[1]), "peak", "off_peak")
        tariff = np.where(self._panel_w[who] > 0, "feed_in", np.where(self._flat[who], "flat", peak))
        index = pa.array(who)
        columns = {
            "meter": self._serials.take(index),
            "household": self._households.take(index),
            "contract": self._contracts.take(index),
            "tariff": pa.array(tariff.astype(object), pa.string()),
            "energy_kwh": self.energy_kwh[who],
            "power_w": power,
            "voltage_v": volt,
            "current_a": np.abs(power) / volt,
            "interval_s": np.maximum(np.rint(seconds), 1).astype(np.int32),
        }
        return self.devices.batch(who, now_us, columns)
