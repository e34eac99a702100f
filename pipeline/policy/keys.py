"""Keys: one root secret per (region, purpose), one derived key per epoch.

Comes in: names of region, purpose and epoch. Goes out: 32 bytes, or a ConfigError that stops the stage: a
missing key never means that a value passes in clear. Invariants: a root is readable by its owner alone, is
never overwritten, and names its region and purpose in its file name *and* in every key derived from it.

Derivation: HKDF-SHA-256 (RFC 5869), info = label, region, purpose, epoch, each ended by a zero byte.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from pipeline.errors import ConfigError

KEY_BYTES = 32
_DIGEST_BYTES = 32
_LABEL = b"edge-to-core-pipeline/pseudonym-key/v1"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


class KeyStore(Protocol):
    """Where the stages get keys from; the production form is a KMS behind the same method."""

    def key(self, region: str, purpose: str, epoch: str) -> bytes:
        """At least 32 bytes, the same for the same names, for ever; ConfigError when there is none."""
        ...


def hkdf_sha256(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """Extract-and-expand of RFC 5869 with SHA-256; ``length`` in bytes, at most 255 * 32."""
    if not 0 < length <= 255 * _DIGEST_BYTES:
        raise ValueError("HKDF-SHA-256 gives 1 to 8160 bytes")
    extracted = hmac.digest(salt or bytes(_DIGEST_BYTES), secret, "sha256")
    out, block = b"", b""
    for counter in range(1, -(-length // _DIGEST_BYTES) + 1):
        block = hmac.digest(extracted, block + info + bytes([counter]), "sha256")
        out += block
    return out[:length]


class FileKeyStore:
    """Roots as files ``<region>.<purpose>.key`` (64 hex digits) in one folder; read once, then held."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._roots: dict[tuple[str, str], bytes] = {}

    def key(self, region: str, purpose: str, epoch: str) -> bytes:
        """The epoch's key. Raises ConfigError when the root is missing, malformed or open to others."""
        root = self._roots.get((region, purpose))
        if root is None:
            root = self._roots[region, purpose] = _read_root(_root_path(self._directory, region, purpose))
        info = b"".join(part + b"\0" for part in (_LABEL, region.encode(), purpose.encode(), epoch.encode()))
        return hkdf_sha256(root, b"", info, KEY_BYTES)

    def __repr__(self) -> str:
        return f"FileKeyStore({str(self._directory)!r})"


def create_keys(directory: Path, region: str, purposes: Iterable[str]) -> list[Path]:
    """Write a fresh root for each purpose that has none; give the paths of the new ones.

    An existing root stays as it is: another one would cut every pseudonym off from its past. A root
    appears whole or not at all (written aside, synced, then linked under its name).
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return [path for purpose in purposes if _write_root(path := _root_path(directory, region, purpose))]


def _root_path(directory: Path, region: str, purpose: str) -> Path:
    for kind, name in (("region", region), ("purpose", purpose)):
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{kind} is not a name for a key: expected lower-case letters, digits and hyphens",
                operation="key store",
                place=str(directory),
            )
    return directory / f"{region}.{purpose}.key"


def _write_root(path: Path) -> bool:
    if path.exists():
        return False
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(aside, path)  # fails when another process was first: its root is the one
        except FileExistsError:
            return False
    finally:
        aside.unlink()
        _sync_directory(path.parent)
    return True


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_root(path: Path) -> bytes:
    """The root in a file; ConfigError unless it is whole, ours, and closed to everyone else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _refusal(path, "no key here", "restore it; create it only for a new region") from None
    except OSError as error:
        raise _refusal(
            path, f"cannot open: {error.strerror}", "a root is a plain file of this user"
        ) from None
    with os.fdopen(descriptor, "rb") as file:
        _demand_closed(path, os.fstat(file.fileno()))
        text = file.read(4 * KEY_BYTES)
    try:
        root = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        root = b""
    if len(root) != KEY_BYTES:
        raise _refusal(path, f"expected {2 * KEY_BYTES} hex digits", "restore the file from its backup")
    return root


def _demand_closed(path: Path, state: os.stat_result) -> None:
    mode = stat.S_IMODE(state.st_mode)
    if not stat.S_ISREG(state.st_mode) or state.st_uid != os.geteuid():
        raise _refusal(path, "expected a plain file of this user", "chown it to the user that runs the stage")
    if mode & 0o077:
        raise _refusal(path, f"expected mode 0600, found {mode:04o}: others can reach the key", "chmod 600")
    folder = stat.S_IMODE(path.parent.stat().st_mode)
    if folder & 0o022:
        raise _refusal(
            path, f"its folder has mode {folder:04o}: others can put a key in its place", "chmod 700"
        )


def _refusal(path: Path, problem: str, remedy: str) -> ConfigError:
    return ConfigError(problem, operation="key store", place=str(path), remedy=remedy)
