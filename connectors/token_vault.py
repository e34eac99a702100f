"""The token vault in one SQLite file: random tokens for hashed subjects.

Comes in: keyed hashes of subjects. Goes out: their tokens. Invariants: a token is on the disk before it is
given out; several processes at once give one token per subject; a forgotten entry leaves no byte in the
vault's files; the file is its owner's alone (0600) and never made anew by reading: a lost vault stops the
stage, since fresh tokens would silently cut every subject off from its past.

The rollback journal and not the write-ahead log: the log would keep forgotten entries until every reader has
gone, and builds up to 3.51.2 can damage it with several connections at a checkpoint. ``synchronous=EXTRA``
also syncs the folder after the journal is gone, which is the moment of the commit (sqlite.org/pragma.html).
``secure_delete`` overwrites what is deleted. What the disk itself keeps of old blocks is the disk's affair:
encrypt it.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from pipeline.errors import ConfigError, StoreCorrupt, TransientError
from pipeline.policy.tokens import TOKEN_BYTES

_PARAMETERS_MAX = 500  # hashes per statement; SQLite's own limit is far higher
_TABLE = """
CREATE TABLE IF NOT EXISTS token (
  region TEXT NOT NULL, purpose TEXT NOT NULL, subject BLOB NOT NULL, token BLOB NOT NULL,
  PRIMARY KEY (region, purpose, subject)
) WITHOUT ROWID
"""
T = TypeVar("T")


def create_vault(path: Path) -> bool:
    """Make an empty vault, closed to others, where there is none; whether it was made."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    except FileExistsError:
        return False
    SqliteTokenVault(path).close()
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True


class SqliteTokenVault:
    """A :class:`pipeline.policy.tokens.TokenVault`; opens its file when first asked. Threads take turns.

    ``wait_s``: how long to wait for another process before TransientError.
    """

    def __init__(self, path: Path, wait_s: float = 10.0) -> None:
        self._path = path
        self._wait_s = wait_s
        self._connection: sqlite3.Connection | None = None
        self._turn = threading.Lock()

    def tokens(self, region: str, purpose: str, subject_hashes: list[bytes]) -> list[str]:
        """See :class:`pipeline.policy.tokens.TokenVault`. Blocks on the disk for subjects that are new."""

        def work(connection: sqlite3.Connection) -> list[str]:
            known = dict(_found(connection, region, purpose, subject_hashes))
            missing = [subject for subject in dict.fromkeys(subject_hashes) if subject not in known]
            if missing:
                known |= _issue(connection, region, purpose, missing)
            return [known[subject].hex() for subject in subject_hashes]

        return self._with(work)

    def forget(self, region: str, purpose: str, subject_hashes: list[bytes]) -> int:
        """See :class:`pipeline.policy.tokens.TokenVault`."""

        def work(connection: sqlite3.Connection) -> int:
            with _writing(connection):
                rows = [(region, purpose, subject) for subject in subject_hashes]
                statement = "DELETE FROM token WHERE region = ? AND purpose = ? AND subject = ?"
                return connection.executemany(statement, rows).rowcount

        return self._with(work)

    def close(self) -> None:
        """Close the file; a later request opens it again."""
        with self._turn:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def __repr__(self) -> str:
        return f"SqliteTokenVault({str(self._path)!r})"

    def _with(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._turn:
            try:
                if self._connection is None:
                    self._connection = self._open()
                return work(self._connection)
            except sqlite3.Error as error:
                kind = getattr(error, "sqlite_errorname", type(error).__name__)
        raise self._told(kind)  # out here: the error's own text may hold what was asked

    def _open(self) -> sqlite3.Connection:
        self._demand_closed_to_others()
        uri = f"{self._path.absolute().as_uri()}?mode=rw"
        connection = sqlite3.connect(
            uri, uri=True, timeout=self._wait_s, isolation_level=None, check_same_thread=False
        )
        try:
            for pragma in ("journal_mode = DELETE", "synchronous = EXTRA", "secure_delete = ON"):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute(_TABLE)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _demand_closed_to_others(self) -> None:
        try:
            state = self._path.lstat()
        except FileNotFoundError:
            remedy = "restore it; create it only for a new region"
            raise self._refusal("no token vault here", remedy) from None
        mode = stat.S_IMODE(state.st_mode)
        if not stat.S_ISREG(state.st_mode) or state.st_uid != os.geteuid():
            raise self._refusal("expected a plain file of this user", "chown it to the user of the stage")
        if mode & 0o077:
            raise self._refusal(f"expected mode 0600, found {mode:04o}: others can reach it", "chmod 600")
        folder = stat.S_IMODE(self._path.parent.stat().st_mode)
        if folder & 0o022:
            raise self._refusal(f"its folder has mode {folder:04o}: others can replace it", "chmod 700")

    def _refusal(self, problem: str, remedy: str) -> ConfigError:
        return ConfigError(problem, operation="token vault", place=str(self._path), remedy=remedy)

    def _told(self, kind: str) -> Exception:
        place = str(self._path)
        if kind.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return StoreCorrupt(
                f"the file is damaged ({kind})", operation="token vault", place=place, remedy="restore it"
            )
        return TransientError(f"not done ({kind})", operation="token vault", place=place)


class _writing:
    """A transaction that has the write lock from its start; rolled back when the work in it fails."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                self._connection.execute("COMMIT")
        finally:  # also when the commit failed: the connection is used again
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def _issue(
    connection: sqlite3.Connection, region: str, purpose: str, subjects: list[bytes]
) -> dict[bytes, bytes]:
    """Tokens for subjects that had none a moment ago: another process may have been first, and then its
    token is the one. Committed when this returns."""
    with _writing(connection):
        rows = [(region, purpose, subject, secrets.token_bytes(TOKEN_BYTES)) for subject in subjects]
        connection.executemany("INSERT INTO token VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", rows)
        return dict(_found(connection, region, purpose, subjects))


def _found(
    connection: sqlite3.Connection, region: str, purpose: str, subjects: list[bytes]
) -> Iterator[tuple[bytes, bytes]]:
    for start in range(0, len(subjects), _PARAMETERS_MAX):
        some = subjects[start : start + _PARAMETERS_MAX]
        marks = ", ".join("?" * len(some))
        yield from connection.execute(
            f"SELECT subject, token FROM token WHERE region = ? AND purpose = ? AND subject IN ({marks})",
            (region, purpose, *some),
        )
