"""An edge to be killed: it emits what :mod:`tests.faults.flow` says and forwards, in one process.

``python -m tests.faults.producer --config F --state S --events N --seconds T --seed K``: all N events, spread
over T seconds, one thread per lane. After a kill, start it again: each lane goes on after the last sequence
that its spool took. What was acknowledged is written to ``<state>/acknowledged/<lane>`` before the next emit:
``first count`` per receipt. When all is emitted it goes on forwarding until SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import threading
import time
from pathlib import Path

import pyarrow as pa

from pipeline.config import load_config
from pipeline.edge import EdgeClient, Receipt, Spool
from pipeline.edge_service import forwarder, open_edge
from pipeline.service import Project
from tests.faults.flow import STREAMS, Stream, targets

NAME = "edge"
BATCHES = (1, 1, 7, 40, 250)  # rows per call; 1 is ``emit``, the largest goes as columns


class Lane:
    """One lane's producer."""

    def __init__(self, stream: Stream, target: int, spool: Spool, folder: Path) -> None:
        self.stream, self.target = stream, target
        lane = spool.lanes.index(stream.lane)
        self.next = 1 + sum(ledger.accepted for ledger in spool.ledger() if ledger.lane == lane)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / stream.lane, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def run(self, client: EdgeClient, rate: float, chance: random.Random, stop: threading.Event) -> None:
        """Emit up to the target, ``rate`` events a second."""
        first, started = self.next, time.monotonic()
        while self.next <= self.target:
            if stop.wait(max(0.0, started + (self.next - first) / rate - time.monotonic())):
                return
            count = min(chance.choice(BATCHES), self.target - self.next + 1)
            receipt = self._emit(client, count)
            if (receipt.first_sequence, receipt.count) != (self.next, count):
                print(f"expected {count} rows from sequence {self.next}, got {receipt}", flush=True)
                os._exit(70)  # an exception would end this thread alone
            os.write(self._file, f"{receipt.first_sequence} {receipt.count}\n".encode())
            self.next += count

    def _emit(self, client: EdgeClient, count: int) -> Receipt:
        event = self.stream.event
        rows = [self.stream.row(sequence) for sequence in range(self.next, self.next + count)]
        if count == 1:
            row = dict(rows[0])
            given = {name: row.pop(name) for name in ("source", "event_time", "jurisdiction")}
            return client.emit(event, row, **given)
        if count < max(BATCHES):
            return client.emit_many(event, rows)
        columns = pa.RecordBatch.from_pylist(rows)
        moment = columns.schema.get_field_index("event_time")
        times = columns.column(moment).cast(pa.timestamp("us"))
        return client.emit_many(event, columns.set_column(moment, "event_time", times))


def main() -> None:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser()
    for name in ("config", "state"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    project = Project.open(load_config(given.config).model_copy(update={"state": given.state}))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with open_edge(project, NAME) as (spool, client):
        counts = targets(given.events)
        threads = []
        for stream in STREAMS:
            lane = Lane(stream, counts[stream.event], spool, given.state / "acknowledged")
            chance = random.Random(f"{given.seed} {stream.lane} {lane.next}")
            rate = counts[stream.event] / given.seconds
            threads.append(threading.Thread(target=lane.run, args=(client, rate, chance, stop), daemon=True))
        for thread in threads:
            thread.start()
        asyncio.run(forward(project, spool, stop))
        for thread in threads:
            thread.join()


async def forward(project: Project, spool: Spool, stop: threading.Event) -> None:
    """The forwarder until ``stop``."""
    ended = asyncio.Event()
    run = asyncio.create_task(forwarder(project, NAME, spool).run(ended))
    waiting = asyncio.create_task(asyncio.to_thread(stop.wait))
    await asyncio.wait((run, waiting), return_when=asyncio.FIRST_COMPLETED)
    ended.set()
    stop.set()
    await run


if __name__ == "__main__":
    main()
