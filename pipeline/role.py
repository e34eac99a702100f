"""One process of the pipeline: it announces that it is ready, and stops when it is told to.

Comes in: work that runs until an event is set. Goes out: a process with a ready file and ``/metrics``. On
SIGTERM or SIGINT the work drains for at most DRAIN_S and is then broken off; a second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from prometheus_client import CollectorRegistry

from pipeline.metrics import serve
from pipeline.stack import announce_ready

log = logging.getLogger(__name__)

DRAIN_S = 8.0  # how long a role may take to finish what is in hand once it was told to stop


class Startable(Protocol):
    """A connection with a beginning and an end."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


S = TypeVar("S", bound=Startable)
Work = Callable[[asyncio.Event], Awaitable[None]]  # runs until the event is set


@asynccontextmanager
async def started(service: S) -> AsyncIterator[S]:
    """Start now, stop at the end."""
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


@dataclass(frozen=True)
class Role:
    """One process of the pipeline: its name, its ready file, its signals."""

    name: str
    ready_file: Path
    metrics_host: str
    metrics_port: int = 0

    def serving(self, registry: CollectorRegistry) -> AbstractContextManager[int]:
        """``/metrics`` on a port of its own, which it hands out."""
        return serve(registry, self.metrics_host, self.metrics_port)

    async def run(
        self, work: Work, ready: asyncio.Event, port: int, more_ports: Mapping[str, int] | None = None
    ) -> None:
        """Run ``work`` until SIGTERM or SIGINT; a second one ends the process at once.

        Once ``ready`` is set the ready file appears with ``port``, where ``/metrics`` is, and the others.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, stop, number)
        announcing = asyncio.create_task(self._announce(ready, port, more_ports or {}))
        working = asyncio.ensure_future(work(stop))
        ending = asyncio.create_task(self._end(stop, working))
        try:
            await working
        except asyncio.CancelledError:
            if not stop.is_set():
                raise
        finally:
            announcing.cancel()
            ending.cancel()
            self.ready_file.unlink(missing_ok=True)

    async def _end(self, stop: asyncio.Event, working: asyncio.Future[None]) -> None:
        """Break off what has not ended DRAIN_S after the stop; everything is safe to break off."""
        await stop.wait()
        await asyncio.sleep(DRAIN_S)
        log.warning("%s: not drained in %g s, broken off", self.name, DRAIN_S)
        working.cancel()

    def _on_signal(self, stop: asyncio.Event, number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        log.info("%s: stopping", self.name)
        stop.set()

    async def _announce(self, ready: asyncio.Event, port: int, more_ports: Mapping[str, int]) -> None:
        await ready.wait()
        self.ready_file.parent.mkdir(parents=True, exist_ok=True)
        announce_ready(self.ready_file, port, more_ports)
        log.info("%s: ready, metrics on port %d", self.name, port)
