"""The fsync barrier: every Parquet file of a transaction is durable before the catalogue names it.

DuckLake does not do this (its issue 680): after a power loss the catalogue would name files that are empty or
gone. So, between the last INSERT and COMMIT: ask DuckDB's file log what it wrote, check by the footers that
these files hold all rows of the transaction, fsync each, then every folder on the way up to ``data/``.

The catalogue's own durability is SQLite's: ``synchronous`` is FULL, which in WAL mode syncs the log before a
commit returns, and the checkpoint at its end syncs the database file (seen with strace).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from connectors.lake.session import Connection
from pipeline.errors import StoreCorrupt, TransientError

Fsync = Callable[[int], None]
OPERATION = "syncing new files"


class Barrier:
    """Knows what a connection wrote since :meth:`begin`, and makes it durable."""

    def __init__(self, connection: Connection, data: Path, fsync: Fsync = os.fsync) -> None:
        self._connection, self._data, self._fsync = connection, data.resolve(), fsync
        connection.execute("CALL enable_logging('FileSystem')")

    def begin(self) -> None:
        """Forget what was written before."""
        self._connection.execute("CALL truncate_duckdb_logs()")

    def written(self) -> list[Path]:
        """Data files written since :meth:`begin`."""
        rows = self._connection.execute(
            "SELECT DISTINCT path FROM duckdb_logs_parsed('FileSystem') WHERE op = 'WRITE' ORDER BY path"
        ).fetchall()
        return [path for (name,) in rows if (path := Path(name).resolve()).is_relative_to(self._data)]

    def make_durable(self, row_count: int) -> int:
        """Sync the transaction's files and folders; returns their number.

        Raises StoreCorrupt when the files do not hold exactly ``row_count`` rows (one would go unsynced), and
        TransientError when a sync fails. After that the transaction must be rolled back, never synced again:
        the kernel may have dropped the pages it could not write and report success the second time.
        """
        files = self.written()
        try:
            held = sum(pq.read_metadata(file).num_rows for file in files)
        except (OSError, duckdb.Error, ValueError) as error:
            raise StoreCorrupt(
                f"a file just written cannot be read ({type(error).__name__})",
                operation=OPERATION, place=str(self._data),
            ) from error  # fmt: skip
        if held != row_count:
            raise StoreCorrupt(
                f"expected {row_count} rows in the new files, found {held}",
                operation=OPERATION, place=str(self._data),
            )  # fmt: skip
        try:
            for file in files:
                self._sync(file)
            for folder in sorted({above for file in files for above in self._folders(file)}, reverse=True):
                self._sync(folder)
        except OSError as error:
            raise TransientError(
                f"fsync failed: {error.strerror}", operation=OPERATION, place=str(self._data),
                remedy="check the disk before starting again",
            ) from error  # fmt: skip
        return len(files)

    def _folders(self, file: Path) -> list[Path]:
        """The folders from the file's up to ``data/``: a new one's name is in the one above it.

        All of them every time: syncing a folder that has not changed costs next to nothing, and remembering
        which are durable would be wrong once maintenance removes and a later insert makes one again.
        """
        return [above for above in file.parents if above.is_relative_to(self._data)]

    def _sync(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            self._fsync(descriptor)
        finally:
            os.close(descriptor)
