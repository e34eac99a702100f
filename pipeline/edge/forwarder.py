"""From the spool to the regions' brokers: in order per partition, deleted only when acknowledged.

Comes in: blocks of the spool. Goes out: records in ``<region>.raw.<event>``, settlements back to the spool.
Invariants:
- Within a partition and lane, events arrive in the order of their sequences. A repeat after a crash or an
  unknown outcome begins at a point that was sent before; it never overtakes.
- A block is let go of when every part of its step is acknowledged by all replicas in sync.
- Regions do not wait for each other, lanes only while one step is in flight. The broker may be away at the
  start and at any time: waiting is bounded by the backoff and ends early when there is news.
- What a broker will never take (too large) is given up alone and entered in the loss ledger; any other
  refusal holds the line, because it is likelier a wrong topic than a wrong event.
- What was accepted before the link came (back) is backlog. It may be paced; what is fresh in other lanes, or
  in the other number of a lane that drains newest first, overtakes it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from pipeline.config import EdgeConfig
from pipeline.edge.committer import Spool
from pipeline.edge.drain import Drain
from pipeline.edge.ledger import SECOND, LaneLedger, LossLine
from pipeline.edge.metrics import EdgeMetrics, NoMetrics
from pipeline.edge.step import Part, Step
from pipeline.errors import ConfigError, PipelineError, RecordError, TransientError
from pipeline.reasons import Reason
from pipeline.topics import Topics

log = logging.getLogger(__name__)

FAIR_TURN = 8  # every so many steps the lane that waited longest goes first, so that none starves
LINGER_BELOW = 2_000  # events of a region; with more there is company enough
REPORT_S = 5.0  # how often a changed ledger is published
LOSSES_MAX = 500  # lines of the loss ledger in one report


class RegionWriter(Protocol):
    """A producer for one region's cluster."""

    async def start(self) -> None:
        """Connect; TransientError when no broker answers. May be tried again."""

    async def stop(self) -> None:
        """Close."""

    async def send(
        self, topic: str, partition: int, values: pa.BinaryArray, keys: pa.BinaryArray | None = None,
        timestamps_ms: np.ndarray | None = None,
    ) -> int:  # fmt: skip
        """Append in order; return when all replicas in sync have it.

        TransientError: try again, the outcome may be unknown. RecordError (oversize): one of the rows can
        never be taken. ConfigError: not allowed.
        """
        ...


class LedgerReport(Protocol):
    """Publishes the counters of one region's lanes."""

    async def publish(self, region: str, writer: RegionWriter, ledgers: Sequence[LaneLedger]) -> None:
        """Send them all; TransientError when the broker is away."""

    async def publish_losses(self, region: str, writer: RegionWriter, lines: Sequence[LossLine]) -> None:
        """Send lines of the loss ledger; TransientError when the broker is away."""


class Forwarder:
    """Empties one spool; one task per region. Starts the writers and stops them."""

    def __init__(
        self, spool: Spool, writers: Mapping[str, RegionWriter], topics: Topics,
        settings: EdgeConfig | None = None, metrics: EdgeMetrics | None = None,
        report: LedgerReport | None = None,
    ) -> None:  # fmt: skip
        self._spool = spool
        settings, metrics = settings or EdgeConfig(), metrics or NoMetrics()
        self._lines = [
            _Line(region, _Way(spool, writer, topics, settings, metrics, report))
            for region, writer in writers.items()
        ]

    async def run(self, stop: asyncio.Event) -> None:
        """Forward until ``stop`` is set; what is in flight then is awaited (the writer bounds it).

        Cancelling is safe: what was not settled is sent again by the next run. Raises (in a
        group) StoreCorrupt when the spool is.
        """
        loop = asyncio.get_running_loop()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop ended meanwhile
                loop.call_soon_threadsafe(self._wake)

        forget = self._spool.on_commit(wake)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._wake_at(stop), name="forward-stop")
                for line in self._lines:
                    tasks.create_task(line.run(stop), name=f"forward-{line.region}")
        finally:
            forget()

    def _wake(self) -> None:
        for line in self._lines:
            line.news.set()

    async def _wake_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._wake()


