"""Files that hold a secret: read only when nobody else can reach them, written whole or not at all.

Comes in: a path. Goes out: one line of text, or a ConfigError that names the path and never the content.
Invariants: what is read was, at the moment of opening, a plain file closed to others in a folder where
others cannot put another one; what is written is on disk before its name is, and a name that exists is
replaced only by :func:`replace_secret`.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ConfigError

TEXT_BYTES_MAX = 16_384
OPERATION = "key store"


def read_secret(path: Path, *, mounted: bool = False) -> str:
    """The file's text without the white space around it.

    ``mounted``: the path was named by whoever runs this, so that it may be what a service manager provides: a
    link, or a file of root that this process may read by its group (a systemd credential shows its access
    list there, a Kubernetes secret its ``fsGroup``), in a folder that is open to all with the sticky bit.
    Else it is a plain file of this user, mode 0600 or less. Raises ConfigError.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if mounted else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise refusal(path, "no file here", "restore it from its backup") from None
    except OSError as error:
        raise refusal(path, f"cannot open: {error.strerror}", "expected a plain file of this user") from None
    with os.fdopen(descriptor, "rb") as file:
        problem = fault(os.fstat(file.fileno()), path.parent.stat(), os.geteuid(), mounted=mounted)
        if problem is not None:
            raise refusal(path, *problem)
        content = file.read(TEXT_BYTES_MAX + 1)
    try:
        if len(content) > TEXT_BYTES_MAX:
            raise ValueError
        return content.decode("utf-8").strip()
    except ValueError:
        raise refusal(path, "expected one short line of text", "restore it from its backup") from None


def fault(
    file: os.stat_result, folder: os.stat_result, user: int, *, mounted: bool
) -> tuple[str, str] | None:
    """Why a secret in such a file is not one for ``user``, and what to do; None when it is."""
    mode, place = stat.S_IMODE(file.st_mode), stat.S_IMODE(folder.st_mode)
    provided = mounted and file.st_uid == 0 != user
    if not stat.S_ISREG(file.st_mode) or not (file.st_uid == user or provided):
        return "expected a plain file of this user", "chown it to the user that runs the stage"
    if mode & (0o037 if provided else 0o077):
        expected = "0440" if provided else "0600"
        return f"expected mode {expected} or less, found {mode:04o}: others can reach it", "chmod 600"
    sticky = mounted and place & stat.S_ISVTX
    if place & 0o022 and not sticky:
        return f"its folder has mode {place:04o}: others can put another file in its place", "chmod 700"
    return None


def write_secret(path: Path, text: str) -> bool:
    """A new file of mode 0600 with this line; False when the name is taken, whose file then stays."""
    if os.path.lexists(path):
        return False
    aside = _written_aside(path, text)
    try:
        os.link(aside, path)  # fails when another process was first: its file is the one
    except FileExistsError:
        return False
    finally:
        aside.unlink()
        _sync_folder(path.parent)
    return True


def replace_secret(path: Path, text: str) -> None:
    """The file with this line instead of the old one: after a crash it has one of the two, whole."""
    aside = _written_aside(path, text)
    try:
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def remove_secret(path: Path) -> None:
    """Remove the file, durably."""
    path.unlink()
    _sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """The folder, closed to others when it is new."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time changes the secrets of a folder; waits. Leftovers of a killed one are removed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # dropped with the process that holds it
        for leftover in folder.glob(".*.aside"):
            leftover.unlink()
        yield
    finally:
        os.close(descriptor)


def refusal(path: Path, problem: str, remedy: str) -> ConfigError:
    """The one form of these errors."""
    return ConfigError(problem, operation=OPERATION, place=str(path), remedy=remedy)


def _written_aside(path: Path, text: str) -> Path:
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.aside")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    return aside


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
