"""A damaged SQLite file read page by page, without SQLite: every record that still hangs together.

Comes in: a database file and its log. Goes out: records of its table and index leaves, as lists of values.
Source: sqlite.org/fileformat2.html, sections 1.6 (b-tree pages), 2.1 (record format), 4 (write-ahead log).
Invariants: nothing found stops the reading, neither a pointer to nowhere nor a sector the disk does not give;
of the log only what was committed counts. What a record says is not checked here: blocks have checksums.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE_LEAF, INDEX_LEAF = 0x0D, 0x0A
FRAME_BYTES, LOG_HEAD_BYTES = 24, 32
RECORD_BYTES_MAX = 64 << 20
_BROKEN = (IndexError, ValueError, struct.error, OverflowError)


@dataclass(frozen=True, slots=True)
class Cell:
    """A record's place: row number (0 in an index), values in it by type, and where it begins."""

    rowid: int
    types: tuple[int, ...]
    page: int
    start: int
    size: int


class PageFile:
    """A database file and, if there is one, its log ``<file>-wal``. Close it."""

    def __init__(self, path: Path, page_bytes: int) -> None:
        self._page_bytes = page_bytes
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._count = -(-os.fstat(self._file).st_size // page_bytes)
        self._log = -1
        self._logged: dict[int, int] = {}
        log = Path(f"{path}-wal")
        if log.exists():
            self._log = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
            self._read_log()

    def close(self) -> None:
        """Let go of both files."""
        for handle in (self._file, self._log):
            if handle >= 0:
                os.close(handle)

    def cells(self, kind: int) -> Iterator[Cell]:
        """All records in leaves of this kind."""
        for number in range(1, self._count + 1):
            page = self._page(number)
            head = 100 if number == 1 else 0
            if len(page) < self._page_bytes or page[head] != kind:
                continue
            count = int.from_bytes(page[head + 3 : head + 5], "big")
            for place in range(head + 8, min(head + 8 + 2 * count, len(page) - 1), 2):
                try:
                    yield _cell(page, number, kind, int.from_bytes(page[place : place + 2], "big"))
                except _BROKEN:
                    continue

    def values(self, cell: Cell, kind: int) -> list[Any] | None:
        """The record's values; None when part of it is out of reach."""
        try:
            return _decode(self._whole(cell, kind))
        except _BROKEN:
            return None

    def _page(self, number: int) -> bytes:
        handle, at = self._file, (number - 1) * self._page_bytes
        if number in self._logged:
            handle, at = self._log, self._logged[number]
        try:
            return os.pread(handle, self._page_bytes, at)
        except OSError:
            return b""

    def _read_log(self) -> None:
        """Where the last committed state of each page lies in the log."""
        size = os.fstat(self._log).st_size
        try:
            salt = os.pread(self._log, LOG_HEAD_BYTES, 0)[16:24]
        except OSError:
            return
        open_pages: dict[int, int] = {}
        at = LOG_HEAD_BYTES
        while at + FRAME_BYTES + self._page_bytes <= size:
            try:
                frame = os.pread(self._log, FRAME_BYTES, at)
            except OSError:
                break
            number, pages_after = struct.unpack(">II", frame[:8])
            if frame[8:16] != salt or number == 0:
                break
            open_pages[number] = at + FRAME_BYTES
            if pages_after:  # a commit
                self._logged |= open_pages
                self._count = max(self._count, pages_after)
                open_pages.clear()
            at += FRAME_BYTES + self._page_bytes

    def _whole(self, cell: Cell, kind: int) -> bytes:
        page, usable = self._page(cell.page), self._page_bytes
        local = local_bytes(cell.size, usable, kind)
        whole = bytearray(page[cell.start : cell.start + local])
        following = 0
        if local < cell.size:
            following = int.from_bytes(page[cell.start + local : cell.start + local + 4], "big")
        while len(whole) < cell.size:
            more = self._page(following) if following else b""
            if len(more) < usable:
                raise ValueError("the chain of pages ends early")
            following = int.from_bytes(more[:4], "big")
            whole += more[4 : 4 + cell.size - len(whole)]
        return bytes(whole)


def local_bytes(size: int, usable: int, kind: int) -> int:
    """How much of a record lies in its leaf (section 1.6)."""
    most = usable - 35 if kind == TABLE_LEAF else (usable - 12) * 64 // 255 - 23
    if size <= most:
        return size
    least = (usable - 12) * 32 // 255 - 23
    fits = least + (size - least) % (usable - 4)
    return fits if fits <= most else least


def _cell(page: bytes, number: int, kind: int, at: int) -> Cell:
    size, at = _varint(page, at)
    if not 1 < size <= RECORD_BYTES_MAX:
        raise ValueError("no record has this size")
    rowid = 0
    if kind == TABLE_LEAF:
        rowid, at = _varint(page, at)
    return Cell(rowid, _types(page[at:])[0], number, at, size)


def _types(record: bytes) -> tuple[tuple[int, ...], int]:
    """Serial types of a record's values, and where the values begin."""
    head, at = _varint(record, 0)
    types = []
    while at < head:
        serial, at = _varint(record, at)
        types.append(serial)
    return tuple(types), head


def _decode(record: bytes) -> list[Any]:
    types, at = _types(record)
    values: list[Any] = []
    for serial in types:
        size = width(serial)
        raw = record[at : at + size]
        if len(raw) < size:
            raise ValueError("the record ends early")
        values.append(_value(serial, raw))
        at += size
    return values


def width(serial: int) -> int:
    """Bytes of a value of this serial type (section 2.1)."""
    if serial >= 12:
        return (serial - 12) // 2
    return (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)[serial]


def _value(serial: int, raw: bytes) -> Any:
    if serial == 0:
        return None
    if serial <= 6:
        return int.from_bytes(raw, "big", signed=True)
    if serial == 7:
        return struct.unpack(">d", raw)[0]
    if serial <= 9:
        return serial - 8
    return raw if serial % 2 == 0 else raw.decode("utf-8", errors="replace")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(at, at + 8):
        byte = data[place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + 1
    return value << 8 | data[at + 8], at + 9
