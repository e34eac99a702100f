"""The spool: many producers, one writer thread, one fsync for all who wait.

Comes in: submissions from any thread, reads and settlements of the forwarder. Goes out: receipts after the
commit that makes them true. Invariants:
- One thread uses the spool's file; reads and settlements go through it too. They take turns with the commits,
  and settlements ride in the same transaction as new events, so forwarding costs no fsync of its own.
- A submission gets consecutive sequences, all of its rows or none. What is refused uses no sequence.
- The queue is bounded. Full means the producer waits, then TransientError; nothing is dropped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import EdgeConfig
from pipeline.edge.blocks import Block, Change, Receipt
from pipeline.edge.grouping import Group, encode_group
from pipeline.edge.ledger import LaneLedger, Loss, Settlement
from pipeline.edge.metrics import EdgeMetrics, NoMetrics
from pipeline.edge.spool import SpoolFile
from pipeline.edge.submission import Submission
from pipeline.errors import PipelineError, TransientError

log = logging.getLogger(__name__)

IDLE_S = 1.0  # without work for so long, the file is tidied
WAIT_S = 10.0  # how long a producer waits for room in the queue, unless it says otherwise
STOP_S = 30.0


@dataclass
class _Call:
    """A question to the file, asked from another thread."""

    ask: Callable[[], Any]
    future: Future = field(default_factory=Future)


@dataclass
class _Work:
    """One turn of the writer."""

    submissions: list[Submission]
    calls: list[_Call]
    settlements: list[tuple[Settlement, Future[None]]]

    def futures(self) -> list[Future]:
        """All that someone waits for."""
        found: list[Future] = [call.future for call in self.calls]
        found += [submission.future for submission in self.submissions]
        return found + [future for _, future in self.settlements]


class Spool:
    """A spool open for use; all methods may be called from any thread.

    ``lanes``: names, index = lane number. ``bytes_max`` bounds the payload that waits; beyond it, and when
    the disk is nearly full, new events are refused with TransientError. Raises what SpoolFile raises.
    """

    def __init__(
        self, path: Path, lanes: Sequence[str], settings: EdgeConfig | None = None,
        metrics: EdgeMetrics | None = None, bytes_max: int | None = None,
    ) -> None:  # fmt: skip
        self.path, self.lanes = path, tuple(lanes)
        self._settings = settings or EdgeConfig()
        self._metrics: EdgeMetrics = metrics or NoMetrics()
        self._queue: deque[Submission] = deque()
        self._calls: list[_Call] = []
        self._settlements: list[tuple[Settlement, Future[None]]] = []
        self._weight = 0  # of the queue
        self._company = 0  # how many the last commit served
        self._untidy = True
        self._closing = False
        self._listeners: tuple[Callable[[], None], ...] = ()
        lock = threading.Lock()
        self._work = threading.Condition(lock)  # the writer waits for any work
        self._enough = threading.Condition(lock)  # the writer waits for a full commit
        self._room = threading.Condition(lock)  # producers wait for the queue
        self._file = SpoolFile(path, lanes, bytes_max)
        self.spool = self._file.spool
        self._thread = threading.Thread(target=self._run, name="spool-writer", daemon=True)
        self._thread.start()

    # -- producers

    def submit(self, submission: Submission, wait_s: float = WAIT_S) -> Future[Receipt]:
        """Queue the rows; the future resolves once they are durable.

        Blocks up to ``wait_s`` while the queue is full, then TransientError. The future ends with
        RecordError (this submission is bad), TransientError (disk) or StoreCorrupt. Cancelled before its
        commit begins, it withdraws the rows.
        """
        deadline = time.monotonic() + wait_s
        limit = self._settings.queue_events_max
        with self._room:
            while not self._closing and self._weight and self._weight + submission.weight > limit:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TransientError(
                        f"{limit} events wait for a commit already", operation="emit", place=str(self.path),
                        remedy="send more slowly, or give the spool a faster disk",
                    )  # fmt: skip
                self._room.wait(left)
            self._refuse_when_closing()
            self._queue.append(submission)
            self._weight += submission.weight
            self._work.notify()
            if self._has_enough():
                self._enough.notify()
        return submission.future

    # -- the forwarder and whoever watches

    def read(self, region: str, lane: int, bytes_max: int, after: int = 0) -> Future[list[Block]]:
        """Blocks of (region, lane) beyond row ``after``: one, more up to ``bytes_max``; none at the end."""
        return self._call(lambda: self._file.read(region, lane, bytes_max, after))

    def settle(self, settlement: Settlement) -> Future[None]:
        """Let blocks go and count them; resolves when that is durable. May be repeated."""
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()  # the broker has the events: it cannot be taken back
        with self._work:
            self._refuse_when_closing()
            self._settlements.append((settlement, future))
            self._work.notify()
        return future

    def losses(self) -> Future[list[Loss]]:
        """The last lines of the loss ledger, oldest first."""
        return self._call(self._file.losses)

    def ledger(self) -> list[LaneLedger]:
        """The counters as of the last commit; does not wait."""
        return self._file.ledger()

    def on_commit(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` in the writer's thread after each commit of events; returns how to stop it."""
        with self._work:
            self._listeners = (*self._listeners, listener)

        def forget() -> None:
            with self._work:
                self._listeners = tuple(one for one in self._listeners if one is not listener)

        return forget

    def close(self) -> None:
        """Commit what is queued, then let go of the file. Safe to call twice."""
        with self._work:
            self._closing = True
            for condition in (self._work, self._enough, self._room):
                condition.notify_all()
        self._thread.join(STOP_S)
        if self._thread.is_alive():
            raise TransientError(
                f"the last commit takes longer than {STOP_S} s", operation="close", place=str(self.path)
            )
        self._file.close()

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the writer's thread

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                self._serve(work)
            except BaseException as error:  # the thread must live: producers wait for it
                log.error("spool writer: unexpected %s at %s", type(error).__name__, self.path)
                problem = TransientError(
                    f"unexpected {type(error).__name__}", operation="commit", place=str(self.path)
                )
                self._fail([one for one in work.futures() if not one.done()], problem)

    def _next(self) -> _Work | None:
        """Wait for work; None when closing and nothing is left."""
        with self._work:
            while not (self._queue or self._calls or self._settlements):
                if self._closing:
                    return None
                if not self._work.wait(IDLE_S if self._untidy else None):
                    return _Work([], [_Call(self._tidy)], [])
            wait_s = self._settings.commit_wait_ms / 1000
            if self._queue and self._company > 1 and wait_s:
                self._enough.wait_for(self._has_enough, wait_s)
            work = _Work(self._gather(), [c for c in self._calls if _begin(c.future)], self._settlements)
            self._calls, self._settlements = [], []
            return work

    def _has_enough(self) -> bool:
        """Whether a commit need not wait for company: it is full, or as many are here as last time."""
        return (
            self._closing
            or self._weight >= self._settings.commit_events_max
            or len(self._queue) >= self._company
        )

    def _gather(self) -> list[Submission]:
        """Take submissions for one commit: one, and more up to the configured size."""
        taken: list[Submission] = []
        weight = 0
        while self._queue:
            one = self._queue[0]
            if taken and weight + one.weight > self._settings.commit_events_max:
                break
            self._queue.popleft()
            self._weight -= one.weight
            if _begin(one.future):
                taken.append(one)
                weight += one.weight
        self._room.notify_all()
        return taken

    def _serve(self, work: _Work) -> None:
        for call in work.calls:
            try:
                call.future.set_result(call.ask())
            except PipelineError as error:
                call.future.set_exception(error)
        if work.submissions or work.settlements:
            self._commit(work)
        if self._file.checkpoint_due():
            self._try("checkpoint", self._file.checkpoint)

    def _commit(self, work: _Work) -> None:
        started = time.perf_counter()
        if work.submissions:
            self._company = len(work.submissions)
        self._untidy = True
        group = encode_group(work.submissions, self.spool, self._file.next_sequence)
        settlements = [settlement for settlement, _ in work.settlements]
        error = self._write(group, settlements)
        if error is not None and group.blocks and settlements:
            # What leaves makes room, and the forwarder must not wait for a producer's trouble.
            self._fail([submission.future for submission, _ in group.receipts], error)
            group = Group()
            error = self._write(group, settlements)
        futures = [future for _, future in work.settlements]
        if error is not None:
            self._fail([*(one.future for one, _ in group.receipts), *futures], error)
            return
        for submission, receipt in group.receipts:
            submission.future.set_result(receipt)
        for future in futures:
            future.set_result(None)
        self._metrics.committed(time.perf_counter() - started)
        self._tell(group.blocks)

    def _write(self, group: Group, settlements: Sequence[Settlement]) -> PipelineError | None:
        if not group.blocks and not settlements:
            return None
        if group.blocks and not self._file.has_room(sum(block.values.nbytes for block in group.blocks)):
            return TransientError(
                "no room for more events", operation="emit", place=str(self.path),
                remedy="free disk space, or wait until the forwarder has caught up",
            )  # fmt: skip
        try:
            self._file.write(Change(group.blocks, group.next_sequence, settlements))
        except PipelineError as error:
            log.warning("%s", error)
            return error
        return None

    def _tell(self, blocks: Sequence[Block]) -> None:
        """Counters and listeners, after the producers have their answers."""
        taken = Counter[tuple[str, str]]()
        for block in blocks:
            taken[block.event, block.region] += len(block.values)
        for (event, region), count in taken.items():
            self._metrics.accepted(event, region, count)
        pending = dict.fromkeys(self.lanes, 0)
        for counts in self._file.ledger():
            pending[self.lanes[counts.lane]] += counts.pending
        self._metrics.spool(pending, self._file.pending_bytes)
        if blocks:
            for listener in self._listeners:
                listener()

    def _tidy(self) -> None:
        self._untidy = self._try("tidy", self._file.tidy) is True

    def _try(self, operation: str, act: Callable[[], Any]) -> Any:
        """Housekeeping may fail: the file opens anew with the next use."""
        try:
            return act()
        except PipelineError as error:
            log.warning("%s failed: %s", operation, error)
            return None

    def _fail(self, futures: Sequence[Future], error: PipelineError) -> None:
        """Each waiter gets an exception of its own: they are raised in several threads."""
        for future in futures:
            again = type(error)(
                error.problem, operation=error.operation, place=error.place, remedy=error.remedy
            )
            future.set_exception(again)

    def _call(self, ask: Callable[[], Any]) -> Future:
        call = _Call(ask)
        with self._work:
            self._refuse_when_closing()
            self._calls.append(call)
            self._work.notify()
        return call.future

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise TransientError("is closing", operation="spool", place=str(self.path))


def _begin(future: Future) -> bool:
    """Whether nobody cancelled it; from now on nobody can."""
    return future.set_running_or_notify_cancel()
