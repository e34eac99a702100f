"""How a spool file is opened: settings, tables of a new one, lanes of an old one, whose numbers go on.

Comes in: a connection without settings. Goes out: one that keeps the promises of pipeline.edge.spool.
Invariants: a file that is not known to be the one that was here before gets a new incarnation; what waits in
it keeps the identity under which it was accepted, so that sending it twice is a repeat and no double.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import EdgeConfig
from pipeline.edge.ledger import SECOND, LaneLedger
from pipeline.edge.lock import sync_folder
from pipeline.edge.place import Birth, new_birth, place_of, read_birth, write_birth
from pipeline.edge.tables import COST, FORMAT, FROM_1, TABLES, read_ledgers
from pipeline.errors import ConfigError, TransientError

log = logging.getLogger(__name__)

# Four times as large: commits of megabytes 1.5 times as fast, small ones write four times as much.
PAGE_BYTES = 4_096
CHECKPOINT_BYTES = 16 << 20  # written since the last checkpoint


@dataclass(frozen=True, slots=True)
class Opened:
    """What is known of a file once it is open."""

    birth: str
    leases: dict[tuple[str, int], tuple[int, int]]


def connect(path: Path) -> sqlite3.Connection:
    """A connection with the settings that durability rests on. Raises sqlite3.Error, TransientError."""
    db = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
    db.text_factory = _text
    try:
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
            raise TransientError("a reader keeps the log busy", operation="spool open", place=str(path))
        # A new file became one with a log through a journal, which is deleted now. If that were forgotten
        # in a power loss, the journal would roll the file back to nothing, under a log full of events.
        sync_folder(path)
    except BaseException:
        db.close()
        raise
    return db


def adopt(
    db: sqlite3.Connection, path: Path, lanes: Sequence[str], step_bytes: int, seconds: Sequence[int]
) -> Opened:
    """Make the tables of a new file, bring an older format up to date, compare the lanes, settle whose it is.

    ``seconds``: lanes that need a second number. ConfigError for another format or other lanes.
    """
    found = db.execute("PRAGMA user_version").fetchone()[0]
    if found not in (0, 1, FORMAT):
        raise _wrong(path, f"format {found} found, {FORMAT} expected", "use the version that wrote it")
    db.execute("BEGIN IMMEDIATE")
    if found != FORMAT:
        for statement in TABLES if found == 0 else FROM_1:
            db.execute(statement)
        if found == 0:
            db.execute("INSERT INTO meta (spool, commits, next_block) VALUES (?, 0, 1)", (_incarnation(),))
        db.execute(f"PRAGMA user_version = {FORMAT}")
    _compare_lanes(db, path, lanes)
    for lane in seconds:
        row = (lane + SECOND, f"{lanes[lane]}/2")
        db.execute("INSERT OR IGNORE INTO lane VALUES (?, ?, 1)", row)
    birth = _bind(db, path)
    (before,) = db.execute("SELECT step_bytes FROM meta").fetchone()
    leases = _in_flight(db, max(before, step_bytes))
    db.execute("UPDATE meta SET step_bytes = ?", (max(before, step_bytes) if leases else step_bytes,))
    db.execute("COMMIT")
    return Opened(birth, leases)


def two_numbers(lanes: Sequence[str], settings: EdgeConfig) -> list[int]:
    """Lanes that drain newest first: fresh events and backlog have a number each, and so an order each."""
    return [at for at, name in enumerate(lanes) if settings.lane_class(name).drain_order == "newest"]


def used_bytes(db: sqlite3.Connection) -> dict[int, int]:
    """Per lane number, the room that blocks take."""
    return dict(db.execute(f"SELECT lane, sum({COST}) FROM block GROUP BY lane"))


def live_numbers(db: sqlite3.Connection, seconds: Sequence[int]) -> dict[int, int]:
    """The number under which each lane with two goes on: of the two, the one that took the last block."""
    live = {}
    for lane in seconds:
        last = db.execute(
            "SELECT lane FROM block WHERE lane IN (?, ?) ORDER BY id DESC LIMIT 1", (lane, lane + SECOND)
        ).fetchone()
        live[lane] = lane if last is None else last[0]
    return live


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
            found = db.execute("PRAGMA user_version").fetchone()[0]
            if found not in (1, FORMAT):
                return []  # made, not yet begun
            spool = db.execute("SELECT spool FROM meta").fetchone()[0]
            if found == 1:
                columns = "?, lane, region, accepted, forwarded, evicted, accepted - forwarded - evicted"
                return [LaneLedger(*row) for row in db.execute(f"SELECT {columns} FROM ledger", (spool,))]
            return list(read_ledgers(db, spool))
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        raise TransientError(f"failed with {name}", operation="read ledger", place=str(path)) from error


def _compare_lanes(db: sqlite3.Connection, path: Path, lanes: Sequence[str]) -> None:
    known = dict(db.execute("SELECT lane, name FROM lane WHERE lane < ?", (SECOND,)))
    for lane, name in enumerate(lanes):
        if known.setdefault(lane, name) != name:
            raise _wrong(path, f"lane {lane} is {known[lane]!r}, configured {name!r}", "add lanes at the end")
        db.execute("INSERT OR IGNORE INTO lane VALUES (?, ?, 1)", (lane, name))
    if len(known) > len(lanes):
        problem = f"{len(known)} lanes found, {len(lanes)} configured"
        raise _wrong(path, problem, "lanes cannot be removed")


def _bind(db: sqlite3.Connection, path: Path) -> str:
    """Go on under the file's incarnation, or under a new one when the file is not where it was.

    The note is written first: killed before the commit, the next opening finds them apart and starts anew.
    """
    commits, birth, place = db.execute("SELECT commits, birth, place FROM meta").fetchone()
    beside, here = read_birth(path), place_of(path)
    if birth and (birth, place) == (beside.name, here) and commits >= beside.commits:
        return str(birth)
    again = new_birth()
    write_birth(path, Birth(again, commits))
    db.execute("UPDATE meta SET birth = ?, place = ?", (again, here))
    if birth:
        log.warning("%s is a copy, or was moved or put back: it goes on as a new spool", path)
        db.execute("UPDATE meta SET spool = ?", (_incarnation(),))
        db.execute("UPDATE lane SET next_sequence = 1")
    return again


def _in_flight(db: sqlite3.Connection, step_bytes: int) -> dict[tuple[str, int], tuple[int, int]]:
    """Per (region, lane) the last row, and the room up to it, that a forward step may have sent.

    A step takes the first blocks up to so many bytes, and the agent may have been killed before it heard of
    the broker's answer: nobody knows whether these have arrived until they are sent again.
    """
    leases = {}
    for region, lane in db.execute("SELECT DISTINCT region, lane FROM ledger").fetchall():
        size = room = last = 0
        rows = db.execute(
            f"SELECT id, bytes, {COST} FROM block WHERE region = ? AND lane = ? ORDER BY id", (region, lane)
        )
        with closing(rows):
            for identity, payload, cost in rows:
                size += payload
                if last and size > step_bytes:
                    break
                last, room = identity, room + cost
        if last:
            leases[region, lane] = (last, room)
    return leases


def _incarnation() -> int:
    return 1 + secrets.randbelow(2**63 - 1)


def _text(raw: bytes) -> str:
    """Damaged text must reach the checksum, not stop the line."""
    return raw.decode("utf-8", errors="replace")


def _wrong(path: Path, problem: str, remedy: str) -> ConfigError:
    return ConfigError(problem, operation="spool open", place=str(path), remedy=remedy)
