"""A disk under SQLite that notes what is written and synced, and fails when told.

The methods of SQLite's own file system layer (``sqlite3_vfs``, sqlite.org/c3ref/vfs.html) are put behind
Python functions, in this process, without a compiler and without root. It needs a Python whose SQLite can be
reached from outside; :func:`reachable` says so.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OK, FULL, IOERR_WRITE, IOERR_FSYNC = 0, 13, 778, 1034
SECTOR = 512
_P, _I, _L = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_OPEN = ctypes.CFUNCTYPE(_I, _P, _P, _P, _I, _P)
_CLOSE = ctypes.CFUNCTYPE(_I, _P)
_WRITE = ctypes.CFUNCTYPE(_I, _P, _P, _I, _L)
_TRUNCATE = ctypes.CFUNCTYPE(_I, _P, _L)
_SYNC = ctypes.CFUNCTYPE(_I, _P, _I)
_DELETE = ctypes.CFUNCTYPE(_I, _P, _P, _I)
# Words of 8 bytes: struct sqlite3_vfs is 3 ints (padded to 2 words), next, name, data, then functions;
# struct sqlite3_io_methods is 1 int (padded) and then functions.
_VFS_WORDS, _XOPEN, _XDELETE, _NAME = 22, 5, 6, 3
_METHOD_WORDS, _XCLOSE, _XWRITE, _XTRUNCATE, _XSYNC = 19, 1, 3, 4, 5


@dataclass(frozen=True)
class Op:
    """What reached the disk: write (at, data), truncate (at), sync, delete; or a mark of the test's own."""

    kind: str
    name: str = ""
    at: int = 0
    data: bytes = b""


@dataclass
class Disk:
    """The log, and ``fault``: asked before each operation for SQLite's code, OK to go on."""

    log: list[Op] = field(default_factory=list)
    fault: Callable[[Op], int] = lambda _: OK

    def mark(self, text: str) -> None:
        """Note that the workload came this far."""
        self.log.append(Op("mark", text))

    def asked(self, op: Op) -> int:
        """The verdict on an operation; a good one is noted by the caller when it is done."""
        return self.fault(op)


def _library() -> Any:
    return ctypes.CDLL(getattr(_sqlite3, "__file__", None))


def reachable() -> bool:
    """Whether this Python's SQLite lets its file system be put behind another."""
    try:
        return bool(_library().sqlite3_vfs_register)
    except (AttributeError, OSError):
        return False


@contextmanager
def disk_under_sqlite() -> Iterator[Disk]:
    """Every file that SQLite opens inside the block is on the noting disk."""
    library = _library()
    library.sqlite3_vfs_find.restype = _P
    library.sqlite3_vfs_register.argtypes = [_P, _I]
    library.sqlite3_vfs_unregister.argtypes = [_P]
    real = library.sqlite3_vfs_find(None)
    words = (ctypes.c_uint64 * _VFS_WORDS).from_address(real)
    ours = (ctypes.c_uint64 * _VFS_WORDS)(*words)
    name = ctypes.create_string_buffer(b"noting")
    ours[_NAME] = ctypes.addressof(name)
    layer = _Layer(_OPEN(words[_XOPEN]), _DELETE(words[_XDELETE]))
    opened, deleted = _OPEN(layer.open), _DELETE(layer.delete)
    ours[_XOPEN] = ctypes.cast(opened, _P).value or 0
    ours[_XDELETE] = ctypes.cast(deleted, _P).value or 0
    library.sqlite3_vfs_register(ctypes.addressof(ours), 1)
    try:
        yield layer.disk
    finally:
        library.sqlite3_vfs_unregister(ctypes.addressof(ours))
        library.sqlite3_vfs_register(real, 1)
        _KEPT.append((ours, name, layer, opened, deleted))  # a file still open goes on using them


_KEPT: list[Any] = []


