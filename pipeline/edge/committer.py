"""The spool: many producers, one writer thread, one fsync for all who wait.

Comes in: submissions from any thread, reads and settlements of the forwarder. Goes out: receipts after the
commit that makes them true. Invariants:
- One thread uses the spool's file; reads and settlements go through it too. They take turns with the commits,
  and settlements ride in the same transaction as new events, so forwarding costs no fsync of its own.
- A submission gets consecutive sequences, all of its rows or none. What is refused uses no sequence.
- The queue is bounded. Full means the producer waits, then TransientError; nothing is dropped.
- A lane without room refuses, and its producers wait before they try again; the other lanes go on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from pipeline.config import EdgeConfig
from pipeline.edge.blocks import Block, Change, Receipt, Refusal, Written
from pipeline.edge.grouping import Group, encode_group
from pipeline.edge.ledger import SECOND, LaneLedger, Loss, LossLine, Settlement, lane_name
from pipeline.edge.metrics import EdgeMetrics, NoMetrics
from pipeline.edge.shedding import Summarise
from pipeline.edge.spool import SpoolFile
from pipeline.edge.submission import Submission
from pipeline.edge.turn import Call, Turn, begin, fail
from pipeline.errors import PipelineError, RecordError, TransientError
from pipeline.reasons import Reason

log = logging.getLogger(__name__)

IDLE_S = 1.0  # without work for so long, the file is tidied
WAIT_S = 10.0  # how long a producer waits for room in the queue, unless it says otherwise
STOP_S = 30.0
FULL_S = 0.25  # a lane that had no room is asked again so often, or when something left
AGED_S = 1.0  # how often the age of what waits is looked at


class Spool:
    """A spool open for use; all methods may be called from any thread.

    ``lanes``: names, index = lane number. What the spool may hold, and which lane gives way when it is full,
    is in the settings; ``summarise`` serves lanes of the class ``summarise``. Raises what SpoolFile raises.
    """

    def __init__(
        self, path: Path, lanes: Sequence[str], settings: EdgeConfig | None = None,
        metrics: EdgeMetrics | None = None, summarise: Summarise | None = None,
    ) -> None:  # fmt: skip
        self.path, self.lanes = path, tuple(lanes)
        self._settings = settings or EdgeConfig()
        self._metrics: EdgeMetrics = metrics or NoMetrics()
        self._queue: deque[Submission] = deque()
        self._calls: list[Call] = []
        self._settlements: list[tuple[Settlement, Future[None]]] = []
        self._weight = 0  # of the queue
        self._company = 0  # how many the last commit served
        self._untidy = True
        self._full: dict[int, float] = {}  # lanes without room, and when they are asked again
        self._next_aged = 0.0
        self._closing = False
        self._listeners: tuple[Callable[[], None], ...] = ()
        lock = threading.Lock()
        self._work = threading.Condition(lock)  # the writer waits for any work
        self._enough = threading.Condition(lock)  # the writer waits for a full commit
        self._room = threading.Condition(lock)  # producers wait for the queue
        self._file = SpoolFile(path, lanes, settings, summarise)
        self._thread = threading.Thread(target=self._run, name="spool-writer", daemon=True)
        self._thread.start()

    @property
    def spool(self) -> int:
        """The incarnation that numbers new events; another one once a damaged file was replaced."""
        return self._file.spool

    @property
    def numbers(self) -> list[int]:
        """All lane numbers, the higher lane first; of a lane with two, the one that takes new events."""
        found = sorted(self._file.next_sequence)
        return sorted(found, key=lambda number: (number % SECOND, number != self.live(number % SECOND)))

    def live(self, lane: int) -> int:
        """The number under which new events of a lane are kept."""
        return self._file.live.get(lane, lane)

    def lane_name(self, number: int) -> str:
        """The name behind a lane number."""
        return lane_name(self.lanes, number)

    def submit(self, submission: Submission, wait_s: float = WAIT_S) -> Future[Receipt]:
        """Queue the rows; the future resolves once they are durable.

        Blocks up to ``wait_s`` while the queue or the lane is full, then TransientError. The future ends with
        RecordError (this submission is bad), TransientError (lane full, disk) or StoreCorrupt. Cancelled
        before its commit begins, it withdraws the rows.
        """
        deadline = time.monotonic() + wait_s
        limit = self._settings.queue_events_max
        with self._room:
            while not self._closing and self._is_full(submission.lane):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise self._no_room(submission.lane)
                self._room.wait(min(left, FULL_S))
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

    def read(self, region: str, lane: int, bytes_max: int, after: int = 0) -> Future[list[Block]]:
        """Blocks of (region, lane) beyond row ``after``: one, more up to ``bytes_max``; none at the end.

        ``lane`` is one of :attr:`numbers`. The blocks are in flight, and stay, until they are settled.
        """
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

    def unsent_losses(self, region: str, limit: int) -> Future[list[LossLine]]:
        """Lines of the loss ledger that are not upstream yet, oldest first."""
        return self._call(lambda: self._file.unsent_losses(region, limit))

    def losses_sent(self, lines: Sequence[LossLine]) -> Future[None]:
        """The lines are upstream; those that have grown meanwhile go again."""
        return self._call(lambda: self._file.losses_sent(lines))

    def split(self, lane: int) -> Future[bool]:
        """Let fresh events of a lane that drains newest first overtake what waits, if they do not already."""
        return self._call(lambda: self._file.split(lane))

    def ledger(self) -> list[LaneLedger]:
        """The counters as of the last commit; does not wait."""
        return self._file.ledger()

    def flush(self) -> None:
        """Return when all that was submitted before is durable or refused; its futures tell which."""
        while True:
            with self._work:
                taken = not self._queue
            self._call(lambda: None).result()  # served after the commit of what was taken before
            if taken:
                return

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
                fail([one for one in work.futures() if not one.done()], problem)

    def _next(self) -> Turn | None:
        """Wait for work; None when closing and nothing is left."""
        with self._work:
            while not (self._queue or self._calls or self._settlements):
                if self._closing:
                    return None
                if not self._work.wait(self._idle_s()):
                    return Turn(calls=[Call(self._tidy)] if self._untidy else [])
            wait_s = self._settings.commit_wait_ms / 1000
            if self._queue and self._company > 1 and wait_s:
                self._enough.wait_for(self._has_enough, wait_s)
            work = Turn(self._gather(), [c for c in self._calls if begin(c.future)], self._settlements)
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
            if begin(one.future):
                taken.append(one)
                weight += one.weight
        self._room.notify_all()
        return taken

    def _serve(self, work: Turn) -> None:
        for call in work.calls:
            try:
                call.future.set_result(call.ask())
            except PipelineError as error:
                call.future.set_exception(error)
        if work.submissions or work.settlements:
            self._commit(work)
        if self._settings.spool_age_max_s is not None and time.monotonic() >= self._next_aged:
            self._next_aged = time.monotonic() + AGED_S
            self._try("age", self._shed_aged)
        if self._file.checkpoint_due():
            self._try("checkpoint", self._file.checkpoint)

    def _commit(self, work: Turn) -> None:
        started = time.perf_counter()
        if work.submissions:
            self._company = len(work.submissions)
        self._untidy = True
        try:
            self._file.ready()
        except PipelineError as error:
            fail(Turn(work.submissions, [], work.settlements).futures(), error)
            return
        file = self._file
        group = encode_group(work.submissions, file.spool, file.next_sequence, file.live)
        settlements = [settlement for settlement, _ in work.settlements]
        done = self._write(group, settlements)
        if isinstance(done, PipelineError) and group.blocks and settlements:
            # What leaves makes room, and the forwarder must not wait for a producer's trouble.
            fail([submission.future for submission, _ in group.receipts], done)
            group = Group()
            done = self._write(group, settlements)
        futures = [future for _, future in work.settlements]
        if isinstance(done, PipelineError):
            fail([*(one.future for one, _ in group.receipts), *futures], done)
            return
        for submission, receipt in group.receipts:
            if submission.lane not in done.refused:
                submission.future.set_result(receipt)
        for future in futures:
            future.set_result(None)
        self._metrics.committed(time.perf_counter() - started)
        losses = [*done.losses, *(loss for settlement in settlements for loss in settlement.losses)]
        self._tell([block for block in group.blocks if block.lane % SECOND not in done.refused], losses)
        self._refused(group, done.refused)
        if settlements:
            self._ask_again()

    def _write(self, group: Group, settlements: Sequence[Settlement]) -> Written | PipelineError:
        if not group.blocks and not settlements:
            return Written()
        try:
            change = Change(group.blocks, group.next_sequence, settlements, self._file.spool)
            return self._file.write(change)
        except PipelineError as error:
            log.warning("%s", error)
            return error

    def _refused(self, group: Group, refused: Mapping[int, Refusal]) -> None:
        """No room for all that a lane brought: try each half, and what stands alone is told."""
        for lane, refusal in refused.items():
            mine = [submission for submission, _ in group.receipts if submission.lane == lane]
            if len(mine) > 1:
                half = len(mine) // 2
                self._commit(Turn(mine[:half]))
                self._commit(Turn(mine[half:]))
            elif refusal.brought > refusal.largest:
                problem = (
                    f"{refusal.brought} bytes in one call, lane {self.lanes[lane]!r} holds at most"
                    f" {refusal.largest}"
                )
                mine[0].future.set_exception(
                    RecordError(problem, reason=Reason.OVERSIZE, remedy="send them in parts")
                )
            else:
                with self._work:
                    self._full[lane] = time.monotonic() + FULL_S
                mine[0].future.set_exception(self._no_room(lane))

    def _ask_again(self) -> None:
        """Something left: lanes that were full may have room now."""
        with self._work:
            self._full.clear()
            self._room.notify_all()

    def _is_full(self, lane: int) -> bool:
        return self._full.get(lane, 0.0) > time.monotonic()

    def _no_room(self, lane: int) -> TransientError:
        return TransientError(
            f"no room for more events in lane {self.lanes[lane]!r}", operation="emit", place=str(self.path),
            remedy="wait until the forwarder has caught up, or give the spool more room",
        )  # fmt: skip

    def _shed_aged(self) -> None:
        while (done := self._file.shed_aged()).freed:
            self._tell([], done.losses)
            if not done.more:
                break

    def _tell(self, blocks: Sequence[Block], losses: Sequence[Loss] = ()) -> None:
        """Counters and listeners, after the producers have their answers."""
        for loss in losses:
            self._metrics.evicted(self.lanes[loss.lane % SECOND], loss.reason, loss.count)
        taken = Counter[tuple[str, str]]()
        for block in blocks:
            taken[block.event, block.region] += len(block.values)
        for (event, region), count in taken.items():
            self._metrics.accepted(event, region, count)
        pending = dict.fromkeys(self.lanes, 0)
        for counts in self._file.ledger():
            pending[self.lanes[counts.lane % SECOND]] += counts.pending
        self._metrics.spool(pending, self._file.pending_bytes)
        if blocks or losses:
            for listener in self._listeners:
                listener()

    def _idle_s(self) -> float | None:
        """How long to wait for work before looking after the file."""
        if self._untidy:
            return IDLE_S
        return None if self._settings.spool_age_max_s is None else AGED_S

    def _tidy(self) -> None:
        self._untidy = self._try("tidy", self._file.tidy) is True

    def _try(self, operation: str, act: Callable[[], Any]) -> Any:
        """Housekeeping may fail: the file opens anew with the next use."""
        try:
            return act()
        except PipelineError as error:
            log.warning("%s failed: %s", operation, error)
            return None

    def _call(self, ask: Callable[[], Any]) -> Future:
        call = Call(ask)
        with self._work:
            self._refuse_when_closing()
            self._calls.append(call)
            self._work.notify()
        return call.future

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise TransientError("is closing", operation="spool", place=str(self.path))
