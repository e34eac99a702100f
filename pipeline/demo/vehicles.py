"""Vehicles that drive through a city's streets.

State per vehicle, advanced in steps of at most half a second: a point on a street between two crossings, a
speed that brakes for red lights and turns, the distance covered (the integral of that very speed), a warming
engine, a tank that is refilled, and wear that only grows and ends in fault codes.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.demo.devices import Devices, numbered, some
from pipeline.demo.places import Places

STEP_S = 0.5
BRAKE_M_S2 = 2.2
TURN_M_S = 4.5
AMBIENT_C = 16.0
IDLE_RPM = 750.0
TANK_LITRES = 60.0
REFUEL_BELOW, REFUEL_TO = 12.0, 96.0  # percent
WEAR_FAULT = 0.75
FAULTS = np.array(["P0217", "P0524", "P0301", "P0562"], dtype=object)  # SAE J2012
GEAR_UP_M_S = np.array([4.0, 8.0, 13.0, 19.0, 26.0])
RPM_PER_M_S = np.array([420.0, 240.0, 162.0, 123.0, 99.0, 81.0])
DIRECTIONS = np.array([(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)])  # counter-clockwise from "along"


class Vehicles:
    """``vehicle_telemetry``; ``wear`` in [0, 1] is the truth that fault codes give away late."""

    def __init__(self, region: str, count: int, period_s: float, rng: np.random.Generator) -> None:
        self._rng = rng
        places = Places(region)
        self.devices = Devices.of(f"{region}-truck", count, places, period_s, rng)
        self._serial = rng.choice(9_000_000, count, replace=False) + 1_000_000
        self._vins = numbered(f"EDG{region[:2].upper()}MV26", self._serial, 8)
        self._staff = rng.integers(1000, 9999, count)
        self._trip = rng.integers(1, 400, count)
        block = places.block_m[self.devices.city]
        spread = (places.radius_m[self.devices.city] / block * 0.6).astype(int)
        self._node = np.stack([rng.integers(-spread, spread + 1), rng.integers(-spread, spread + 1)], axis=1)
        self._direction = rng.integers(0, 4, count)
        self._on_street_m = rng.uniform(0, block)
        self._turns = np.zeros(count, dtype=int)  # at the next crossing: -1 right, 0 straight on, 1 left
        self._halt = np.zeros(count, dtype=bool)  # a red light at the next crossing
        self._wait_s = np.where(rng.random(count) < 0.15, rng.uniform(0, 30, count), 0.0)
        self._parked = rng.random(count) < 0.04
        self._wait_s[self._parked] = rng.uniform(60, 1200, int(self._parked.sum()))
        self._speed = np.where(self._wait_s > 0, 0.0, rng.uniform(4, 11, count))
        self._temper = rng.uniform(0.85, 1.15, count)  # of the driver
        self._heading = self._bearing()
        self.odometer_m = rng.gamma(2.0, 60_000_000.0, count)
        self._temperature = np.where(rng.random(count) < 0.3, AMBIENT_C, rng.uniform(70, 92, count))
        self._rpm = np.full(count, IDLE_RPM)
        self._fuel = rng.uniform(REFUEL_BELOW, REFUEL_TO, count)
        self._refuelling = np.zeros(count, dtype=bool)
        self.wear = np.clip(rng.beta(1.4, 3.2, count), 0.0, 0.98)
        self._fault = rng.integers(0, len(FAULTS), count)
        self._gnss_m = rng.normal(0, 1.2, (count, 2))
        self._choose(np.arange(count))

    def tick(self, now_us: int, dt_s: float) -> pa.RecordBatch:
        """Drive ``dt_s`` seconds, then one sample of each vehicle that reports."""
        left_s = dt_s
        while left_s > 1e-9:
            step_s = min(STEP_S, left_s)
            self._drive(step_s)
            self._run_engine(step_s)
            left_s -= step_s
        return self._sample(self.devices.due(dt_s), now_us)

    def position_m(self) -> np.ndarray:
        """(along, across) of each vehicle in its city's grid."""
        block = self.devices.places.block_m[self.devices.city]
        return self._node * block[:, None] + DIRECTIONS[self._direction] * self._on_street_m[:, None]

    def _drive(self, step_s: float) -> None:
        block = self.devices.places.block_m[self.devices.city]
        self._wait_s = np.maximum(self._wait_s - step_s, 0.0)
        self._set_off(np.flatnonzero((self._wait_s == 0.0) & (self._parked | self._refuelling)))
        ahead_m = np.maximum(block - self._on_street_m, 0.0)
        arrive = np.where(self._halt, 0.0, np.where(self._turns != 0, TURN_M_S, 99.0))
        safe = np.sqrt(arrive**2 + 2 * BRAKE_M_S2 * np.maximum(ahead_m - self._speed * step_s, 0.0))
        main_street = np.any(self._node % 4 == 0, axis=1)
        wish = np.minimum(np.where(main_street, 15.3, 9.7) * self._temper, safe)
        wish = np.where(self._wait_s > 0, 0.0, wish)
        rise = np.where(self._speed < 8, 1.8, 1.1) * self._temper * step_s
        before = self._speed
        self._speed = np.clip(wish, before - 2 * BRAKE_M_S2 * step_s, before + rise)
        self._speed[self._wait_s > 0] = 0.0
        moved_m = np.minimum(self._speed * step_s, np.where(self._halt, ahead_m, np.inf))
        self._speed = moved_m / step_s
        self._on_street_m += moved_m
        self.odometer_m += moved_m
        self._stop(np.flatnonzero(self._halt & (block - self._on_street_m < 1.5)))
        self._cross(np.flatnonzero(self._on_street_m >= block), block)
        self._steer(step_s)

    def _stop(self, vehicles: np.ndarray) -> None:
        """At the line: most wait for green, some fetch fuel, some have arrived and park."""
        self._speed[vehicles] = 0.0
        self._halt[vehicles] = False
        self._wait_s[vehicles] = self._rng.uniform(4, 40, len(vehicles))
        dry = vehicles[self._fuel[vehicles] < REFUEL_BELOW]
        self._refuelling[dry] = True
        self._wait_s[dry] = self._rng.uniform(150, 300, len(dry))
        arrived = vehicles[(self._rng.random(len(vehicles)) < 0.02) & ~self._refuelling[vehicles]]
        self._parked[arrived] = True
        self._wait_s[arrived] = self._rng.uniform(120, 1800, len(arrived))

    def _set_off(self, vehicles: np.ndarray) -> None:
        """After a pause: a full tank, or a new trip, maybe with another driver."""
        fresh = vehicles[self._parked[vehicles]]
        self._trip[fresh] += 1
        other = fresh[self._rng.random(len(fresh)) < 0.3]
        self._staff[other] = self._rng.integers(1000, 9999, len(other))
        self._fuel[self._refuelling & (self._wait_s == 0.0)] = REFUEL_TO
        self._parked[vehicles] = False
        self._refuelling[vehicles] = False

    def _cross(self, vehicles: np.ndarray, block: np.ndarray) -> None:
        """Over the crossing into the street that was chosen; the way beyond it is kept."""
        self._node[vehicles] += DIRECTIONS[self._direction[vehicles]].astype(int)
        self._on_street_m[vehicles] -= block[vehicles]
        self._direction[vehicles] = (self._direction[vehicles] + self._turns[vehicles]) % 4
        self._choose(vehicles)

    def _choose(self, vehicles: np.ndarray) -> None:
        """What to do at the next crossing; whoever is about to leave town turns until the way leads back."""
        count = len(vehicles)
        turns = self._rng.choice([0, -1, 1], size=count, p=[0.66, 0.17, 0.17])
        city = self.devices.city[vehicles]
        step = DIRECTIONS[self._direction[vehicles]]
        limit = self.devices.places.radius_m[city] / self.devices.places.block_m[city]
        coming = self._node[vehicles] + 2 * step
        leaving = (np.hypot(coming[:, 0], coming[:, 1]) > limit) & (
            np.sum(self._node[vehicles] * step, axis=1) > 0
        )
        home = -self._node[vehicles]
        inward = np.sign(step[:, 0] * home[:, 1] - step[:, 1] * home[:, 0]).astype(int)  # 1: to the left
        self._turns[vehicles] = np.where(leaving, np.where(inward == 0, 1, inward), turns)
        self._halt[vehicles] = self._rng.random(count) < 0.3

    def _bearing(self) -> np.ndarray:
        """Degrees clockwise from north of the street each vehicle is on."""
        angle = np.degrees(self.devices.places.angle_rad[self.devices.city]) + 90.0 * self._direction
        return (90.0 - angle) % 360.0

    def _steer(self, step_s: float) -> None:
        off = (self._bearing() - self._heading + 180.0) % 360.0 - 180.0
        most = np.where(self._speed > 0.3, 60.0 * step_s, 0.0)
        self._heading = (self._heading + np.clip(off, -most, most)) % 360.0
        self._gnss_m += -self._gnss_m * 0.1 * step_s + self._rng.normal(0, 0.35, self._gnss_m.shape) * step_s

    def _run_engine(self, step_s: float) -> None:
        running = ~(self._parked | self._refuelling)
        gear = np.searchsorted(GEAR_UP_M_S, self._speed, side="right")
        turning = np.maximum(self._speed * RPM_PER_M_S[gear], IDLE_RPM)
        turning += self._rng.normal(0, 12.0, len(turning))
        self._rpm = np.where(running, turning, 0.0)
        target = np.where(running, 84.0 + self._speed * 0.4 + 24.0 * self.wear**3, AMBIENT_C)
        pace = step_s / np.where(running, 260.0, 2400.0)
        self._temperature += (target - self._temperature) * np.minimum(pace, 1.0)
        km = self._speed * step_s / 1000.0
        litres = np.where(running, step_s * 0.8 / 3600.0, 0.0) + km * 0.16 * (1 + 0.2 * self.wear)
        self._fuel = np.maximum(self._fuel - 100.0 * litres / TANK_LITRES, 0.0)
        self.wear += (1.0 - self.wear) * km * 2e-5 * (1.0 + 8.0 * self.wear**2)

    def _sample(self, who: np.ndarray, now_us: int) -> pa.RecordBatch:
        along, across = (self.position_m()[who] + self._gnss_m[who]).T
        latitude, longitude = self.devices.places.to_degrees(self.devices.city[who], along, across)
        fix = self._rng.random(len(who)) > 0.004
        running, wear = self._rpm[who] > 0, self.wear[who]
        viscous = 1.3 - 0.0035 * (self._temperature[who] - AMBIENT_C)
        oil = np.where(running, (110.0 + 0.11 * self._rpm[who]) * (1 - 0.4 * wear**2) * viscous, 0.0)
        battery = np.where(running, 14.1 - 0.6 * wear**2, 12.5) + self._rng.normal(0, 0.03, len(who))
        columns = {
            "vin": self._vins.take(pa.array(who)),
            "driver": numbered("staff-", self._staff[who], 4),
            "trip": numbered("trip-", self._serial[who] * 1000 + self._trip[who], 10),
            "latitude": some(latitude, fix),
            "longitude": some(longitude, fix),
            "speed_m_s": self._speed[who],
            "heading_deg": self._heading[who],
            "odometer_km": self.odometer_m[who] / 1000.0,
            "engine_temperature_c": self._temperature[who],
            "engine_rpm": self._rpm[who],
            "oil_pressure_kpa": oil,
            "battery_v": battery,
            "fuel_percent": self._fuel[who],
            "fault_code": pa.array(FAULTS[self._fault[who]], pa.string(), mask=wear < WEAR_FAULT),
        }
        return self.devices.batch(who, now_us, columns)