class _Layer:
    """The functions between SQLite and its own methods."""

    def __init__(self, real_open: Any, real_delete: Any) -> None:
        self.disk = Disk()
        self._real_open, self._real_delete = real_open, real_delete
        self._names: dict[int, str] = {}
        self._tables: dict[int, Any] = {}
        self._kept: list[Any] = []

    def open(self, vfs: int, path: int, file: int, flags: int, out: int) -> int:
        """xOpen: the real one, and then our table of methods."""
        code = self._real_open(vfs, path, file, flags, out)
        methods = ctypes.c_uint64.from_address(file)
        if code == OK and methods.value and path:
            self._names[file] = Path(ctypes.string_at(path).decode()).name
            if methods.value not in self._tables:
                self._tables[methods.value] = self._table(methods.value)
            methods.value = ctypes.addressof(self._tables[methods.value])
        return code

    def delete(self, vfs: int, path: int, sync: int) -> int:
        """xDelete."""
        self.disk.log.append(Op("delete", Path(ctypes.string_at(path).decode()).name))
        return self._real_delete(vfs, path, sync)

    def _table(self, real: int) -> Any:
        words = (ctypes.c_uint64 * _METHOD_WORDS).from_address(real)
        table = (ctypes.c_uint64 * _METHOD_WORDS)(*words)
        close, write = _CLOSE(words[_XCLOSE]), _WRITE(words[_XWRITE])
        truncate, sync = _TRUNCATE(words[_XTRUNCATE]), _SYNC(words[_XSYNC])

        def closed(file: int) -> int:
            self._names.pop(file, None)
            return close(file)

        def through(op: Op, act: Callable[[], int]) -> int:
            code = self.disk.asked(op) or act()
            if code == OK:
                self.disk.log.append(op)
            return code

        def written(file: int, data: int, size: int, at: int) -> int:
            op = Op("write", self._names.get(file, ""), at, ctypes.string_at(data, size))
            return through(op, lambda: write(file, data, size, at))

        def truncated(file: int, size: int) -> int:
            return through(Op("truncate", self._names.get(file, ""), size), lambda: truncate(file, size))

        def synced(file: int, flags: int) -> int:
            return through(Op("sync", self._names.get(file, "")), lambda: sync(file, flags))

        for place, function in (
            (_XCLOSE, _CLOSE(closed)), (_XWRITE, _WRITE(written)), (_XTRUNCATE, _TRUNCATE(truncated)),
            (_XSYNC, _SYNC(synced)),
        ):  # fmt: skip
            self._kept.append(function)
            table[place] = ctypes.cast(function, _P).value or 0
        return table


def after_power_loss(log: Sequence[Op], until: int, rng: random.Random) -> dict[str, bytes]:
    """What files may hold when the power goes before operation ``until``.

    What was synced is there. Of what was not, any part may be: each write whole, torn at a sector, or not.
    """
    files: dict[str, bytearray] = {}
    open_ops: dict[str, list[Op]] = {}
    for op in log[:until]:
        if op.kind == "sync":
            for one in open_ops.pop(op.name, []):
                _apply(files, one)
        elif op.kind == "delete":  # the spool syncs the folder after it, which is not seen from here
            open_ops.pop(op.name, None)
            files.pop(op.name, None)
        elif op.kind != "mark":
            open_ops.setdefault(op.name, []).append(op)
    for ops in open_ops.values():
        for one in ops:
            fate = rng.random()
            if fate < 0.4:
                _apply(files, one)
            elif fate < 0.6 and one.kind == "write":
                cut = rng.randrange(0, len(one.data) + SECTOR, SECTOR)
                _apply(files, Op("write", one.name, one.at, one.data[:cut]))
    return {name: bytes(data) for name, data in files.items()}


def _apply(files: dict[str, bytearray], op: Op) -> None:
    data = files.setdefault(op.name, bytearray())
    if op.kind == "truncate":
        del data[op.at :]
        return
    if len(data) < op.at:
        data.extend(bytes(op.at - len(data)))
    data[op.at : op.at + len(op.data)] = op.data
