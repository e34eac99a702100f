"""Cameras over loading bays: pallets, boxes, forklifts and people that cross the frame."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.demo.devices import Devices
from pipeline.demo.places import Places

FRAME_PX = (1920.0, 1080.0)
FRAMES_PER_S = 25.0
SLOTS = 5  # objects that one camera can see at once
MODEL, RELEASE = "pallet-detector", "2026.2.1"
LABELS = np.array(["pallet", "box", "forklift", "person", "truck"], dtype=object)
SHARE = np.array([0.34, 0.36, 0.12, 0.12, 0.06])
SIZE_PX = np.array([(330, 190), (150, 130), (420, 380), (120, 330), (760, 520)], dtype=float)
SPEED_PX_S = np.array([60, 90, 160, 70, 40], dtype=float)
PERSON = 3
READABLE = np.array([0.75, 0.65, 0.0, 0.0, 0.0])  # chance that the object carries a code the model can read


class Cameras:
    """``object_detection``: one event per object and frame, missing now and then as detectors do."""

    def __init__(self, region: str, count: int, period_s: float, rng: np.random.Generator) -> None:
        self._rng = rng
        self.devices = Devices.of(f"{region}-bay", count, Places(region), period_s, rng)
        self._frame = rng.integers(1_000, 9_000_000, count).astype(float)
        shape = (count, SLOTS)
        self._present = np.zeros(shape, dtype=bool)
        self._label = np.zeros(shape, dtype=int)
        self._box = np.zeros((*shape, 4))
        self._move = np.zeros((*shape, 2))
        self._certainty = np.zeros(shape)
        self._code = np.zeros(shape, dtype=np.int64)  # 0: none
        self._arrive(np.ones(shape, dtype=bool) & (rng.random(shape) < 0.6))
        self._box[..., 0] = rng.uniform(0, FRAME_PX[0] - self._box[..., 2])

    def tick(self, now_us: int, dt_s: float) -> pa.RecordBatch:
        """Move everything for ``dt_s`` seconds, then what each camera whose frame is due sees."""
        self._frame += dt_s * FRAMES_PER_S
        self._box[..., :2] += self._move * dt_s
        gone = (self._box[..., 0] > FRAME_PX[0]) | (self._box[..., 0] + self._box[..., 2] < 0)
        self._present &= ~gone
        self._arrive(~self._present & (self._rng.random(self._present.shape) < 1 - np.exp(-dt_s / 6.0)))
        due = np.zeros(len(self.devices), dtype=bool)
        due[self.devices.due(dt_s)] = True
        seen = self._present & due[:, None] & (self._rng.random(self._present.shape) > 0.03)
        camera, slot = np.nonzero(seen)
        return self._see(camera, slot, now_us)

    def _arrive(self, where: np.ndarray) -> None:
        """New objects enter at the left or the right edge."""
        count = int(where.sum())
        label = self._rng.choice(len(LABELS), size=count, p=SHARE)
        size = SIZE_PX[label] * self._rng.uniform(0.8, 1.2, (count, 1))
        rightward = self._rng.random(count) < 0.5
        left = np.where(rightward, 1.0 - size[:, 0], FRAME_PX[0] - 1.0)
        top = self._rng.uniform(0.3, 0.9, count) * (FRAME_PX[1] - size[:, 1])
        self._present[where] = True
        self._label[where] = label
        self._box[where] = np.column_stack([left, top, size])
        pace = SPEED_PX_S[label] * self._rng.uniform(0.6, 1.4, count)
        self._move[where] = np.column_stack([np.where(rightward, pace, -pace), np.zeros(count)])
        self._certainty[where] = self._rng.beta(9, 1.6, count)
        code = self._rng.integers(10**16, 10**17, count)
        self._code[where] = np.where(self._rng.random(count) < READABLE[label], code, 0)

    def _see(self, camera: np.ndarray, slot: np.ndarray, now_us: int) -> pa.RecordBatch:
        box = self._box[camera, slot]
        left, top = np.maximum(box[:, 0], 0.0), np.maximum(box[:, 1], 0.0)
        right = np.minimum(box[:, 0] + box[:, 2], FRAME_PX[0])
        bottom = np.minimum(box[:, 1] + box[:, 3], FRAME_PX[1])
        score = np.clip(self._certainty[camera, slot] + self._rng.normal(0, 0.03, len(camera)), 0.3, 0.999)
        whole = (right - left) > 0.8 * box[:, 2]  # a code is read when the object is in the picture
        code = np.where(whole, self._code[camera, slot], 0).tolist()
        columns = {
            "camera": self.devices.names.take(pa.array(camera)),
            "frame": self._frame[camera].astype(np.int64),
            "label": pa.array(LABELS[self._label[camera, slot]], pa.string()),
            "score": score,
            "box_x_px": left,
            "box_y_px": top,
            "box_width_px": right - left,
            "box_height_px": bottom - top,
            "barcode": pa.array([f"00{number}" if number else None for number in code], pa.string()),
            "model": pa.repeat(MODEL, len(camera)),
            "release": pa.repeat(RELEASE, len(camera)),
        }
        return self.devices.batch(camera, now_us, columns)
