"""Keyed pseudonyms, per epoch of the event's own time.

Comes in: a column of identifiers and the epochs of its rows. Goes out: a column of 32 hex digits, null where
the identifier is null. Invariants: the same subject has the same pseudonym inside one (region, purpose,
domain, epoch) and unrelated ones outside it; nothing passes when a key is missing.

pseudonym = first 128 bits of HMAC-SHA-256(key(region, purpose, epoch), domain 0x00 identifier in UTF-8).
It is pseudonymous, not anonymous: who holds the key can test a guess (GDPR 4(5); EDPB Guidelines 01/2025).
The domain is the tag that was discharged, so a driver and a device that share a spelling do not share a
pseudonym.
"""

from __future__ import annotations

import hmac
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.policy.keys import KEY_BYTES, KeyStore

EpochKind = Literal["month", "quarter"]
PSEUDONYM_BYTES = 16
_MONTHS: dict[str, int] = {"month": 1, "quarter": 3}
_CACHE_ENTRIES_MAX = 100_000  # about 250 bytes each: 25 MB per plan


def epoch_name(index: int, kind: EpochKind) -> str:
    """Name of the ``index``-th month or quarter since 1970: ``2026-05`` or ``2026-q2``."""
    per_year = 12 // _MONTHS[kind]
    year, part = 1970 + index // per_year, index % per_year + 1
    return f"{year:04d}-{part:02d}" if kind == "month" else f"{year:04d}-q{part}"


def epoch_index(times_us: np.ndarray, kind: EpochKind) -> np.ndarray:
    """Months or quarters since 1970 of UTC times in microseconds, negative before."""
    months = times_us.view("datetime64[us]").astype("datetime64[M]").astype(np.int64)
    return months // _MONTHS[kind]


class Epochs:
    """The epochs of one batch's rows, computed once for all its pseudonymised columns."""

    def __init__(self, event_time: pa.Array, kind: EpochKind) -> None:
        if event_time.null_count:
            raise ValueError("event_time has nulls: their epoch is unknown")
        self.kind = kind
        times_us = np.asarray(event_time.cast(pa.int64()))
        ends = np.array([times_us.min(), times_us.max()]) if len(times_us) else np.zeros(2, dtype=np.int64)
        first, last = epoch_index(ends, kind)
        self.indices: np.ndarray | None = None  # per row; None: all rows are in `first`
        self.first = int(first)
        if first != last:  # calendar arithmetic over all rows, ten times dearer than a minimum: only now
            self.indices = epoch_index(times_us, kind)


class EpochKeyed(ABC):
    """Names for the subjects of one region, under a key per purpose and epoch of the row.

    Remembers a bounded number of them; not for two threads at once.
    """

    def __init__(self, keys: KeyStore, region: str, kind: EpochKind) -> None:
        self.region = region
        self.kind = kind
        self._keys = keys
        self._tables: dict[tuple[str, str, str], dict[str, str]] = {}
        self._held = 0

    def key(self, purpose: str, epoch: str) -> bytes:
        """The epoch's key; ConfigError when the store has none, or one too short to be a key."""
        key = self._keys.key(self.region, purpose, epoch)
        if len(key) < KEY_BYTES:
            raise ConfigError(
                f"expected a key of {8 * KEY_BYTES} bits or more, got {8 * len(key)}",
                operation="key store",
                place=f"{self.region}, {purpose}, {epoch}",
            )
        return key

    @abstractmethod
    def namer(self, key: bytes, domain: str) -> Callable[[str], str]:
        """What gives a subject its name under this key; the same subject always the same name."""

    def column(self, values: pa.Array, purpose: str, domain: str, epochs: Epochs) -> pa.Array:
        """Names for a string column, row by row in the epoch of the row; string, null stays null."""
        coded = values.dictionary_encode()
        subjects = coded.dictionary.to_pylist()
        if epochs.indices is None:
            names = self.names_of(subjects, purpose, domain, epoch_name(epochs.first, epochs.kind))
            return pa.array(names, pa.string()).take(coded.indices)
        # A subject seen in two epochs needs two pseudonyms: number the pairs (epoch, subject).
        picked = np.asarray(coded.indices.fill_null(0)).astype(np.int64)
        pairs, row_pair = np.unique(
            (epochs.indices - epochs.indices.min()) * max(1, len(subjects)) + picked, return_inverse=True
        )
        made = np.full(len(pairs), None, dtype=object)
        pair_epochs, pair_subjects = np.divmod(pairs, max(1, len(subjects)))
        for epoch in np.unique(pair_epochs) if subjects else ():
            chosen = np.flatnonzero(pair_epochs == epoch)
            name = epoch_name(int(epoch + epochs.indices.min()), epochs.kind)
            made[chosen] = self.names_of([subjects[i] for i in pair_subjects[chosen]], purpose, domain, name)
        row_pair_or_null = pa.array(row_pair, mask=np.asarray(values.is_null()))
        return pa.array(made, pa.string()).take(row_pair_or_null)

    def names_of(self, subjects: list[str], purpose: str, domain: str, epoch: str) -> list[str]:
        """Names in one epoch, in the order of the subjects; remembered, so that the next batch is cheap."""
        table = self._tables.setdefault((purpose, domain, epoch), {})
        new = [subject for subject in subjects if subject not in table]
        if new:
            name = self.namer(self.key(purpose, epoch), domain)
            table.update((subject, name(subject)) for subject in new)
            self._held += len(new)
        names = [table[subject] for subject in subjects]
        if self._held > _CACHE_ENTRIES_MAX:  # forget all: simpler than ages, and rare
            self._tables, self._held = {}, 0
        return names


class Pseudonymiser(EpochKeyed):
    """The pseudonyms of this module's definition."""

    def namer(self, key: bytes, domain: str) -> Callable[[str], str]:
        """See :class:`EpochKeyed`."""
        prefix = domain.encode() + b"\0"

        def name(subject: str) -> str:
            return hmac.digest(key, prefix + subject.encode(), "sha256")[:PSEUDONYM_BYTES].hex()

        return name
