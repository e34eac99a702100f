"""Wrapping: root keys are encrypted under a key that is kept elsewhere.

Comes in: a root and its context (which root it is). Goes out: text for a file, and the root back from that
text and the same context alone. Invariants: a text that was altered, or moved to another name, does not open;
nothing of a root or a master key is in an error.

Two ways without a server: a master key of 32 bytes, or a passphrase stretched by scrypt (RFC 7914; N 2^17,
r 8, p 1: 128 MiB and about 0.4 s a guess). Both wrap by AES-256-GCM (NIST SP 800-38D), the context as
associated data, a random nonce of 96 bits (a folder holds some tens of roots; the bound is 2^32). A transit
engine is the third way, in ``connectors/``.
"""

from __future__ import annotations

import base64
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import ConfigError
from pipeline.policy.derivation import KEY_BYTES, hkdf_sha256
from pipeline.policy.secret_files import OPERATION, make_folder, read_secret, refusal, write_secret

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PASSPHRASE_CHARACTERS_MIN = 16
_NONCE_BYTES = 12
_SALT_BYTES = 16
_IDENTITY_BYTES = 8
_IDENTITY_LABEL = b"edge-to-core-pipeline/master-key-identity/v1"


class Wrapping(Protocol):
    """Encrypts roots under a key that only it reaches. ``name`` is written beside what it wrapped."""

    name: str

    def wrap(self, plain: bytes, context: bytes) -> str:
        """Text without white space. Raises ConfigError, TransientError."""
        ...

    def unwrap(self, text: str, context: bytes) -> bytes:
        """The root. ConfigError: this text never opens here; TransientError: not at the moment."""
        ...


class LocalWrapping:
    """Under a master key of 32 bytes. Text: identity of the master key, colon, nonce and sealed root."""

    name = "local"

    def __init__(self, master: bytes) -> None:
        if len(master) != KEY_BYTES:
            raise ValueError(f"a master key has {KEY_BYTES} bytes")
        self._cipher = _aes_gcm(master)
        self._identity = hkdf_sha256(master, b"", _IDENTITY_LABEL, _IDENTITY_BYTES).hex()

    def wrap(self, plain: bytes, context: bytes) -> str:
        """See :class:`Wrapping`."""
        return f"{self._identity}:{_sealed(self._cipher, plain, context)}"

    def unwrap(self, text: str, context: bytes) -> bytes:
        """See :class:`Wrapping`."""
        identity, colon, sealed = text.partition(":")
        if not colon:
            raise _damaged()
        if not secrets.compare_digest(identity.encode(), self._identity.encode()):
            raise _failed(
                "wrapped under another master key than the configured one", "restore that master key"
            )
        return _opened(self._cipher, sealed, context)

    def __repr__(self) -> str:
        return f"LocalWrapping({self._identity})"


class PassphraseWrapping:
    """Under a key stretched from a passphrase. Text: salt, colon, nonce and sealed root.

    What one instance wraps shares a salt; each salt is stretched once, as that is slow on purpose.
    """

    name = "passphrase"

    def __init__(self, passphrase: str) -> None:
        if len(passphrase) < PASSPHRASE_CHARACTERS_MIN:
            raise _failed(
                f"expected a passphrase of {PASSPHRASE_CHARACTERS_MIN} characters or more",
                "take six random words or more",
            )
        self._passphrase = passphrase.encode()
        self._salt = secrets.token_bytes(_SALT_BYTES)
        self._ciphers: dict[bytes, AESGCM] = {}

    def wrap(self, plain: bytes, context: bytes) -> str:
        """See :class:`Wrapping`."""
        return f"{_text(self._salt)}:{_sealed(self._cipher(self._salt), plain, context)}"

    def unwrap(self, text: str, context: bytes) -> bytes:
        """See :class:`Wrapping`."""
        encoded, _, sealed = text.partition(":")
        salt = _bytes(encoded)
        if len(salt) != _SALT_BYTES:
            raise _damaged()
        return _opened(self._cipher(salt), sealed, context)

    def _cipher(self, salt: bytes) -> AESGCM:
        if salt not in self._ciphers:
            from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

            stretched = Scrypt(salt=salt, length=KEY_BYTES, n=2**17, r=8, p=1).derive(self._passphrase)
            self._ciphers[salt] = _aes_gcm(stretched)
        return self._ciphers[salt]

    def __repr__(self) -> str:
        return "PassphraseWrapping()"


def create_master(path: Path) -> bool:
    """A fresh master key as a file of mode 0600; False when the name is taken, whose file then stays."""
    make_folder(path.parent)
    return write_secret(path, secrets.token_hex(KEY_BYTES))


def read_master(path: Path) -> LocalWrapping:
    """The wrapping under the master key in a file: 64 hex digits. Raises ConfigError."""
    try:
        return LocalWrapping(bytes.fromhex(read_secret(path, mounted=True)))
    except ValueError:
        raise refusal(
            path, f"expected a master key of {2 * KEY_BYTES} hex digits", "restore it from its backup"
        ) from None


def _aes_gcm(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # here: see pipeline.policy.derivation

    return AESGCM(key)


def _sealed(cipher: AESGCM, plain: bytes, context: bytes) -> str:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return _text(nonce + cipher.encrypt(nonce, plain, context))


def _opened(cipher: AESGCM, sealed: str, context: bytes) -> bytes:
    from cryptography.exceptions import InvalidTag

    content = _bytes(sealed)
    try:
        return cipher.decrypt(content[:_NONCE_BYTES], content[_NONCE_BYTES:], context)
    except (InvalidTag, ValueError):  # ValueError: too short to be a nonce
        raise _damaged() from None


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise _damaged() from None


def _damaged() -> ConfigError:
    return _failed(
        "does not open: altered, under another name than its own, or wrapped under another secret",
        "restore the file, or the secret that wraps it, from its backup",
    )


def _failed(problem: str, remedy: str) -> ConfigError:
    return ConfigError(problem, operation=OPERATION, remedy=remedy)
