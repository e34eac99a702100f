"""Files as rows: CSV (also blank-separated, also compressed), Parquet, JSON lines.

Comes in: a path and how it is written. Goes out: batches of the columns that are used, in the file's order,
with the number of each row. Memory is bounded by one block, whatever the file's size. The only place that
knows pyarrow's readers, whose messages quote the file's contents and therefore stop here.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from pipeline.casts import plain
from pipeline.errors import ConfigError, RecordError
from pipeline.mapping import WHITESPACE, Reading
from pipeline.replay import BadRow

BLOCK_BYTES = 1 << 20
READ_BYTES = 1 << 17  # of a compressed file that breaks off, the last read is lost
LINE_BYTES_MAX = 8 << 20
ROWS_PER_BATCH = 16_384
_FORMATS: dict[str, Literal["csv", "parquet", "jsonl"]] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
T = TypeVar("T")
_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")


@dataclass(frozen=True)
class Rows:
    """Rows of the file: their columns, their numbers from 1, and rows that have no columns at all."""

    batch: pa.RecordBatch
    numbers: np.ndarray
    broken: tuple[BadRow, ...] = ()


class RowSource(Protocol):
    """A file opened for reading; ``schema`` has every column (null typed when not known before the rows)."""

    schema: pa.Schema

    def batches(self, columns: tuple[str, ...]) -> Iterator[Rows]:
        """The named columns, in blocks."""
        ...


def open_rows(path: Path, reading: Reading | None = None) -> RowSource:
    """Open by the declared format or by the name; ConfigError when it cannot be opened or is empty."""
    reading = reading or Reading(delimiter="\t" if ".tsv" in path.suffixes else ",")
    suffix = next((s for s in reversed(path.suffixes) if s.lower() not in _COMPRESSED), "").lower()
    kind = reading.format or _FORMATS.get(suffix)
    if kind is None:
        raise ConfigError(
            f"no format known for {suffix or 'a file without suffix'}", operation="replay", place=str(path),
            remedy=f"name it {', '.join(_FORMATS)} or say read.format in the mapping",
        )  # fmt: skip
    readers: dict[str, Callable[[Path, Reading], RowSource]] = {
        "csv": CsvRows, "parquet": ParquetRows, "jsonl": JsonRows,
    }  # fmt: skip
    try:
        return readers[kind](path, reading)
    except OSError as error:
        problem = error.strerror or "not readable in this format"
        raise ConfigError(f"cannot open: {problem}", operation="replay", place=str(path)) from None
    except pa.ArrowInvalid:
        raise ConfigError(f"expected {kind}, found none", operation="replay", place=str(path)) from None


class CsvRows:
    """Delimited text. Every column is read as bytes: types are the mapping's business, row by row."""

    def __init__(self, path: Path, reading: Reading) -> None:
        self._path = path
        self._reading = reading
        with io.BufferedReader(self._lines(), BLOCK_BYTES) as blocks:
            names = pa.csv.open_csv(blocks, self._read_options(), self._parse_options([])).schema.names
        self.schema = pa.schema([(name, pa.string()) for name in names])

    def batches(self, columns: tuple[str, ...]) -> Iterator[Rows]:
        """The named columns as binary; rows with too few or too many columns are broken."""
        wrong: list[BadRow] = []
        convert = pa.csv.ConvertOptions(
            check_utf8=False,
            column_types={name: pa.binary() for name in columns},
            include_columns=list(columns),
            strings_can_be_null=True,
            null_values=list(self._reading.null_values),
        )
        next_number = 1
        for batch in _guarded(self._blocks(wrong, convert), self._path):
            numbers, broken = _number(next_number, len(batch), wrong)
            if len(numbers):
                next_number = int(numbers[-1]) + 1
            yield Rows(batch, numbers, broken)
        if wrong:
            nothing = pa.RecordBatch.from_pylist([], pa.schema([(name, pa.binary()) for name in columns]))
            yield Rows(nothing, np.empty(0, np.int64), tuple(wrong))

    def _blocks(self, wrong: list[BadRow], convert: pa.csv.ConvertOptions) -> Iterator[pa.RecordBatch]:
        lines = self._lines()
        with io.BufferedReader(lines, BLOCK_BYTES) as blocks:
            yield from pa.csv.open_csv(blocks, self._read_options(), self._parse_options(wrong), convert)
            if lines.broken:
                raise OSError("the stream breaks off")

    def _lines(self) -> _WholeLines:
        stream = pa.input_stream(str(self._path), compression="detect")
        return _WholeLines(stream, self._reading.delimiter == WHITESPACE)

    def _read_options(self) -> pa.csv.ReadOptions:
        # One thread: with more, the reader no longer knows the numbers of broken rows.
        names = list(self._reading.columns) or None
        return pa.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, column_names=names)

    def _parse_options(self, wrong: list[BadRow]) -> pa.csv.ParseOptions:
        header = 1 if self._reading.has_header else 0

        def note(row: pa.csv.InvalidRow) -> str:
            wrong.append(BadRow(row.number - header, "", f"expected {row.expected_columns} columns"))
            return "skip"

        delimiter = self._reading.delimiter
        return pa.csv.ParseOptions(
            delimiter=" " if delimiter == WHITESPACE else delimiter,
            newlines_in_values=True,
            invalid_row_handler=note,
        )


def _number(first: int, count: int, wrong: list[BadRow]) -> tuple[np.ndarray, tuple[BadRow, ...]]:
    """Numbers of the next rows; the broken ones among them are left out, and taken off the list."""
    numbers = np.arange(first, first + count + len(wrong), dtype=np.int64)
    numbers = np.setdiff1d(numbers, [row.number for row in wrong])[:count]
    here = [row for row in wrong if count == 0 or row.number < numbers[-1]]
    del wrong[: len(here)]
    return numbers, tuple(here)