@dataclass(frozen=True)
class _Way:
    """What all lanes of a region share."""

    spool: Spool
    writer: RegionWriter
    topics: Topics
    settings: EdgeConfig
    metrics: EdgeMetrics
    report: LedgerReport | None

    def backoff_s(self, failures: int) -> float:
        """Seconds until the next try: doubling from the minimum, capped, with jitter."""
        low, high = self.settings.backoff_min_s, self.settings.backoff_max_s
        return min(high, low * 2.0 ** min(failures - 1, 30)) * random.uniform(0.5, 1.0)


class _Lane:
    """One lane of one region: at most one step, kept until it is settled."""

    def __init__(self, region: str, number: int, way: _Way, drain: Drain) -> None:
        self.number = number
        self.backlog = False  # what comes next was accepted before the link came
        self.next_try = 0.0
        self.served = 0.0
        self._region = region
        self._way = way
        self._drain = drain
        self._step: Step | None = None
        self._failures = 0

    @property
    def ready_at(self) -> float:
        """When it may go on, on the monotonic clock."""
        return max(self.next_try, self._drain.next_s) if self.backlog else self.next_try

    @property
    def held(self) -> bool:
        """Whether a step waits for its next try."""
        return self._step is not None

    async def advance(self, linked_ms: int) -> bool:
        """Send one step, or what is left of it, and settle it; whether that came true.

        What was accepted before ``linked_ms`` is backlog.
        """
        self.served = time.monotonic()
        try:
            if self._step is None:
                limit = self._drain.step_bytes if self.backlog else self._way.settings.step_bytes
                blocks = await asyncio.wrap_future(self._way.spool.read(self._region, self.number, limit))
                if not blocks:  # the counters say otherwise: look again later, not at once
                    raise TransientError("no block found", operation="forward")
                if self.backlog:
                    blocks = self._drain.share(blocks)
                self._step = Step(self._region, self.number, blocks)
            await self._send(self._step)
            await asyncio.wrap_future(self._way.spool.settle(self._step.settlement()))
        except (TransientError, ConfigError, RecordError) as error:
            self._failed(error)
            return False
        if self._step.first_ms < linked_ms:
            self._drain.sent(*self._step.size)
        else:
            self.backlog = False
        for event, count in self._step.forwarded().items():
            self._way.metrics.forwarded(event, self._region, count)
        if self._failures:
            log.info("forwarding to %s goes on after %d failures", self._region, self._failures)
        self._step, self._failures, self.next_try = None, 0, 0.0
        return True

    def _failed(self, error: PipelineError) -> None:
        self._failures += 1
        self.next_try = time.monotonic() + self._way.backoff_s(self._failures)
        if self._failures == 1:
            log.warning("forwarding to %s waits: %s", self._region, error)

    async def _send(self, step: Step) -> None:
        """All open parts at once; each remembers how far it came. Raises the worst error when all ended."""
        results = await asyncio.gather(*map(self._send_part, step.open_parts()), return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        if errors:
            raise next((e for e in errors if not isinstance(e, TransientError)), errors[0])

    async def _send_part(self, part: Part) -> None:
        topic = self._way.topics.raw(self._region, part.event)
        while not part.done:
            values, timestamps_ms = part.next_rows()
            try:
                await self._way.writer.send(topic, part.partition, values, timestamps_ms=timestamps_ms)
            except RecordError as error:
                if error.reason != Reason.OVERSIZE:
                    raise
                if len(values) == 1:
                    log.error("given up: one %s event for %s, %s", part.event, self._region, error.reason)
                part.refused(error.reason)
            else:
                part.acknowledged()


class _Line:
    """One region: which lane goes next, and when to wait."""

    def __init__(self, region: str, way: _Way) -> None:
        self.region = region
        self.news = asyncio.Event()
        self._way = way
        self._drain = Drain(way.settings)
        self._lanes = [_Lane(region, number, way, self._drain) for number in way.spool.numbers]
        self._turn = 0
        self._linked_ms = 0  # when the link came, on the wall clock, as acceptance is
        self._down = False
        self._reported: list[LaneLedger] = []
        self._next_report = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop``."""
        try:
            if await self._started(stop):
                await self._link_is_up()
                while not stop.is_set():
                    self.news.clear()
                    lane = self._next_lane()
                    if lane is not None:
                        await self._advance(lane)
                        if self._few_wait():
                            await _within(self._way.settings.forward_linger_ms / 1000, stop)
                    await self._publish()
                    if lane is None and not stop.is_set():
                        await self._wait()
        finally:
            await self._way.writer.stop()

    async def _started(self, stop: asyncio.Event) -> bool:
        failures = 0
        while not stop.is_set():
            try:
                await self._way.writer.start()
                return True
            except TransientError as error:
                failures += 1
                if failures == 1:
                    log.warning("no way to %s yet: %s", self.region, error)
                await _within(self._way.backoff_s(failures), stop)
        return False

    async def _advance(self, lane: _Lane) -> None:
        came_true = await lane.advance(self._linked_ms)
        if came_true and self._down:
            await self._link_is_up()
        self._down = not came_true

    async def _link_is_up(self) -> None:
        """What waits now is backlog; where a lane drains newest first, what comes next goes ahead of it."""
        self._linked_ms = time.time_ns() // 1_000_000
        for lane in self._pending():
            lane.backlog = True
            if lane.number == self._way.spool.live(lane.number % SECOND):
                try:
                    await asyncio.wrap_future(self._way.spool.split(lane.number % SECOND))
                except TransientError as error:
                    log.info("fresh events of %s wait behind the backlog: %s", self.region, error)

    def _pending(self) -> list[_Lane]:
        """Lanes with something to send, by priority; of a lane's two numbers the one that is fed first."""
        spool = self._way.spool
        waiting = {c.lane for c in spool.ledger() if c.region == self.region and c.pending > 0}
        found = [lane for lane in self._lanes if lane.held or lane.number in waiting]
        return sorted(
            found, key=lambda lane: (lane.number % SECOND, lane.number != spool.live(lane.number % SECOND))
        )

    def _few_wait(self) -> bool:
        """Whether the next step gains from waiting for company: its cost is per step, not per event."""
        return sum(counts.pending for counts in self._ledgers()) < LINGER_BELOW

    def _next_lane(self) -> _Lane | None:
        now = time.monotonic()
        ready = [lane for lane in self._pending() if lane.ready_at <= now]
        if not ready:
            return None
        self._turn += 1
        return ready[0] if self._turn % FAIR_TURN else min(ready, key=lambda lane: lane.served)

    async def _wait(self) -> None:
        """Until news, the next try or the next report."""
        times = [lane.ready_at for lane in self._pending()]
        if self._unreported():
            times.append(self._next_report)
        timeout = max(0.0, min(times) - time.monotonic()) if times else None
        await _within(timeout, self.news)

    def _unreported(self) -> bool:
        return self._way.report is not None and self._ledgers() != self._reported

    def _ledgers(self) -> list[LaneLedger]:
        return [counts for counts in self._way.spool.ledger() if counts.region == self.region]

    async def _publish(self) -> None:
        """Best effort: the next report says it again."""
        report, now = self._way.report, time.monotonic()
        if report is None or now < self._next_report or not self._unreported():
            return
        self._next_report = now + REPORT_S
        ledgers = self._ledgers()
        try:
            await report.publish(self.region, self._way.writer, ledgers)
            if any(counts.evicted for counts in ledgers):
                await self._publish_losses(report)
        except PipelineError as error:
            log.info("ledger of %s not published: %s", self.region, error)
        else:
            self._reported = ledgers

    async def _publish_losses(self, report: LedgerReport) -> None:
        """A line counts as sent once the broker has it."""
        spool = self._way.spool
        while lines := await asyncio.wrap_future(spool.unsent_losses(self.region, LOSSES_MAX)):
            await report.publish_losses(self.region, self._way.writer, lines)
            await asyncio.wrap_future(spool.losses_sent(lines))
            if len(lines) < LOSSES_MAX:
                break


async def _within(seconds: float | None, event: asyncio.Event) -> None:
    """Wait for the event, no longer than told.

    Not ``asyncio.wait_for``: before Python 3.12 it swallows a cancellation that comes with the event.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
