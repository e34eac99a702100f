"""The spool's file: blocks of accepted events in SQLite, and the counters that go with them.

Comes in: blocks to keep, settlements of blocks that the broker has. Goes out: blocks in order, the ledger.
Invariants:
- What ``write`` returned from is on disk (WAL, ``synchronous=FULL``: one fsync per transaction).
- Sequences of a lane start at 1, have no gaps and are never given out twice; the next one, the counters, the
  blocks, what is given up and the loss ledger change in one transaction.
- One process owns the file (``flock`` on ``<file>.lock``), and in it one thread uses the one connection that
  writes and checkpoints. SQLite 3.7.0 to 3.51.2 can corrupt a WAL file when a second connection writes or
  checkpoints at the wrong moment (sqlite.org/wal.html#walresetbug), and Python often carries such a build.
  Readers of the ledger open the file read-only: they can do neither.
- A failed write or fsync is not tried again on the same connection: pages that the kernel calls clean may
  not be on disk. The file is opened anew, which writes all of the WAL into the database and syncs that.
- A file that SQLite calls corrupt is moved aside; a new one takes over what is whole in it.
- Blocks that were read and are not settled are in flight, and never given up.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from pipeline.config import EdgeConfig
from pipeline.edge import faults
from pipeline.edge.blocks import Block, Change, Written
from pipeline.edge.budget import Budget, Flight, room_of
from pipeline.edge.ledger import SECOND, LaneLedger, Loss, LossLine, LossReason
from pipeline.edge.lock import OwnerLock, make_private_file
from pipeline.edge.opening import (
    CHECKPOINT_BYTES,
    PAGE_BYTES,
    adopt,
    connect,
    live_numbers,
    read_ledger,
    two_numbers,
    used_bytes,
)  # fmt: skip
from pipeline.edge.place import Birth, write_birth
from pipeline.edge.salvage import damaged_files, done_with, finish_moving, move_aside, salvage
from pipeline.edge.shedding import Shed, Summarise, shed
from pipeline.edge.tables import (
    fetch,
    insert,
    loss_lines,
    mark_sent,
    read_ledgers,
    set_aside,
    settle,
    to_row,
)  # fmt: skip
from pipeline.errors import PipelineError, StoreCorrupt, TransientError

__all__ = ["SpoolFile", "read_ledger"]
log = logging.getLogger(__name__)

TIDY_PAGES = 2_048
READ_FAULTS_MAX = 3  # so often a disk may fail to give a page before the file counts as damaged


class SpoolFile:
    """The owner's view of one spool file. Every call blocks on disk; use it from one thread at a time.

    ``settings`` bound what it holds and say which lane gives way; ``summarise`` is asked for lanes of the
    class ``summarise``. Opening raises ConfigError when another process owns the file or the lanes differ,
    TransientError when the disk refuses.
    """

    def __init__(
        self, path: Path, lanes: Sequence[str], settings: EdgeConfig | None = None,
        summarise: Summarise | None = None,
    ) -> None:  # fmt: skip
        self.path = path
        self.spool = 0
        self.next_sequence: dict[int, int] = {}
        self.live: dict[int, int] = {}  # lane -> the number that its new events get
        self._lanes = tuple(lanes)
        self._settings = settings or EdgeConfig()
        self._budget = Budget(path.parent, lanes, self._settings, summarise)
        self._counts: list[LaneLedger] = []
        self._outcome = Written()
        self._commits = 0
        self._next_block = 1
        self._inode = 0
        self._birth = ""
        self._unsaved = 0  # bytes written since the last checkpoint
        self._read_faults = 0
        self._damaged = False
        self._db: sqlite3.Connection | None = None
        self._lock = OwnerLock(path)
        try:
            self._connection()
        except BaseException:
            self.close()
            raise

    @property
    def pending_bytes(self) -> int:
        """What waits, with its rows."""
        return self._budget.total

    def ledger(self) -> list[LaneLedger]:
        """The counters as of the last commit, per (spool, lane, region); the file's own first."""
        return list(self._counts)

    def ready(self) -> None:
        """Open the file anew if that is due: from now on ``spool`` and ``next_sequence`` are what counts."""
        self._connection()

    def write(self, change: Change) -> Written:
        """Make the change durable, in one transaction, but for the lanes that have no room: see Written.

        After a failure the file is opened anew and says whether the transaction is in: then the call
        succeeds. Else TransientError, and nothing of it was taken, unless the message says it is unknown.
        """
        db, before = self._connection(), self._commits
        self._expect_sound(change)
        try:
            with self._translated("write", db):
                self._transact(db, change)
                self._load(db)
        except TransientError as error:
            if self._db is not None:  # rolled back, the connection is well
                raise
            self._learn_outcome(before, error)
        return self._outcome

    def read(self, region: str, lane: int, bytes_max: int, after: int = 0) -> list[Block]:
        """Blocks of (region, lane) beyond row ``after``, oldest first: one, and more up to ``bytes_max``.

        They are in flight from now on, until they are settled. Blocks whose checksum is wrong are set aside
        and counted as evicted; the rest goes on.
        """
        db = self._connection()
        with self._translated("read", db):
            while True:
                blocks, room, damaged = fetch(db, (region, lane, after), bytes_max)
                if damaged:
                    db.execute("BEGIN IMMEDIATE")
                    set_aside(db, (lane, region), damaged)
                    db.execute("COMMIT")
                    self._load(db)
                    self._budget.used = used_bytes(db)
                if blocks:
                    self._budget.flight.take_off((region, lane), blocks[-1].identity, room, more=after > 0)
                if blocks or not damaged:
                    self._read_faults = 0
                    return blocks

    def losses(self) -> list[Loss]:
        """The last lines of the loss ledger, oldest first."""
        with self._reading() as db:
            return [line.loss for line in loss_lines(db)]

    def unsent_losses(self, region: str, limit: int) -> list[LossLine]:
        """Lines of a region that are not upstream yet, oldest first."""
        with self._reading() as db:
            return loss_lines(db, "sent = 0 AND region = ?", (region,), limit)

    def losses_sent(self, lines: Sequence[LossLine]) -> None:
        """The lines are upstream."""
        db = self._connection()
        with self._translated("write", db):
            db.execute("BEGIN IMMEDIATE")
            mark_sent(db, lines)
            db.execute("COMMIT")

    def shed_aged(self) -> Shed:
        """Give up what is older than ``spool_age_max_s``, in one transaction; says if more is left."""
        before_ms = int((time.time() - (self._settings.spool_age_max_s or 0)) * 1000)
        db, done = self._connection(), Shed()
        with self._translated("write", db):
            db.execute("BEGIN IMMEDIATE")
            for lane in self._budget.rules:
                done.plus(shed(db, replace(self._budget.order(lane, LossReason.AGE), before_ms=before_ms)))
            db.execute("UPDATE meta SET commits = commits + 1")
            db.execute("COMMIT" if done.freed else "ROLLBACK")
            self._load(db)
        self._budget.account(done.freed, sign=-1)
        self._unsaved += sum(done.freed.values())
        return done

    def split(self, lane: int) -> bool:
        """Let new events of a lane with two numbers take the other one, if nothing waits under that."""
        other = self.live.get(lane, lane) ^ SECOND
        free = lane in self.live and not any(c.pending for c in self._counts if c.lane == other)
        if free:
            self.live[lane] = other
        return free

    def checkpoint_due(self) -> bool:
        """Whether enough was written that the WAL should go into the database."""
        return self._unsaved >= CHECKPOINT_BYTES

    def checkpoint(self) -> None:
        """Move the WAL into the database, as far as readers allow."""
        db = self._connection()
        with self._translated("checkpoint", db):
            db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        self._unsaved = 0

    def tidy(self) -> bool:
        """A step for idle times: give free pages back and empty the WAL, so that no settled event stays.

        Returns whether more is left to do.
        """
        db = self._connection()
        with self._translated("tidy", db):
            db.execute(f"PRAGMA incremental_vacuum({TIDY_PAGES})").fetchall()
            busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            free = db.execute("PRAGMA freelist_count").fetchone()[0]
        self._unsaved = 0
        with suppress(OSError):
            write_birth(self.path, Birth(self._birth, self._commits))
        return bool(busy or free)

    def close(self) -> None:
        """Let go of file and lock; what was written stays. Safe to call twice."""
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
            self._db = None
            with suppress(OSError):
                write_birth(self.path, Birth(self._birth, self._commits))
        self._lock.release()

    # -- opening

    def _connection(self) -> sqlite3.Connection:
        """The connection, opened anew if the last one failed, on a new file if that one is damaged."""
        if not self._lock.held:
            raise TransientError("is closed", operation="spool", place=str(self.path))
        if self._db is None:
            if self._damaged:
                self._replace()
            try:
                self._open()
            except StoreCorrupt as error:
                log.error("%s", error)
                self._replace()
                self._open()
        assert self._db is not None
        return self._db

    def _replace(self) -> None:
        try:
            move_aside(self.path)
        except OSError as error:
            raise TransientError(
                f"damaged, and cannot be moved aside: {error.strerror}", operation="spool open",
                place=str(self.path), remedy="look at the disk",
            ) from error  # fmt: skip
        self.spool, self._damaged = 0, False
        self._budget.flight = Flight()

    def _open(self) -> None:
        finish_moving(self.path)
        make_private_file(self.path)  # SQLite gives its logs the same mode
        seconds = two_numbers(self._lanes, self._settings)
        with self._translated("open", None):
            db = connect(self.path)
            try:
                self._inode = os.stat(self.path).st_ino
                opened = adopt(db, self.path, self._lanes, self._settings.step_bytes, seconds)
                for damaged in damaged_files(self.path):
                    salvage(db, damaged, PAGE_BYTES)
                done_with(self.path)
                self._load(db)
                self._budget.used = used_bytes(db)
                self.live = live_numbers(db, seconds)
            except BaseException:
                db.close()
                raise
        self._birth, self._unsaved = opened.birth, 0
        self._budget.flight = Flight({**opened.leases, **self._budget.flight.leases})
        self._db = db

    def _load(self, db: sqlite3.Connection) -> None:
        """Counters from the file: memory never runs ahead of the disk."""
        spool, commits, next_block = db.execute("SELECT spool, commits, next_block FROM meta").fetchone()
        if self.spool not in (0, spool):
            raise faults.corrupt(self.path, "another spool lies here now")
        self.spool, self._commits, self._next_block = spool, commits, next_block
        self.next_sequence = dict(db.execute("SELECT lane, next_sequence FROM lane"))
        self._counts = list(read_ledgers(db, spool))
        taken = Counter[int]()
        for counts in self._counts:
            taken[counts.lane] += counts.accepted if counts.spool == spool else 0
        for lane, following in self.next_sequence.items():
            if taken[lane] != following - 1:
                problem = f"lane {lane} gave out {following - 1} sequences, regions took {taken[lane]}"
                raise faults.corrupt(self.path, problem)

    # -- one step

    def _expect_sound(self, change: Change) -> None:
        """What must hold before the disk is touched: sequences without gaps, and the file where it was."""
        if change.spool not in (0, self.spool):
            raise TransientError(
                "the file was replaced; nothing was taken", operation="spool write", place=str(self.path)
            )
        for lane, following in change.next_sequence.items():
            given = sum(len(block.values) for block in change.blocks if block.lane == lane)
            if following - self.next_sequence.get(lane, 1) != given:
                raise faults.corrupt(
                    self.path, f"lane {lane} would move by other than the {given} events given"
                )
        try:
            here = os.stat(self.path).st_ino
        except OSError:
            here = 0
        if here != self._inode:
            raise faults.corrupt(self.path, "the file was removed or replaced while open")

    def _transact(self, db: sqlite3.Connection, change: Change) -> None:
        db.execute("BEGIN IMMEDIATE")
        flight, moved = self._budget.flight.copy(), Counter[int]()
        for done in change.settlements:
            moved[done.lane] -= settle(db, done)
            flight.landed((done.region, done.lane), done.through)
        rows = [to_row(block, self.spool) for block in change.blocks]
        plan, reason = self._budget.plan(db, rows, moved, flight)
        gone = Shed()
        for lane, amount in plan.shed.items():
            gone.plus(shed(db, replace(self._budget.order(lane, reason, flight), bytes=amount)))
        if sum(gone.freed.values()) < sum(plan.shed.values()):
            db.execute("ROLLBACK")
            raise faults.full(self.path)
        self._outcome = Written(self._budget.refusals(plan, rows), tuple(gone.losses))
        if change.blocks and not change.settlements and len(plan.refused) == len({row[1] for row in rows}):
            db.execute("ROLLBACK")
            return
        kept = [row for row in rows if row[1] % SECOND not in plan.refused]
        following = {n: s for n, s in change.next_sequence.items() if n % SECOND not in plan.refused}
        insert(db, self._next_block, kept, following)
        db.execute("COMMIT")
        self._unsaved += sum(map(abs, moved.values())) + sum(gone.freed.values())
        for row in kept:
            moved[row[1]] += room_of(row)
            self._unsaved += room_of(row)
        self._unsaved += 6 * PAGE_BYTES  # what a small commit touches
        self._budget.flight = flight
        self._budget.account(moved)
        self._budget.account(gone.freed, sign=-1)

    # -- failing

    def _learn_outcome(self, before: int, error: TransientError) -> None:
        """Open anew and look whether the failed transaction is in."""
        spool = self.spool
        try:
            self._connection()
        except PipelineError as again:
            raise faults.outcome_unknown(self.path) from again
        if (
            self.spool != spool
        ):  # the file was damaged: what of the events was whole came over, uncounted here
            raise faults.outcome_unknown(self.path)
        if self._commits == before:
            raise error

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        db = self._connection()
        with self._translated("read", db):
            yield db

    @contextmanager
    def _translated(self, operation: str, db: sqlite3.Connection | None) -> Iterator[None]:
        """SQLite's errors as ours. A failed connection is dropped; a full disk only rolls back."""
        try:
            yield
        except sqlite3.Error as error:
            if db is None:
                if faults.is_damaged(error, opening=True):
                    raise faults.corrupt(self.path, faults.name_of(error)) from error
                raise faults.failed(self.path, operation, error, damaged=False) from error
            if faults.is_full(error):
                with suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
                raise faults.full(self.path) from error
            self._db = None
            with suppress(sqlite3.Error):
                db.close()
            self._read_faults += faults.is_read_fault(error)
            self._damaged = faults.is_damaged(error) or self._read_faults >= READ_FAULTS_MAX
            raise faults.failed(self.path, operation, error, damaged=self._damaged) from error
        except (TypeError, ValueError) as error:
            if db is not None:
                raise
            raise faults.corrupt(self.path, f"{type(error).__name__} at opening") from error
