"""An edge for the length of one command: take events, forward them, end when the broker has them all.

Comes in: a project and a name. Goes out: a client; leaving the block waits until the spool is empty. What was
accepted stays in the spool when that fails, and the next use of the same name sends it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import Progress

from pipeline.edge import EdgeClient, Spool, read_ledger
from pipeline.edge_service import forwarder, open_edge
from pipeline.errors import TransientError
from pipeline.installation import Installation

STALL_S = 60.0  # without any progress for so long, the command gives up waiting (the spool keeps the events)


@contextmanager
def drained_edge(project: Installation, name: str, bar: Progress | None = None) -> Iterator[EdgeClient]:
    """A client whose events are all acknowledged by the broker when the block ends.

    Raises ConfigError while another process uses the spool, TransientError when the broker stays away.
    """
    with open_edge(project, name) as (spool, client), _forwarding(project, name, spool):
        yield client
        spool.flush()
        _wait_until_empty(spool, bar)


@contextmanager
def _forwarding(project: Installation, name: str, spool: Spool) -> Iterator[None]:
    """A forwarder on a loop of its own, in a thread, so that producers may block."""
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(
        target=lambda: loop.run_until_complete(forwarder(project, name, spool).run(stop)), name="forwarder"
    )
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def _wait_until_empty(spool: Spool, bar: Progress | None) -> None:
    task = bar.add_task("forwarded", total=None) if bar else None
    last, moved = -1, time.monotonic()
    total = 0
    while True:
        pending = sum(lane.pending for lane in read_ledger(spool.path))
        total = max(total, pending)
        if bar is not None and task is not None:
            bar.update(task, total=total, completed=total - pending)
        if pending == 0:
            return
        if pending != last:
            last, moved = pending, time.monotonic()
        if time.monotonic() - moved > STALL_S:
            raise TransientError(
                f"{pending} accepted events wait in the spool, the broker does not take them",
                operation="forwarding", place=str(spool.path), remedy="they are safe; run the command again",
            )  # fmt: skip
        time.sleep(0.05)
