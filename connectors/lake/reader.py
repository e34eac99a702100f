"""Reading a region's store: any number of processes, beside the writer, never outside the store's folder.

Comes in: SQL. Goes out: Arrow. A query sees one snapshot, whole. A reader holds its connection; each query
is a transaction of its own, so it sees what was committed before it began.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import duckdb
import pyarrow as pa

from connectors.lake.guard import OPERATION, check_select
from connectors.lake.session import (
    ALIAS,
    DuckLimits,
    StoreFolder,
    attach,
    connect,
    identifier,
    is_locked,
    quote,
    translate,
    translated,
)
from connectors.lake.totals import read_totals
from pipeline.balance import StoreTotals
from pipeline.errors import ConfigError, PipelineError, TransientError

_ABOUT_THE_SQL = (
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.ParserException,
    duckdb.SyntaxException,
)
_ROWS_PER_BATCH = 65_536
T = TypeVar("T")
Parameters = Sequence[object] | dict[str, object]


@dataclass(frozen=True)
class ReadLimits:
    """Bounds of one reader; ``timeout_s`` of one query, ``lock_wait_s`` of waiting for the catalogue."""

    duck: DuckLimits = field(default_factory=lambda: DuckLimits(threads=2))
    timeout_s: float = 60.0
    lock_wait_s: float = 10.0


def open_reader(path: Path, limits: ReadLimits = ReadLimits()) -> ReadOnlyLake:
    """Open the store at ``path`` for reading. Raises ConfigError when there is none yet."""
    return ReadOnlyLake(path, limits)


class ReadOnlyLake:
    """A store opened for reading; ``with`` closes it. One query at a time: others wait."""

    def __init__(self, path: Path, limits: ReadLimits = ReadLimits()) -> None:
        self._folder, self._limits = StoreFolder(path), limits
        self._mutex = threading.Lock()
        self.region = self._folder.region()
        if not self._folder.catalogue.exists():
            raise ConfigError("the store has no catalogue yet", operation="opening", place=str(path))
        with translated("opening", path):
            self._connection = connect(limits.duck)
            try:
                self._retry(lambda: attach(self._connection, self._folder, "READ_ONLY"))
                self._confine()
            except BaseException:
                self._connection.close()
                raise

    def _confine(self) -> None:
        """No file but those of this store's data folder, and no way to loosen that."""
        data = quote(f"{self._folder.data.resolve()}/")
        for statement in (
            f"USE {ALIAS}",
            f"SET allowed_directories = [{data}]",
            "SET enable_external_access = false",
            "SET lock_configuration = true",
        ):
            self._connection.execute(statement)

    def __enter__(self) -> ReadOnlyLake:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for a running query and close."""
        with self._mutex:
            self._connection.close()

    # --- queries ---------------------------------------------------------------------------------------

    def query(self, sql: str, params: Parameters = (), snapshot: int | None = None) -> pa.Table:
        """The rows of one SELECT; ``snapshot`` reads the store as of that version.

        Times are timestamps without a zone and mean UTC. Raises ConfigError (not a SELECT of this store's
        tables, wrong SQL, no such snapshot) and TransientError (timeout, memory, locked).
        """
        with self._mutex, self._explained(), self._as_of(snapshot), self._timed():
            check_select(self._connection, sql)
            return self._retry(lambda: self._connection.execute(sql, params).to_arrow_table())

    def stream(
        self, sql: str, params: Parameters = (), snapshot: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Like :meth:`query`, batch by batch, for results beyond memory. Others wait until it is used up."""
        with self._mutex, self._explained(), self._as_of(snapshot), self._timed():
            check_select(self._connection, sql)
            result = self._retry(lambda: self._connection.execute(sql, params))
            yield from result.to_arrow_reader(_ROWS_PER_BATCH)

    def snapshots(self) -> pa.Table:
        """Every snapshot: its number, when (UTC), and what it changed, newest first."""
        sql = (
            "SELECT snapshot_id, snapshot_time AT TIME ZONE 'UTC' AS snapshot_time, "
            f"changes::VARCHAR AS changes FROM ducklake_snapshots('{ALIAS}') ORDER BY snapshot_id DESC"
        )
        with self._mutex, self._explained(), self._timed():
            return self._retry(lambda: self._connection.execute(sql).to_arrow_table())

    def totals(self, *, distinct: bool = False) -> StoreTotals:
        """What is in the store and what the account says, of one snapshot, for the balance.

        ``distinct`` also counts distinct positions, which reads more and takes longer.
        """
        with self._mutex, self._explained(), self._timed():
            return self._retry(lambda: read_totals(self._connection, self.region, distinct))

    # --- around a query --------------------------------------------------------------------------------

    @contextmanager
    def _as_of(self, snapshot: int | None) -> Iterator[None]:
        """Unqualified table names mean that snapshot inside."""
        if snapshot is None:
            yield
            return
        alias = f"lake_at_{int(snapshot)}"
        try:
            attach(self._connection, self._folder, f"READ_ONLY, SNAPSHOT_VERSION {int(snapshot)}", alias)
        except duckdb.Error as error:
            if is_locked(error):
                raise
            raise ConfigError(
                f"no snapshot {snapshot}", operation=OPERATION, place=str(self._folder.path),
                remedy="it may have been expired; list the snapshots",
            ) from None  # fmt: skip
        try:
            self._connection.execute(f"USE {identifier(alias)}")
            yield
        finally:
            self._connection.execute(f"USE {ALIAS}")
            self._connection.execute(f"DETACH {identifier(alias)}")

    @contextmanager
    def _timed(self) -> Iterator[None]:
        timer = threading.Timer(self._limits.timeout_s, self._connection.interrupt)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """The vendor's text only where it speaks of the SQL; elsewhere it may quote a value."""
        place = str(self._folder.path)
        try:
            yield
        except PipelineError:
            raise
        except _ABOUT_THE_SQL as error:
            raise ConfigError(_first_line(error), operation=OPERATION) from None
        except duckdb.InterruptException:
            raise TransientError(
                f"stopped after {self._limits.timeout_s:g} s", operation=OPERATION, place=place,
                remedy="narrow the query, or allow more time",
            ) from None  # fmt: skip
        except (duckdb.DataError, duckdb.InvalidInputException, duckdb.NotSupportedError) as error:
            raise ConfigError(
                f"the query fails on the data: {type(error).__name__}", operation=OPERATION,
                remedy="check casts, divisions and parameters",
            ) from None  # fmt: skip
        except duckdb.Error as error:
            raise translate(error, OPERATION, place) from None

    def _retry(self, work: Callable[[], T]) -> T:
        """Again while the catalogue is locked, under the deadline; the last lock error goes up."""
        deadline = time.monotonic() + self._limits.lock_wait_s
        while True:
            try:
                return work()
            except duckdb.Error as error:
                if not is_locked(error) or time.monotonic() > deadline:
                    raise
            time.sleep(random.uniform(0.01, 0.1))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