class _WholeLines(io.RawIOBase):
    """A stream of text, cut behind a line where it breaks off: half a row could pass for a whole one.

    The break is told in ``broken`` and not raised here: Arrow's reader works ahead, and would drop the good
    blocks in between. ``single_blanks``: runs of blanks and tabs become one blank, none at the ends of lines.
    """

    def __init__(self, stream: pa.NativeFile, single_blanks: bool) -> None:
        self._stream = stream
        self._single_blanks = single_blanks
        self._ready = memoryview(b"")
        self._rest = b""
        self._ended = False
        self.broken = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._ready and not self._ended:
            text = self._whole_lines()
            self._ready = memoryview(_with_single_blanks(text) if self._single_blanks else text)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()

    def _whole_lines(self) -> bytes:
        try:
            chunk = self._stream.read(READ_BYTES)
        except (OSError, EOFError, pa.ArrowException):
            self._ended = self.broken = True
            return b""
        text = self._rest + chunk
        self._ended = not chunk
        cut = len(text) if self._ended else text.rfind(b"\n") + 1
        self._rest = text[cut:]
        if len(self._rest) > LINE_BYTES_MAX:
            self._ended = self.broken = True
        return text[:cut]


def _with_single_blanks(lines: bytes) -> bytes:
    text = lines.replace(b"\t", b" ").replace(b"\r", b" ")
    while b"  " in text:
        text = text.replace(b"  ", b" ")
    return text.replace(b" \n", b"\n").replace(b"\n ", b"\n").strip(b" ")


class ParquetRows:
    """A Parquet file; its types are known before the first row."""

    def __init__(self, path: Path, reading: Reading) -> None:
        self._file = pa.parquet.ParquetFile(path)
        self._path = path
        self._null_values = pa.array(reading.null_values, pa.string())
        self.schema = self._file.schema_arrow

    def batches(self, columns: tuple[str, ...]) -> Iterator[Rows]:
        """The named columns in their own types."""
        next_number = 1
        reader = self._file.iter_batches(batch_size=ROWS_PER_BATCH, columns=list(columns))
        for batch in _guarded(reader, self._path):
            numbers = np.arange(next_number, next_number + len(batch), dtype=np.int64)
            next_number += len(batch)
            yield Rows(_with_nulls(batch, self._null_values), numbers)


class JsonRows:
    """One JSON object per line. Its columns are those of the first block; types are found block by block."""

    def __init__(self, path: Path, reading: Reading) -> None:
        self._path = path
        self._null_values = pa.array(reading.null_values, pa.string())
        names: dict[str, None] = {}
        for _, line in next(filter(None, _line_blocks(path)), []):
            names.update(dict.fromkeys(_json_object(line) or ()))
        if not names:
            raise ConfigError("the first block holds no JSON object", operation="replay", place=str(path))
        self.schema = pa.schema([(name, pa.null()) for name in names])

    def batches(self, columns: tuple[str, ...]) -> Iterator[Rows]:
        """The named members; a line that is no JSON object is broken, a member that is absent null."""
        for block in _line_blocks(self._path):
            rows, numbers, broken = [], [], []
            for number, line in block:
                row = _json_object(line)
                if row is None:
                    broken.append(BadRow(number, "", "expected a JSON object"))
                else:
                    rows.append(row)
                    numbers.append(number)
            arrays = [_json_column([row.get(name) for row in rows]) for name in columns]
            batch = pa.RecordBatch.from_arrays(arrays, names=list(columns))
            batch = _with_nulls(batch, self._null_values)
            yield Rows(batch, np.asarray(numbers, dtype=np.int64), tuple(broken))


def _json_object(line: bytes) -> dict[str, object] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _json_column(values: list[object]) -> pa.Array:
    """Values of one type as they are; a mixture as text, which the mapping's casts read again."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
        texts = (v if isinstance(v, str) or v is None else json.dumps(v) for v in values)
        return pa.array([None if t is None else t.encode("utf-8", "replace") for t in texts], pa.binary())


def _line_blocks(path: Path) -> Iterator[list[tuple[int, bytes]]]:
    """Numbered lines that are not blank, a block at a time."""
    number = 0
    rest = b""
    with pa.input_stream(str(path), compression="detect") as stream:
        for chunk in _guarded(iter(lambda: stream.read(BLOCK_BYTES), b""), path):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LINE_BYTES_MAX:
                raise _unreadable(path, f"a line is longer than {LINE_BYTES_MAX} bytes")
            yield [(number + i, line) for i, line in enumerate(lines, 1) if line.strip()]
            number += len(lines)
    if rest.strip():
        yield [(number + 1, rest)]


def _with_nulls(batch: pa.RecordBatch, null_values: pa.Array) -> pa.RecordBatch:
    """Text that stands for nothing as null (the CSV reader does it itself)."""
    arrays = []
    for column in batch.columns:
        column, _ = (column, None) if pa.types.is_binary(column.type) else plain(column)
        if pa.types.is_string(column.type) and len(null_values):
            missing = pc.is_in(column, null_values)
            column = pc.if_else(missing, pa.scalar(None, pa.string()), column)
        arrays.append(column)
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _guarded(items: Iterator[T], path: Path) -> Iterator[T]:
    """The same items; a reader that gives up in the middle of the file becomes a RecordError."""
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except (pa.ArrowException, OSError, EOFError):
            raise _unreadable(path, "the file breaks off or changes its form here") from None
        yield item


def _unreadable(path: Path, problem: str) -> RecordError:
    return RecordError(f"{path.name}: {problem}", reason="undecodable", remedy="repair or cut the file")
