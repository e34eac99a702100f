"""Is this the file that was here before? A copy must not go on numbering where its original does.

Comes in: the path of a spool file and what it remembers of itself. Goes out: whether both fit. Two files
that give out the same numbers under one incarnation would have their events taken for repeats of each other:
lost without a trace. Known by: the file system and the inode it lies in, the machine, a name given at birth
that is kept beside it, and that its count of commits does not go back (a backup put back in its place).

The note beside the file is written without a sync and after the commits it speaks of, so it may be old but
never ahead; one that cannot be read counts as missing, and all that follows is a new incarnation.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MACHINE_ID = Path("/etc/machine-id")


@dataclass(frozen=True, slots=True)
class Birth:
    """What the note beside the file says: the file's name at birth, and commits it is known to have had."""

    name: str = ""
    commits: int = 0


def new_birth() -> str:
    """A name no other file has."""
    return secrets.token_hex(16)


def place_of(path: Path) -> str:
    """Where the file lies, as far as a file system tells: another place for a copy, the same for itself."""
    machine = b""
    with suppress(OSError):
        machine = MACHINE_ID.read_bytes().strip()
    return f"{os.statvfs(path).f_fsid}:{os.stat(path).st_ino}:{hashlib.sha256(machine).hexdigest()[:16]}"


def read_birth(path: Path) -> Birth:
    """The note of the spool file ``path``; empty when there is none that can be read."""
    try:
        said = json.loads(_note(path).read_bytes())
        return Birth(str(said["birth"]), int(said["commits"]))
    except (OSError, ValueError, TypeError, KeyError):
        return Birth()


def write_birth(path: Path, birth: Birth) -> None:
    """Replace the note. OSError is the caller's: an old note is a note too."""
    new = Path(f"{_note(path)}.new")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(handle, json.dumps({"birth": birth.name, "commits": birth.commits}).encode())
    finally:
        os.close(handle)
    os.replace(new, _note(path))


def _note(path: Path) -> Path:
    return Path(f"{path}.birth")
