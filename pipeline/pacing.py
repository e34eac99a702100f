"""Recorded time played back on a monotonic clock.

Comes in: batches with an ``event_time`` column. Goes out: the same rows in the same order, in slices of at
most 100 ms of recorded time, each when it is due. Invariants: no row leaves before its recorded moment; a
recorded clock that steps back never makes anything wait (rows behind the latest moment so far are due).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError

SLICE_US = 100_000
RECORDED = "recorded"


@dataclass(frozen=True)
class Clock:
    """Seconds of a monotonic clock, and how to wait on it (give ``Event.wait`` to be able to stop)."""

    now_s: Callable[[], float] = time.monotonic
    wait_s: Callable[[float], object] = time.sleep


def parse_speed(text: str) -> float | None:
    """``max`` is None (no waiting), ``recorded`` is 1, ``8x`` or ``0.5`` a factor; else ConfigError."""
    word = text.strip().lower()
    if word in ("max", "recorded"):
        return None if word == "max" else 1.0
    try:
        speed = float(word.rstrip("x×"))
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise ConfigError(
            f"expected max, {RECORDED} or a factor like 8x, got {text!r}", operation="replay", place="speed"
        )
    return speed


def pace(
    batches: Iterable[pa.RecordBatch], speed: float, clock: Clock | None = None
) -> Iterator[pa.RecordBatch]:
    """Let each slice go when it is due at ``speed`` times the recorded pace, counted from the first row.

    Blocks in ``clock.wait_s`` until then. A slower consumer falls behind and catches up without pauses.
    """
    clock = clock or Clock()
    start_s = clock.now_s()
    first_us: int | None = None
    latest_us = 0
    for batch in batches:
        if len(batch) == 0:
            continue
        times = batch.column("event_time").cast(pa.int64()).to_numpy()
        if first_us is None:
            first_us = latest_us = int(times[0])
        for begin, end in _slices(times, first_us):
            latest_us = max(latest_us, int(times[begin:end].max()))
            _wait_until(start_s + (latest_us - first_us) / 1e6 / speed, clock)
            yield batch.slice(begin, end - begin)


def _slices(times: np.ndarray, first_us: int) -> list[tuple[int, int]]:
    """Runs of rows that lie in the same 100 ms since the first row."""
    ticks = (times - first_us) // SLICE_US
    breaks = np.flatnonzero(np.diff(ticks)) + 1
    edges = [0, *breaks.tolist(), len(times)]
    return list(itertools.pairwise(edges))


def _wait_until(due_s: float, clock: Clock) -> None:
    missing_s = due_s - clock.now_s()
    if missing_s > 0:
        clock.wait_s(missing_s)
