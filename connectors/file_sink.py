"""Batches into a file that appears whole or not at all: Parquet or CSV, by its name.

Comes in: batches of one schema. Goes out: the file under its name once everything is written and on disk.
Whatever goes wrong before leaves what was there untouched, and nothing beside it.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from pipeline.errors import ConfigError

FORMATS: dict[str, Literal["parquet", "csv"]] = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv"}
ROW_GROUP_ROWS = 131_072  # held in memory until the group is written


class FileSink:
    """``with`` one of these, :meth:`write` batches; leaving without an error puts the file in its place.

    Raises ConfigError when it cannot be made, or CSV is asked for nested columns.
    """

    def __init__(self, path: Path, schema: pa.Schema, *, operation: str = "write") -> None:
        self._path, self._schema, self._operation = path, schema, operation
        self._format = FORMATS.get(path.suffix.lower())
        if self._format is None:
            raise self._refusal(f"no format known for {path.suffix or 'a file without suffix'}",
                                f"name it {', '.join(FORMATS)}")  # fmt: skip
        nested = [column.name for column in schema if pa.types.is_nested(column.type)]
        if self._format == "csv" and nested:
            raise self._refusal(f"CSV has no form for {', '.join(nested)}", "write Parquet")
        if path.is_dir():
            raise self._refusal("expected a file, found a folder", "name a file in it")
        self._aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0

    def __enter__(self) -> FileSink:
        try:
            self._file = self._aside.open("xb")
        except OSError as error:
            raise self._refusal(f"cannot write: {error.strerror}", "choose another place") from None
        if self._format == "csv":
            self._writer = pa.csv.CSVWriter(self._file, self._schema)
        else:
            self._writer = pa.parquet.ParquetWriter(self._file, self._schema, compression="zstd")
        return self

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows; ``batch`` has the sink's columns, its metadata aside."""
        self._pending.append(pa.RecordBatch.from_arrays(batch.columns, schema=self._schema))
        self._pending_rows += len(batch)
        if self._format == "csv" or self._pending_rows >= ROW_GROUP_ROWS:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
                self._writer.close()
                self._file.flush()
                os.fsync(self._file.fileno())
                self._aside.replace(self._path)
        except OSError as failure:
            raise self._refusal(f"cannot write: {failure.strerror}", "make room and try again") from None
        finally:
            with suppress(OSError, pa.ArrowException):
                self._writer.close()  # of a failed run: it would close itself later, into a closed file
            self._file.close()
            self._aside.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.Table.from_batches(self._pending, self._schema))
        self._pending, self._pending_rows = [], 0

    def _refusal(self, problem: str, remedy: str) -> ConfigError:
        return ConfigError(problem, operation=self._operation, place=str(self._path), remedy=remedy)
