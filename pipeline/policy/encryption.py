"""Deterministic encryption of identifiers, per epoch of the event's own time.

Comes in: a column of identifiers and the epochs of its rows. Goes out: base64url text, null where the
identifier is null. Invariants: the same subject has the same text inside one (region, purpose, domain, epoch)
and unrelated ones outside it; who holds the key, and nobody else, gets the identifier back, and notices a
text that was altered or belongs to another domain.

AES-256-SIV (RFC 5297), associated data = domain, key = HKDF of the epoch's key under a label of its own, so
that it is never the key of a pseudonym. The identifier is padded with 0x80 0x00 … to whole 16 bytes, so that
the text tells its length only roughly. A pseudonym in the sense of GDPR 4(5), and reversible: take it only
where someone has to get the identifier back, such as for a right of access; else pseudonymise.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.policy.keys import hkdf_sha256
from pipeline.policy.pseudonyms import EpochKeyed

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV

_LABEL = b"edge-to-core-pipeline/deterministic-encryption/v1\0"
_KEY_BYTES = 64  # two AES-256 keys
_BLOCK_BYTES = 16


class Encrypter(EpochKeyed):
    """The encryption of this module's definition."""

    def namer(self, key: bytes, domain: str) -> Callable[[str], str]:
        """See :class:`pipeline.policy.pseudonyms.EpochKeyed`."""
        cipher, associated = _cipher(key), [domain.encode()]

        def encrypt(subject: str) -> str:
            padded = subject.encode() + b"\x80"
            padded += bytes(-len(padded) % _BLOCK_BYTES)
            return base64.urlsafe_b64encode(cipher.encrypt(padded, associated)).decode().rstrip("=")

        return encrypt


def decrypt(text: str, key: bytes, domain: str) -> str:
    """The identifier behind a text; ``key`` is the key store's for its region, purpose and epoch.

    Raises ValueError when the text was not made with this key for this domain.
    """
    from cryptography.exceptions import InvalidTag

    sealed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    try:
        padded = _cipher(key).decrypt(sealed, [domain.encode()])
    except InvalidTag:
        raise ValueError("not made with this key for this domain, or altered") from None
    return padded.rstrip(b"\0")[:-1].decode()


def _cipher(key: bytes) -> AESSIV:
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV  # here: see pipeline.policy.derivation

    return AESSIV(hkdf_sha256(key, b"", _LABEL, _KEY_BYTES))
