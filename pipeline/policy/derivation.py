"""Derivation: keys out of a root, one for each use.

Comes in: a secret and what the key is for. Goes out: bytes that tell nothing of the secret or of each other.
HKDF-SHA-256 (RFC 5869), by the ``cryptography`` package.
"""

from __future__ import annotations

KEY_BYTES = 32
_LENGTH_MAX = 255 * 32
_LABEL = b"edge-to-core-pipeline/pseudonym-key/v1"


def hkdf_sha256(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """Extract-and-expand of RFC 5869 with SHA-256; ``length`` in bytes, at most 255 * 32."""
    if not 0 < length <= _LENGTH_MAX:
        raise ValueError(f"HKDF-SHA-256 gives 1 to {_LENGTH_MAX} bytes")
    from cryptography.hazmat.primitives.hashes import (
        SHA256,
    )  # here: an agent without keys has no memory for it
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), length, salt, info).derive(secret)


def epoch_key(root: bytes, region: str, purpose: str, epoch: str) -> bytes:
    """The key of one (region, purpose, epoch): info = label, region, purpose, epoch, each ended by 0x00."""
    info = b"".join(part + b"\0" for part in (_LABEL, region.encode(), purpose.encode(), epoch.encode()))
    return hkdf_sha256(root, b"", info, KEY_BYTES)
