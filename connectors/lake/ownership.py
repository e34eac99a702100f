"""The lock of a store's one writer.

A file lock of the kernel: it ends with the process, whatever ends that. It guards one machine; what guards
the data itself is that every commit checks the positions it starts from (connectors.lake.writer).
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from pipeline.errors import OwnershipLost


class WriterLock:
    """Held from construction to :meth:`release`. Raises OwnershipLost naming the holder."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._file, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            raise OwnershipLost(
                f"process {holder} writes this store", operation="opening to write", place=str(path.parent),
                remedy="stop that process, or let it do the work",
            ) from None  # fmt: skip
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Let go; the file stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
