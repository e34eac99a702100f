"""What a spool file says when something is wrong, and what an error of SQLite means for the file.

Comes in: a path, an error. Goes out: our errors. Values of events are in none of them.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from pipeline.errors import StoreCorrupt, TransientError

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
# At opening, our own statements can only fail so when the file is not what was written.
_DAMAGED_AT_OPEN = _DAMAGED | {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH}
_READ_FAULTS = {sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ}


def name_of(error: sqlite3.Error) -> str:
    """SQLite's name of the error."""
    return getattr(error, "sqlite_errorname", type(error).__name__)


def is_full(error: sqlite3.Error) -> bool:
    """The disk has no room: the transaction can be taken back, the connection is well."""
    return _code(error) == sqlite3.SQLITE_FULL


def is_damaged(error: sqlite3.Error, *, opening: bool = False) -> bool:
    """The file is not what was written."""
    return _code(error) in (_DAMAGED_AT_OPEN if opening else _DAMAGED)


def is_read_fault(error: sqlite3.Error) -> bool:
    """The disk does not give a page."""
    return getattr(error, "sqlite_errorcode", 0) in _READ_FAULTS


def full(path: Path) -> TransientError:
    """No room on the disk."""
    return TransientError(
        "no room for more events", operation="spool write", place=str(path),
        remedy="free disk space, or wait until the forwarder has caught up",
    )  # fmt: skip


def outcome_unknown(path: Path) -> TransientError:
    """A commit failed, and the file does not say whether it came true."""
    return TransientError(
        "failed, and whether the events were taken is unknown until the file opens again",
        operation="spool write", place=str(path), remedy="look at the disk",
    )  # fmt: skip


def failed(path: Path, operation: str, error: sqlite3.Error, *, damaged: bool) -> TransientError:
    """The connection is not to be used again."""
    next_use = "replaced" if damaged else "opened anew"
    return TransientError(
        f"failed with {name_of(error)}; the file is {next_use} before it is used again",
        operation=f"spool {operation}", place=str(path), remedy="look at the disk",
    )  # fmt: skip


def corrupt(path: Path, problem: str) -> StoreCorrupt:
    """The file contradicts itself."""
    return StoreCorrupt(
        problem, operation="spool", place=str(path),
        remedy="start the agent anew: it keeps a damaged file beside, and takes over what is whole in it",
    )  # fmt: skip


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
