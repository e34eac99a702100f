"""The spool's file: blocks of accepted events in SQLite, and the counters that go with them.

Comes in: blocks to keep, settlements of blocks that the broker has. Goes out: blocks in order, the ledger.
Invariants:
- What ``write`` returned from is on disk (WAL, ``synchronous=FULL``: one fsync per transaction).
- Sequences of a lane start at 1, have no gaps and are never given out twice; the next one, the counters and
  the blocks change in one transaction.
- One process owns the file (``flock`` on ``<file>.lock``), and in it one thread uses the one connection that
  writes and checkpoints. SQLite 3.7.0 to 3.51.2 can corrupt a WAL file when a second connection writes or
  checkpoints at the wrong moment (sqlite.org/wal.html#walresetbug), and Python often carries such a build.
  Readers of the ledger open the file read-only: they can do neither.
- A failed write or fsync is not tried again on the same connection: pages that the kernel calls clean may
  not be on disk. The file is opened anew, which writes all of the WAL into the database and syncs that.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from pipeline.edge.blocks import Block, Change
from pipeline.edge.ledger import LaneLedger, Loss
from pipeline.edge.lock import OwnerLock, make_private_file
from pipeline.edge.tables import BLOCK_COLUMNS, FORMAT, TABLES, from_row, set_aside, settle, to_row
from pipeline.errors import ConfigError, PipelineError, StoreCorrupt, TransientError

# Four times as large: commits of megabytes 1.5 times as fast, small ones write four times as much.
PAGE_BYTES = 4_096
CHECKPOINT_BYTES = 16 << 20  # payload written since the last checkpoint
FREE_BYTES_MIN = 4 * CHECKPOINT_BYTES
TIDY_PAGES = 2_048
DAMAGED_STEP_MAX = 1_000

_LEDGER = "SELECT lane, region, accepted, forwarded, evicted FROM ledger ORDER BY lane, region"


class SpoolFile:
    """The owner's view of one spool file. Every call blocks on disk; use it from one thread at a time.

    ``bytes_max`` bounds the payload that waits (None: the disk does). Whatever it is, new events are refused
    while the disk has less than FREE_BYTES_MIN left, so that there is room to write down what was forwarded.
    Opening raises ConfigError when another process owns the file or the lanes differ, StoreCorrupt when it is
    damaged beyond single blocks, TransientError when the disk refuses.
    """

    def __init__(self, path: Path, lanes: Sequence[str], bytes_max: int | None = None) -> None:
        self.path = path
        self.spool = 0
        self.next_sequence: dict[int, int] = {}
        self.pending_bytes = 0
        self._lanes = tuple(lanes)
        self._bytes_max = bytes_max
        self._counts: dict[tuple[int, str], LaneLedger] = {}
        self._commits = 0
        self._next_block = 1
        self._inode = 0
        self._unsaved = 0  # payload bytes written since the last checkpoint
        self._db: sqlite3.Connection | None = None
        self._lock = OwnerLock(path)
        try:
            make_private_file(path)  # SQLite gives its logs the same mode
            self._connection()
        except BaseException:
            self.close()
            raise

    def ledger(self) -> list[LaneLedger]:
        """The counters as of the last commit, per (lane, region)."""
        return list(self._counts.values())

    def write(self, change: Change) -> None:
        """Make the change durable, in one transaction.

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

    def read(self, region: str, lane: int, bytes_max: int, after: int = 0) -> list[Block]:
        """Blocks of (region, lane) beyond row ``after``, oldest first: one, and more up to ``bytes_max``.

        Blocks whose checksum is wrong are set aside and counted as evicted; the rest goes on.
        """
        db = self._connection()
        with self._translated("read", db):
            while True:
                blocks, damaged = self._fetch(db, (region, lane, after), bytes_max)
                if damaged:
                    db.execute("BEGIN IMMEDIATE")
                    set_aside(db, self._counts[lane, region], damaged)
                    db.execute("COMMIT")
                    self._load(db)
                    self.pending_bytes = _payload_bytes(db)
                if blocks or not damaged:
                    return blocks

    def losses(self) -> list[Loss]:
        """The last lines of the loss ledger, oldest first."""
        db = self._connection()
        columns = "lane, region, event, first_sequence, last_sequence, count, reason"
        with self._translated("read", db):
            return [Loss(*row) for row in db.execute(f"SELECT {columns} FROM loss ORDER BY id")]

    def has_room(self, payload_bytes: int) -> bool:
        """Whether this much payload more stays within the bounds."""
        disk = os.statvfs(self.path.parent)
        if disk.f_bavail * disk.f_frsize - payload_bytes < FREE_BYTES_MIN:
            return False
        return self._bytes_max is None or self.pending_bytes + payload_bytes <= self._bytes_max

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
        return bool(busy or free)

    def close(self) -> None:
        """Let go of file and lock; what was written stays. Safe to call twice."""
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
            self._db = None
        self._lock.release()

    # -- opening

    def _connection(self) -> sqlite3.Connection:
        """The connection, opened anew if the last one failed."""
        if not self._lock.held:
            raise TransientError("is closed", operation="spool", place=str(self.path))
        if self._db is None:
            with self._translated("open", None):
                db = sqlite3.connect(self.path, timeout=5.0, isolation_level=None, check_same_thread=False)
                db.text_factory = _text
                try:
                    self._prepare(db)
                except BaseException:
                    db.close()
                    raise
            self._db = db
        return self._db

    def _prepare(self, db: sqlite3.Connection) -> None:
        for setting in (
            f"page_size = {PAGE_BYTES}",  # page size and vacuum mode count only for a new file
            "auto_vacuum = INCREMENTAL",
            "journal_mode = WAL",
            "synchronous = FULL",
            "secure_delete = ON",  # settled events hold personal data: overwrite them
            "wal_autocheckpoint = 0",  # checkpoints run between commits, where their errors are seen
            f"journal_size_limit = {2 * CHECKPOINT_BYTES}",
        ):
            db.execute(f"PRAGMA {setting}").fetchall()
        busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise TransientError("a reader keeps the log busy", operation="spool open", place=str(self.path))
        self._unsaved = 0
        self._inode = os.stat(self.path).st_ino
        self._adopt(db)
        self._load(db)
        self.pending_bytes = _payload_bytes(db)

    def _adopt(self, db: sqlite3.Connection) -> None:
        """Make the tables of a new file; compare the lanes of an old one."""
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, FORMAT):
            raise self._wrong(f"format {found} found, {FORMAT} expected", "use the version that wrote it")
        db.execute("BEGIN IMMEDIATE")
        if found == 0:
            for statement in TABLES:
                db.execute(statement)
            db.execute("INSERT INTO meta VALUES (?, 0, 1)", (1 + secrets.randbelow(2**63 - 1),))
            db.execute(f"PRAGMA user_version = {FORMAT}")
        known = dict(db.execute("SELECT lane, name FROM lane"))
        for lane, name in enumerate(self._lanes):
            if known.setdefault(lane, name) != name:
                problem = f"lane {lane} is {known[lane]!r}, configured {name!r}"
                raise self._wrong(problem, "add lanes at the end")
            db.execute("INSERT OR IGNORE INTO lane VALUES (?, ?, 1)", (lane, name))
        if len(known) > len(self._lanes):
            problem = f"{len(known)} lanes found, {len(self._lanes)} configured"
            raise self._wrong(problem, "lanes cannot be removed")
        db.execute("COMMIT")

    def _load(self, db: sqlite3.Connection) -> None:
        """Counters from the file: memory never runs ahead of the disk."""
        spool, commits, next_block = db.execute("SELECT spool, commits, next_block FROM meta").fetchone()
        if self.spool not in (0, spool):
            raise self._corrupt("another spool lies here now")
        self.spool, self._commits, self._next_block = spool, commits, next_block
        self.next_sequence = dict(db.execute("SELECT lane, next_sequence FROM lane"))
        self._counts = {
            (lane, region): LaneLedger(spool, lane, region, taken, sent, lost, taken - sent - lost)
            for lane, region, taken, sent, lost in db.execute(_LEDGER)
        }
        for lane, following in self.next_sequence.items():
            taken = sum(c.accepted for c in self._counts.values() if c.lane == lane)
            if taken != following - 1:
                raise self._corrupt(f"lane {lane} gave out {following - 1} sequences, regions took {taken}")

    # -- one step

    def _fetch(
        self, db: sqlite3.Connection, which: tuple[str, int, int], bytes_max: int
    ) -> tuple[list[Block], list[int]]:
        """The next blocks, and the rows met on the way that are not what was written."""
        blocks: list[Block] = []
        damaged: list[int] = []
        size = 0
        where = "FROM block WHERE region = ? AND lane = ? AND id > ? ORDER BY id"
        with closing(db.execute(f"SELECT id, {BLOCK_COLUMNS} {where}", which)) as rows:
            for identity, *row in rows:
                block = from_row(identity, row, self.spool)
                if block is None:
                    damaged.append(identity)
                    if len(damaged) == DAMAGED_STEP_MAX:
                        break
                    continue
                size += len(row[-1])
                if blocks and size > bytes_max:
                    break
                blocks.append(block)
        return blocks, damaged

    def _expect_sound(self, change: Change) -> None:
        """What must hold before the disk is touched: sequences without gaps, and the file where it was."""
        for lane, following in change.next_sequence.items():
            given = sum(len(block.values) for block in change.blocks if block.lane == lane)
            if following - self.next_sequence.get(lane, 1) != given:
                raise self._corrupt(f"lane {lane} would move by other than the {given} events given")
        try:
            here = os.stat(self.path).st_ino
        except OSError:
            here = 0
        if here != self._inode:
            raise self._corrupt("the file was removed or replaced while open")

    def _transact(self, db: sqlite3.Connection, change: Change) -> None:
        db.execute("BEGIN IMMEDIATE")
        gone = sum(settle(db, settlement) for settlement in change.settlements)
        rows = [to_row(block, self.spool) for block in change.blocks]
        db.executemany(
            f"INSERT INTO block (id, {BLOCK_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
            [(self._next_block + place, *row) for place, row in enumerate(rows)],
        )
        taken = Counter[tuple[int, str]]()
        for block in change.blocks:
            taken[block.lane, block.region] += len(block.values)
        db.executemany(
            "INSERT INTO ledger VALUES (?, ?, ?, 0, 0)"
            " ON CONFLICT (lane, region) DO UPDATE SET accepted = accepted + excluded.accepted",
            [(lane, region, count) for (lane, region), count in taken.items()],
        )
        moved = [(following, lane) for lane, following in change.next_sequence.items()]
        db.executemany("UPDATE lane SET next_sequence = ? WHERE lane = ?", moved)
        db.execute("UPDATE meta SET commits = commits + 1, next_block = next_block + ?", (len(rows),))
        db.execute("COMMIT")
        added = sum(len(row[-1]) for row in rows)
        self.pending_bytes += added - gone
        self._unsaved += added + gone + 6 * PAGE_BYTES  # what a small commit touches

    # -- failing

    def _learn_outcome(self, before: int, error: TransientError) -> None:
        """Open anew and look whether the failed transaction is in."""
        try:
            self._connection()
        except PipelineError as again:
            raise TransientError(
                "failed, and whether the events were taken is unknown until the file opens again",
                operation="spool write", place=str(self.path), remedy="look at the disk",
            ) from again  # fmt: skip
        if self._commits == before:
            raise error

    @contextmanager
    def _translated(self, operation: str, db: sqlite3.Connection | None) -> Iterator[None]:
        """SQLite's errors as ours. A failed connection is dropped; a full disk only rolls back."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            name = getattr(error, "sqlite_errorname", type(error).__name__)
            if db is not None and code == sqlite3.SQLITE_FULL:
                with suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
                raise TransientError(
                    "no room for more events", operation=f"spool {operation}", place=str(self.path),
                    remedy="free disk space, or wait until the forwarder has caught up",
                ) from error  # fmt: skip
            if db is not None:
                self._db = None
                with suppress(sqlite3.Error):
                    db.close()
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise self._corrupt(name) from error
            raise TransientError(
                f"failed with {name}; the file is opened anew before it is used again",
                operation=f"spool {operation}", place=str(self.path), remedy="look at the disk",
            ) from error  # fmt: skip

    def _corrupt(self, problem: str) -> StoreCorrupt:
        remedy = "keep the file for salvage, start with a new one"
        return StoreCorrupt(problem, operation="spool", place=str(self.path), remedy=remedy)

    def _wrong(self, problem: str, remedy: str) -> ConfigError:
        return ConfigError(problem, operation="spool open", place=str(self.path), remedy=remedy)


def _payload_bytes(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT coalesce(sum(bytes), 0) FROM block").fetchone()[0])


def _text(raw: bytes) -> str:
    """Damaged text must reach the checksum, not stop the line."""
    return raw.decode("utf-8", errors="replace")


def read_ledger(path: Path) -> list[LaneLedger]:
    """The counters of a spool, from any process, also while the agent runs: one consistent snapshot.

    ConfigError when there is no such file; TransientError when it cannot be read now.
    """
    if not path.exists():
        raise ConfigError("no such spool", operation="read ledger", place=str(path))
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)) as db:
            db.isolation_level = None
            db.execute("BEGIN")
            if db.execute("PRAGMA user_version").fetchone()[0] != FORMAT:
                return []  # made, not yet begun
            spool = db.execute("SELECT spool FROM meta").fetchone()[0]
            return [
                LaneLedger(spool, lane, region, taken, sent, lost, taken - sent - lost)
                for lane, region, taken, sent, lost in db.execute(_LEDGER)
            ]
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        raise TransientError(f"failed with {name}", operation="read ledger", place=str(path)) from error
