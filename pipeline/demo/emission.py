"""Fleets that emit at a steady rate, whatever the core does.

Comes in: a fleet and a client per region. Goes out: counts of what was offered and acknowledged, and how long
each acknowledgement took. Open loop: a tick is due at its time, not when the one before was done; a slow edge
shows as latency, not as a lower rate.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
from typing import Protocol

import numpy as np
import pyarrow as pa

from pipeline.demo.fleet import Fleet
from pipeline.edge import Receipt

TICK_S = 0.1
COMMIT_S = 60.0


class Client(Protocol):
    """What the emission needs of an edge client."""

    def submit_many(self, event: str, rows: pa.RecordBatch) -> Future[Receipt]:
        """Take all rows or none; the future is done when they are durable."""
        ...


class Emission:
    """Use as a context manager: emits in a thread of its own, ends early when the block is left.

    ``accepted``: events acknowledged so far, per region; ``commit_s``: seconds until each acknowledgement.
    """

    def __init__(self, fleets: Mapping[str, Fleet], clients: Mapping[str, Client], seconds: float) -> None:
        self._fleets, self._clients = fleets, clients
        self._ticks = max(1, round(seconds / TICK_S))
        self.offered: Counter[str] = Counter()
        self.accepted: Counter[str] = Counter()
        self.commit_s: list[float] = []
        self.late_s = 0.0  # the farthest a tick was behind its time
        self.took_s = 0.0  # from the start to the last acknowledgement, once it has ended
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="emission")

    def __enter__(self) -> Emission:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def running(self) -> bool:
        """Whether it still emits."""
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Return when all is emitted and acknowledged, at the latest after ``seconds``; raise what failed."""
        self._thread.join(max(0.0, seconds))
        if self._error is not None:
            raise self._error

    def commit_ms(self, percentile: float) -> float:
        """How long an acknowledgement took, in milliseconds; 0 when there was none."""
        with self._mutex:
            return float(np.percentile(self.commit_s, percentile)) * 1000 if self.commit_s else 0.0

    def _run(self) -> None:
        begin_s = time.monotonic()
        try:
            waiting = self._emit()
            for future in waiting:
                future.result(COMMIT_S)
        except BaseException as error:
            self._error = error
        self.took_s = time.monotonic() - begin_s

    def _emit(self) -> list[Future[Receipt]]:
        """Every tick at its time; the acknowledgements that are still to come, or failed."""
        begin_s, begin_us = time.monotonic(), time.time_ns() // 1000
        open_: list[Future[Receipt]] = []
        for tick in range(1, self._ticks + 1):
            due_s = begin_s + tick * TICK_S
            if self._stop.wait(max(0.0, due_s - time.monotonic())):
                break
            self.late_s = max(self.late_s, time.monotonic() - due_s)
            now_us = begin_us + round(tick * TICK_S * 1e6)
            for region, fleet in self._fleets.items():
                for event, batch in fleet.tick(now_us, TICK_S).items():
                    if len(batch):
                        self.offered[region] += len(batch)
                        future = self._clients[region].submit_many(event, batch)
                        future.add_done_callback(partial(self._note, region, time.monotonic()))
                        open_.append(future)
            open_ = [future for future in open_ if not _went_well(future)]
        return open_

    def _note(self, region: str, since_s: float, future: Future[Receipt]) -> None:
        if _went_well(future):
            with self._mutex:
                self.accepted[region] += future.result().count
                self.commit_s.append(time.monotonic() - since_s)


def _went_well(future: Future[Receipt]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
