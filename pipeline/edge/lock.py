"""One owner per spool: an advisory lock that ends with its process, however that ends.

Comes in: the path of a file. Goes out: the held lock. Invariant: the lock file is never deleted, else two
processes could hold locks on two files of the same name.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from pipeline.errors import ConfigError


class OwnerLock:
    """``flock`` on ``<path>.lock``; ConfigError, naming the holder's process, when it is taken."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(self._handle, 20, 0).decode(errors="replace") or "unknown"
            self.release()
            raise ConfigError(
                f"spool {path} is in use by process {owner}",
                remedy="stop that agent or give this one another name",
            ) from None
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, str(os.getpid()).encode(), 0)

    @property
    def held(self) -> bool:
        """Whether this object still owns the lock."""
        return self._handle >= 0

    def release(self) -> None:
        """Let go; safe to call twice."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def make_private_file(path: Path) -> None:
    """Make the file if it is missing, readable by its owner only, and its name durable."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    sync_folder(path)


def sync_folder(path: Path) -> None:
    """Make durable which files are in the folder of ``path``, and which are not any more."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
