"""Consent and objection: may this event, about this person, be processed for this purpose?

Comes in: what people have said, one record per (purpose, subject), and the rows of a batch. Goes out: the
rows that may not be processed. A subject is known here by its *consent name* alone: a keyed hash for the
purpose that never rotates, because a choice outlives every pseudonym (GDPR 7(3), 21; CCPA 1798.120; DPDP 6).
It is made with a key of its own, so it joins with no pseudonym of any epoch.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa

from pipeline.policy.keys import KeyStore
from pipeline.policy.pseudonyms import Pseudonymiser

EPOCH = DOMAIN = "consent"  # no epoch of the calendar has this name, no tag this spelling
MISSING, OBJECTED = "consent_missing", "objection"  # the reasons under which such events are counted


class Choice(StrEnum):
    """What a person said last about one purpose."""

    GRANTED = "granted"
    WITHDRAWN = "withdrawn"
    OBJECTED = "objected"


class ConsentRule(Protocol):
    """What the pack says: this purpose needs the ``subject`` field's person to have opted in, or to not have
    opted out."""

    @property
    def purpose(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def mode(self) -> Literal["opt-in", "opt-out"]: ...


class ConsentNames:
    """Consent names of one region; ConfigError from the key store when a key is missing."""

    def __init__(self, keys: KeyStore, region: str) -> None:
        self._names = Pseudonymiser(keys, region, "month")

    def of(self, purpose: str, subjects: list[str]) -> list[str]:
        """32 hex digits per subject."""
        return self._names.names_of(subjects, purpose, DOMAIN, EPOCH)


class ConsentBook:
    """The choices of one region's people. Not for two threads at once."""

    def __init__(self, names: ConsentNames) -> None:
        self._names = names
        self._choices: dict[tuple[str, str], Choice] = {}

    def __len__(self) -> int:
        return len(self._choices)

    def learn(self, purpose: str, name: str, choice: Choice | None) -> None:
        """The last word on (purpose, consent name); None: it is forgotten, as if never said."""
        if choice is None:
            self._choices.pop((purpose, name), None)
        else:
            self._choices[purpose, name] = choice

    def choice(self, purpose: str, name: str) -> Choice | None:
        """The last word on (purpose, consent name)."""
        return self._choices.get((purpose, name))

    def unwanted(self, rule: ConsentRule, subjects: pa.Array) -> dict[str, np.ndarray]:
        """Rows (ascending) that may not be processed, by reason.

        Opt-in: no grant stands, also where no subject is named, for then no one's grant can be shown.
        Opt-out: the subject has objected or withdrawn.
        """
        coded = subjects.dictionary_encode()
        people = coded.dictionary.to_pylist()
        choices = [self._choices.get((rule.purpose, name)) for name in self._names.of(rule.purpose, people)]
        if rule.mode == "opt-in":
            refused, nobody, reason = [choice is not Choice.GRANTED for choice in choices], True, MISSING
        else:
            refused = [choice in (Choice.WITHDRAWN, Choice.OBJECTED) for choice in choices]
            nobody, reason = False, OBJECTED
        gone = pa.array(refused, pa.bool_()).take(coded.indices).fill_null(nobody)
        rows = np.flatnonzero(np.asarray(gone))
        return {reason: rows} if len(rows) else {}
