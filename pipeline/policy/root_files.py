"""Root keys as files: ``<region>.<purpose>.key``, and one more for each generation that followed.

Comes in: a folder, names, a wrapping. Goes out: roots, or a ConfigError. Invariants: a root is on disk in its
wrapped form alone; its names and its time are bound to it, so that a file under another name does not open;
a lost generation is noticed and never replaced by the one before it.

A file is one line: ``root-key v1 <wrapping> <until> <text>``. A *generation* serves the epochs from the one
in its name (``eu.care.2027-q1.key``; the first has none and serves from ever) up to ``until``, excluded;
``-`` says that it is the last. The context of the wrapping is label, region, purpose, since, until, each
ended by a zero byte.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import ConfigError, TransientError
from pipeline.policy.derivation import KEY_BYTES
from pipeline.policy.secret_files import OPERATION, read_secret, refusal, replace_secret, write_secret
from pipeline.policy.wrapping import Wrapping

_FORMAT = "root-key v1"
_LABEL = "edge-to-core-pipeline/root-key/v1"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_EPOCH = re.compile(r"(\d{4,})-(?:q([1-4])|(0[1-9]|1[0-2]))")
_FILE = re.compile(r"([a-z0-9][a-z0-9-]*)\.([a-z0-9][a-z0-9-]*)(?:\.(\d{4,}-(?:q\d|\d\d)))?\.key")
_PLAIN = re.compile(r"[0-9a-fA-F]{64}")
_LAST = "-"


@dataclass(frozen=True)
class RootName:
    """Which root: ``since`` is the first epoch of its generation, empty for the first one."""

    region: str
    purpose: str
    since: str = ""

    def path(self, folder: Path) -> Path:
        """Its file."""
        return folder / ".".join([self.region, self.purpose, *([self.since] if self.since else []), "key"])

    def start(self) -> int:
        """Months since year 0 of its first epoch; 0 for the first generation."""
        return epoch_start(self.since) if self.since else 0


@dataclass(frozen=True)
class Root:
    """A root in its wrapped form; ``until``: the first epoch that the next generation serves, or empty."""

    name: RootName
    wrapping: str
    until: str
    text: str

    def context(self) -> bytes:
        """What is bound to the root by its wrapping."""
        parts = (_LABEL, self.name.region, self.name.purpose, self.name.since, self.until)
        return b"".join(part.encode() + b"\0" for part in parts)

    def line(self) -> str:
        """As it is written."""
        return f"{_FORMAT} {self.wrapping} {self.until or _LAST} {self.text}"


def epoch_start(epoch: str) -> int:
    """Months since year 0 at the start of ``2026-05`` or ``2026-q2``. Raises ConfigError."""
    found = _EPOCH.fullmatch(epoch)
    if found is None:
        raise ConfigError("expected an epoch such as 2027-05 or 2027-q2", operation=OPERATION)
    year, quarter, month = found.groups()
    return int(year) * 12 + (int(month) - 1 if month else (int(quarter) - 1) * 3)


def key_start(epoch: str) -> int:
    """Where an epoch that a key is asked for starts; 0 for a name outside the calendar, which stands for ever
    and is served by the first generation."""
    return epoch_start(epoch) if _EPOCH.fullmatch(epoch) else 0


def demand_names(folder: Path, region: str, purpose: str) -> None:
    """ConfigError unless both can be part of a file's name."""
    for kind, name in (("region", region), ("purpose", purpose)):
        if not _NAME.fullmatch(name):
            raise refusal(
                folder, f"{kind} is not a name for a key", "take lower-case letters, digits and hyphens"
            )


def list_roots(folder: Path) -> list[RootName]:
    """Every root of the folder by its name, generations in order. Raises ConfigError."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise refusal(folder, f"cannot list: {error.strerror}", "see that the folder is there") from None
    found = [
        RootName(match[1], match[2], match[3] or "") for name in names if (match := _FILE.fullmatch(name))
    ]
    return sorted(found, key=lambda name: (name.region, name.purpose, name.start()))


def generations(folder: Path, region: str, purpose: str) -> list[RootName]:
    """The roots of one purpose, oldest first. Raises ConfigError."""
    demand_names(folder, region, purpose)
    return [name for name in list_roots(folder) if (name.region, name.purpose) == (region, purpose)]


def read_root(folder: Path, name: RootName) -> Root:
    """The wrapped root of a file. Raises ConfigError."""
    path = name.path(folder)
    line = read_secret(path)
    if _PLAIN.fullmatch(line):
        raise refusal(
            path, "a root in clear, which is not taken from here",
            "move it away and bring it in with `pipeline keys import`, then destroy it",
        )  # fmt: skip
    parts = line.split(" ")
    if len(parts) != 5 or " ".join(parts[:2]) != _FORMAT:
        raise refusal(path, f"expected one line: {_FORMAT} …", "restore the file from its backup")
    return Root(name, parts[2], "" if parts[3] == _LAST else parts[3], parts[4])


def unwrapped(folder: Path, root: Root, wrapping: Wrapping) -> bytes:
    """The root itself. Raises ConfigError, TransientError, both with the path of the file."""
    path = root.name.path(folder)
    if root.wrapping != wrapping.name:
        raise refusal(
            path, f"wrapped by {root.wrapping}, while [keys] says {wrapping.name}",
            "configure what it was wrapped by, or run `pipeline keys rewrap`",
        )  # fmt: skip
    try:
        plain = wrapping.unwrap(root.text, root.context())
    except TransientError as error:
        raise TransientError(
            error.problem, operation=OPERATION, place=f"{path} {error.place}".strip(), remedy=error.remedy
        ) from None
    except ConfigError as error:
        raise refusal(path, f"{error.problem} {error.place}".strip(), error.remedy) from None
    if len(plain) != KEY_BYTES:
        raise refusal(path, f"expected a root of {KEY_BYTES} bytes", "restore the file from its backup")
    return plain


def wrapped(name: RootName, until: str, plain: bytes, wrapping: Wrapping) -> Root:
    """A root in its wrapped form, opened once more before anyone relies on it."""
    if len(plain) != KEY_BYTES:
        raise ConfigError(f"expected a root of {KEY_BYTES} bytes", operation=OPERATION)
    empty = Root(name, wrapping.name, until, "")
    root = replace(empty, text=wrapping.wrap(plain, empty.context()))
    if wrapping.unwrap(root.text, root.context()) != plain:
        raise ConfigError("a root did not open again after it was wrapped", operation=OPERATION)
    return root


def write_root(folder: Path, name: RootName, plain: bytes, wrapping: Wrapping) -> bool:
    """A new file with this root; False when there is one, which stays. Raises ConfigError, TransientError."""
    demand_names(folder, name.region, name.purpose)
    path = name.path(folder)
    return not os.path.lexists(path) and write_secret(path, wrapped(name, "", plain, wrapping).line())


def rewrite_root(folder: Path, root: Root) -> None:
    """The file of a root with this content instead of the old one, in one step."""
    replace_secret(root.name.path(folder), root.line())
