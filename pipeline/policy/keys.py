"""Keys: one root secret per (region, purpose), one derived key per epoch.

Comes in: names of region, purpose and epoch. Goes out: 32 bytes, or a ConfigError that stops the stage: a
missing key never means that a value passes in clear. Invariants: a root is on disk in its wrapped form only,
readable by its owner alone, is never overwritten by another root, and names its region and purpose in its
file name, in what its wrapping authenticates *and* in every key derived from it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from pipeline.errors import ConfigError
from pipeline.policy.derivation import KEY_BYTES, epoch_key, hkdf_sha256
from pipeline.policy.root_files import (
    RootName,
    epoch_start,
    generations,
    key_start,
    read_root,
    unwrapped,
    write_root,
)
from pipeline.policy.secret_files import locked, make_folder, refusal
from pipeline.policy.wrapping import Wrapping

__all__ = ["KEY_BYTES", "FileKeyStore", "KeyStore", "create_keys", "hkdf_sha256"]

Signature = tuple[int, int, int]  # tells a replaced file from the one that was read


class KeyStore(Protocol):
    """Where the stages get keys from."""

    def key(self, region: str, purpose: str, epoch: str) -> bytes:
        """At least 32 bytes, the same for the same names, for ever.

        Raises ConfigError when there is none, TransientError when it cannot be had at the moment.
        """
        ...


class FileKeyStore:
    """Roots as wrapped files in one folder; each is unwrapped once, then held while its file stays the same.

    The folder is listed at every call: a generation that was added serves its epochs in all processes at
    once, and one that was taken away serves no longer. Usable by several threads.
    """

    def __init__(self, directory: Path, wrapping: Wrapping) -> None:
        self._directory, self._wrapping = directory, wrapping
        self._held: dict[RootName, tuple[Signature, str, bytes]] = {}

    def key(self, region: str, purpose: str, epoch: str) -> bytes:
        """See :class:`KeyStore`. Raises ConfigError also when the root is malformed or open to others."""
        start = key_start(epoch)
        names = [one for one in generations(self._directory, region, purpose) if one.start() <= start]
        if not names:
            raise refusal(
                RootName(region, purpose).path(self._directory), "no key here",
                "restore it; create it only for a new region",
            )  # fmt: skip
        until, root = self._root(names[-1])
        if until and start >= epoch_start(until):
            raise refusal(
                RootName(region, purpose, until).path(self._directory), "no key here",
                "the generation before this one ended: restore the file from its backup",
            )  # fmt: skip
        return epoch_key(root, region, purpose, epoch)

    def _root(self, name: RootName) -> tuple[str, bytes]:
        path = name.path(self._directory)
        try:
            state = path.lstat()
        except OSError as error:
            raise refusal(path, f"cannot open: {error.strerror}", "restore it from its backup") from None
        signature = (state.st_ino, state.st_mtime_ns, state.st_ctime_ns)
        held = self._held.get(name)
        if held is None or held[0] != signature:
            root = read_root(self._directory, name)
            held = (signature, root.until, unwrapped(self._directory, root, self._wrapping))
            self._held[name] = held
        return held[1], held[2]

    def __repr__(self) -> str:
        return f"FileKeyStore({str(self._directory)!r})"


def create_keys(directory: Path, region: str, purposes: Iterable[str], wrapping: Wrapping) -> list[Path]:
    """Write a fresh root for each purpose that has none; give the paths of the new ones.

    An existing root stays as it is: another one would cut every pseudonym off from its past. It has to open,
    so that the roots of a region never end up under two wrappings. Raises ConfigError, TransientError.
    """
    make_folder(directory)
    made = []
    with locked(directory):
        for purpose in purposes:
            existing = generations(directory, region, purpose)
            for name in existing:
                unwrapped(directory, read_root(directory, name), wrapping)
            name = RootName(region, purpose)
            if not existing and write_root(directory, name, secrets.token_bytes(KEY_BYTES), wrapping):
                made.append(name.path(directory))
    return made


def import_key(directory: Path, name: RootName, root_hex: str, wrapping: Wrapping) -> Path:
    """Bring a root in from elsewhere, 64 hex digits; ConfigError when there is one of this name."""
    try:
        root = bytes.fromhex(root_hex)
    except ValueError:
        root = b""
    if len(root) != KEY_BYTES:
        raise ConfigError(
            f"expected a root of {2 * KEY_BYTES} hex digits", operation="keys import",
            remedy="take it from where it was kept",
        )  # fmt: skip
    make_folder(directory)
    with locked(directory):
        if generations(directory, name.region, name.purpose) or not write_root(
            directory, name, root, wrapping
        ):
            raise refusal(name.path(directory), "there is a key already", "a key is never overwritten")
    return name.path(directory)
