"""The devices of one region, simulated.

Comes in: the time, and how much of it has passed. Goes out: one batch per event, as ``emit_many`` takes it
(``source``, ``event_time``, ``jurisdiction``, then the event's own fields). Invariant: the same seed and the
same ticks give the same events, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np
import pyarrow as pa

from pipeline.demo.cameras import Cameras
from pipeline.demo.machines import Machines
from pipeline.demo.meters import Meters
from pipeline.demo.vehicles import Vehicles


@dataclass(frozen=True)
class FleetSize:
    """How many devices, and seconds between two reports of one of them."""

    vehicles: int = 200
    meters: int = 200
    machines: int = 60
    cameras: int = 20
    vehicle_period_s: float = 1.0
    meter_period_s: float = 5.0
    machine_period_s: float = 1.0
    camera_period_s: float = 0.5

    def at_rate(self, events_per_s: float) -> FleetSize:
        """More or fewer devices, in the same proportions, that offer about this rate."""
        factor = events_per_s / self.events_per_s()
        counts = {
            kind: max(1, round(getattr(self, kind) * factor))
            for kind in ("vehicles", "meters", "machines", "cameras")
        }
        return replace(self, **counts)

    def events_per_s(self) -> float:
        """The mean over time: an outcome per two readings, 3.5 objects before a camera."""
        return (
            self.vehicles / self.vehicle_period_s
            + self.meters / self.meter_period_s
            + 1.5 * self.machines / self.machine_period_s
            + 3.5 * self.cameras / self.camera_period_s
        )


class Fleet:
    """All devices of a region; ConfigError for a region whose places are not known."""

    def __init__(self, region: str, seed: int = 0, size: FleetSize | None = None) -> None:
        size = size or FleetSize()
        self.region = region
        place = crc32(region.encode())
        rngs = [np.random.default_rng([seed, place, kind]) for kind in range(4)]
        self.vehicles = Vehicles(region, size.vehicles, size.vehicle_period_s, rngs[0])
        self.meters = Meters(region, size.meters, size.meter_period_s, rngs[1])
        self.machines = Machines(region, size.machines, size.machine_period_s, rngs[2])
        self.cameras = Cameras(region, size.cameras, size.camera_period_s, rngs[3])

    def tick(self, now_us: int, dt_s: float) -> dict[str, pa.RecordBatch]:
        """Let ``dt_s`` seconds pass until ``now_us`` (µs since the epoch, UTC); batches may be empty."""
        readings, outputs = self.machines.tick(now_us, dt_s)
        return {
            "vehicle_telemetry": self.vehicles.tick(now_us, dt_s),
            "meter_reading": self.meters.tick(now_us, dt_s),
            "machine_reading": readings,
            "inference_output": outputs,
            "object_detection": self.cameras.tick(now_us, dt_s),
        }
