"""Random tokens for subjects, kept in a vault: what unlinks for ever when its entry is deleted.

Comes in: a column of identifiers. Goes out: 32 hex digits per identifier, null where it is null. Invariants:
a subject has one token inside one (region, purpose, domain), whichever process asks first, until the token is
forgotten; no key gives a token back or makes it again; nothing passes without a vault.

The vault never sees a subject, only HMAC-SHA-256(key, domain 0x00 identifier): who steals the vault alone
cannot test guesses. The key is derived, under a label of its own, from the key store's for an epoch before
all others: a later generation of the root does not touch it, and a purpose that tokenises has to keep its
first root. Tokens outlive epochs: who has to be followed over years is followed by token, and that is why
their entry must be deletable. A token is a pseudonym in the sense of GDPR 4(5) as long as its entry exists;
once it is gone, neither key nor guess leads from the subject to the rows (GDPR 17).
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from itertools import combinations
from typing import Protocol

import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.events import TAGS
from pipeline.policy.keys import KEY_BYTES, KeyStore, hkdf_sha256
from pipeline.policy.tags import covered

TOKEN_BYTES = 16
VAULT_EPOCH = "0000-01"  # earlier than every event's, so that the purpose's first root serves it for ever
TOKENISED = frozenset({"identifier"})  # tags that become tokens
_LABEL = b"edge-to-core-pipeline/token-vault/v1\0"


class TokenVault(Protocol):
    """Where tokens are kept, per region and purpose; shared by every process of a region."""

    def tokens(self, region: str, purpose: str, subject_hashes: list[bytes]) -> list[str]:
        """The token of each, in that order; one that has none gets a random one, durable before this returns.

        Raises ConfigError when there is no vault, TransientError while others hold it, StoreCorrupt.
        """
        ...

    def forget(self, region: str, purpose: str, subject_hashes: list[bytes]) -> int:
        """Delete entries so that their bytes are gone from the vault's files; how many there were."""
        ...


class Tokeniser:
    """Tokens for the subjects of one region. ``vault`` None: every request is refused."""

    def __init__(self, keys: KeyStore, region: str, vault: TokenVault | None) -> None:
        self._keys = keys
        self._region = region
        self._vault = vault

    def demand(self, purposes: Iterable[str]) -> None:
        """Raises ConfigError when the vault or a purpose's key is missing; with no purposes none is asked."""
        for purpose in purposes:
            vault_key(self._keys, self._region, purpose)
            self._demand_vault().tokens(self._region, purpose, [])

    def column(self, values: pa.Array, purpose: str, domain: str) -> pa.Array:
        """Tokens for a string column; string, null stays null."""
        vault = self._demand_vault()
        coded = values.dictionary_encode()
        key = vault_key(self._keys, self._region, purpose)
        hashes = [subject_hash(key, domain, subject) for subject in coded.dictionary.to_pylist()]
        tokens = vault.tokens(self._region, purpose, hashes) if hashes else []
        if len(tokens) != len(hashes):
            raise ValueError("the vault gave another number of tokens")
        return pa.array(tokens, pa.string()).take(coded.indices)

    def _demand_vault(self) -> TokenVault:
        if self._vault is None:
            raise ConfigError(
                "the policy tokenises and there is no token vault",
                operation="token vault",
                place=self._region,
                remedy="configure one, or pseudonymise instead",
            )
        return self._vault


class ExampleVault:
    """A :class:`TokenVault` that keeps nothing and hides nothing: the token is the head of the hash. For the
    examples of a pack, whose keys everyone can compute, alone."""

    def tokens(self, region: str, purpose: str, subject_hashes: list[bytes]) -> list[str]:
        """The same tokens for everyone."""
        return [subject[:TOKEN_BYTES].hex() for subject in subject_hashes]

    def forget(self, region: str, purpose: str, subject_hashes: list[bytes]) -> int:
        """There is nothing to forget."""
        return 0


def vault_key(keys: KeyStore, region: str, purpose: str) -> bytes:
    """The key under which subjects are hashed for the vault; ConfigError when the store has none."""
    key = keys.key(region, purpose, VAULT_EPOCH)
    if len(key) < KEY_BYTES:
        raise ConfigError(
            f"expected a key of {8 * KEY_BYTES} bits or more, got {8 * len(key)}",
            operation="key store",
            place=f"{region}, {purpose}, {VAULT_EPOCH}",
        )
    return hkdf_sha256(key, b"", _LABEL, KEY_BYTES)


def subject_hash(key: bytes, domain: str, subject: str) -> bytes:
    """What the vault knows of a subject; ``domain`` is the tag that was discharged, ``key`` of
    :func:`vault_key`. 32 bytes."""
    return hmac.digest(key, domain.encode() + b"\0" + subject.encode(), "sha256")


def domains() -> tuple[str, ...]:
    """Every domain that :func:`subject_hash` may have been given: the sets of tags that become tokens."""
    tags = sorted(tag for tag in TAGS if covered(tag, TOKENISED))
    return tuple(
        ",".join(chosen) for count in range(1, len(tags) + 1) for chosen in combinations(tags, count)
    )


def forget_subject(
    vault: TokenVault, keys: KeyStore, region: str, purposes: Iterable[str], subject: str
) -> int:
    """Unlink one subject in a region, for these purposes and in every domain; how many tokens it had.

    Rows keep their tokens and lead to nobody. An event of the subject that comes later gets a new token; a
    batch that was being processed meanwhile may still carry the old one, so erase rows after this.
    """
    forgotten = 0
    for purpose in purposes:
        key = vault_key(keys, region, purpose)
        forgotten += vault.forget(
            region, purpose, [subject_hash(key, domain, subject) for domain in domains()]
        )
    return forgotten
