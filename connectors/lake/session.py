"""DuckDB connections to a region's DuckLake: bounded, without downloads, errors in our words.

A store is a folder: ``catalogue.sqlite`` (the DuckLake catalogue), ``data/`` (Parquet), ``store.json`` (whose
store this is), ``writer.lock``. It may be moved as a whole: files are recorded relative to ``data/``.

The catalogue is in SQLite's WAL mode, so that readers and the writer do not wait for each other. Measured,
commits of 500 rows beside a reader that asks without pause: commit 193 ms (median) with the rollback
journal and 32 ms with WAL; the reader got 18 and 86 queries a second, and one that asks twice a second
waited 1,042 and 21 ms. SQLite before 3.51.3 can corrupt a WAL database when two connections write or
checkpoint at the same instant; here only the holder of ``writer.lock`` opens it for writing, with one
connection at a time, and read-only connections never checkpoint. WAL needs shared memory: the folder must
be on a local disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import duckdb
import duckdb_extension_ducklake
import duckdb_extension_sqlite_scanner

from pipeline.errors import ConfigError, PipelineError, StoreCorrupt, TransientError

ALIAS = "lake"
FORMAT = 1
Connection = duckdb.DuckDBPyConnection


@dataclass(frozen=True)
class DuckLimits:
    """What one connection may use. Nothing is spilled: spilled rows would lie outside every deletion."""

    memory_bytes_max: int = 512 * 1024 * 1024
    threads: int = 1  # a second one costs a third more CPU per row and is better left to the other stages


@dataclass(frozen=True)
class StoreFolder:
    """Where the parts of a store are."""

    path: Path

    @property
    def catalogue(self) -> Path:
        """The SQLite file of the DuckLake catalogue."""
        return self.path / "catalogue.sqlite"

    @property
    def data(self) -> Path:
        """The folder of the Parquet files."""
        return self.path / "data"

    @property
    def lock(self) -> Path:
        """Held by the one writer; contains its process id."""
        return self.path / "writer.lock"

    @property
    def label(self) -> Path:
        """Whose store this is."""
        return self.path / "store.json"

    def region(self) -> str:
        """The region whose store this is. Raises ConfigError when there is no store here."""
        try:
            label = json.loads(self.label.read_text(encoding="utf-8"))
            region, version = str(label["region"]), label["format"]
        except FileNotFoundError:
            raise ConfigError(
                "there is no store yet", operation="opening", place=str(self.path),
                remedy="it is made when its writer starts for the first time",
            ) from None  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"not a store's label ({type(error).__name__})", operation="opening", place=str(self.label)
            ) from error
        if version != FORMAT:
            raise ConfigError(
                f"expected format {FORMAT}, found {version}", operation="opening", place=str(self.label)
            )
        return region

    def create(self, region: str) -> None:
        """Make the folder and its label, durably; a label that is there must name the same region."""
        self.data.mkdir(parents=True, exist_ok=True)
        if not self.label.exists():
            fresh = self.label.with_suffix(".new")
            with fresh.open("w", encoding="utf-8") as file:
                json.dump({"region": region, "format": FORMAT}, file)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.label)
            for folder in (self.path, self.path.parent):
                sync_path(folder)
        if (found := self.region()) != region:
            raise ConfigError(
                f"expected the store of {region}, found the one of {found}",
                operation="opening", place=str(self.path),
            )  # fmt: skip


def sync_path(path: Path | str) -> None:
    """fsync a file or folder by name. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def connect(limits: DuckLimits) -> Connection:
    """An in-memory DuckDB with the two extensions from their wheels; it downloads and spills nothing."""
    connection = duckdb.connect(
        config={
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "memory_limit": f"{limits.memory_bytes_max}B",
            "threads": str(limits.threads),
            "temp_directory": "",
            "python_enable_replacements": "false",  # a table name must never reach a variable of this process
        }
    )
    for wheel in (duckdb_extension_ducklake, duckdb_extension_sqlite_scanner):
        connection.execute(f"LOAD {quote(_extension(wheel))}")
    return connection


def attach(connection: Connection, folder: StoreFolder, options: str, alias: str = ALIAS) -> None:
    """Attach the catalogue under ``alias``; ``options`` as in DuckLake's ATTACH, comma-separated."""
    catalogue, data = folder.catalogue.resolve(), folder.data.resolve()
    connection.execute(
        f"ATTACH {quote(f'ducklake:sqlite:{catalogue}')} AS {alias} "
        f"(DATA_PATH {quote(f'{data}/')}, OVERRIDE_DATA_PATH true, {options})"
    )


def quote(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """A SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def is_locked(error: duckdb.Error) -> bool:
    """Whether SQLite refused because another connection holds the catalogue or has just changed it.

    With ``ducklake_max_retry_count`` 0 this is also how DuckLake says that another transaction came first.
    """
    text = str(error)
    return "database is locked" in text or "Exceeded the maximum retry count" in text


@contextmanager
def translated(operation: str, place: Path | str) -> Iterator[None]:
    """DuckDB's errors as ours. The vendor's text is left out: it may quote a value."""
    try:
        yield
    except PipelineError:
        raise
    except duckdb.Error as error:
        raise translate(error, operation, str(place)) from None


def translate(error: duckdb.Error, operation: str, place: str) -> PipelineError:
    """The error to raise for a failure of the store itself."""
    kind = type(error).__name__
    if is_locked(error):
        return TransientError("the catalogue is locked by another process", operation=operation, place=place)
    if isinstance(error, duckdb.OutOfMemoryException):
        return TransientError(
            "out of memory",
            operation=operation,
            place=place,
            remedy="raise the memory limit or flush less at once",
        )
    if isinstance(error, duckdb.IOException | duckdb.TransactionException):
        full = " (no space left on the disk)" if "No space left" in str(error) else ""
        return TransientError(
            f"the store cannot be written or read: {kind}{full}", operation=operation, place=place
        )
    return StoreCorrupt(
        f"the store refused: {kind}",
        operation=operation,
        place=place,
        remedy="look at the rows named in the account",
    )


def _extension(wheel: ModuleType) -> str:
    assert wheel.__file__ is not None
    return str(next(Path(wheel.__file__).parent.rglob("*.duckdb_extension")))
