"""Who may send: a token or a certificate becomes what its device class may emit.

Comes in: the configured classes, and what a peer shows. Goes out: a Permission, or a RecordError with reason
``sender`` whose field says what was refused (``credentials``, ``event``, ``source``, ``jurisdiction``) and
never a value. Invariant: without a class that matches nothing is permitted; only an agent for which no class
is configured takes what anybody on its machine sends. Tokens are random 256 bits, so their SHA-256 is as good
as a slow hash (NIST SP 800-63B, 5.1.1.2 asks for salt and cost only for secrets that people choose).
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import NoReturn

from pipeline.errors import RecordError
from pipeline.listen_config import CERTIFICATE, SenderClass

SENDER = "sender"  # the reason
CREDENTIALS = "credentials"
_BEARER = "bearer "


@dataclass(frozen=True, slots=True)
class Peer:
    """What a connection shows: its bearer token, and the names on its verified certificate."""

    token: str | None = None
    certificate: tuple[str, ...] = ()

    @classmethod
    def of(cls, authorization: str | None, certificate: Iterable[str] = ()) -> Peer:
        """From an ``Authorization`` header (RFC 6750) and the certificate's names."""
        token = None
        if authorization is not None and authorization[: len(_BEARER)].lower() == _BEARER:
            token = authorization[len(_BEARER) :].strip()
        return cls(token or None, tuple(certificate))


class Permission:
    """What one peer may emit."""

    def __init__(self, allowed: Mapping[str, re.Pattern[str]], refuse: Callable[[str], NoReturn]) -> None:
        self._allowed = allowed  # a kind that is missing is not restricted
        self._refuse = refuse

    def demand(self, event: str, sources: Iterable[str], jurisdictions: Iterable[object]) -> None:
        """Return when all of it is permitted; RecordError with reason ``sender`` otherwise."""
        self._check("event", (event,))
        self._check("source", sources)
        self._check("jurisdiction", jurisdictions)

    def _check(self, kind: str, values: Iterable[object]) -> None:
        pattern = self._allowed.get(kind)
        if pattern is None:
            return
        for value in set(values):
            if not isinstance(value, str) or not pattern.match(value):
                self._refuse(kind)


class Senders:
    """The configured classes. Safe in several threads. ``refused``: called with what each refusal names."""

    def __init__(
        self, classes: Mapping[str, SenderClass] | None = None,
        refused: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._classes = [_Class(one) for one in (classes or {}).values()]
        self._refused = refused

    @property
    def open(self) -> bool:
        """Whether anybody who reaches the door may send anything."""
        return not self._classes

    def permission(self, peer: Peer) -> Permission:
        """What the peer may emit. RecordError (``sender``, ``credentials``) when it is nobody we know."""
        if self.open:
            return Permission({}, self._refuse)
        # The digest of nothing is no token's: a peer without one takes the same way.
        digest = hashlib.sha256((peer.token or "").encode("utf-8", "surrogateescape")).hexdigest()
        for one in self._classes:
            allowed = one.allowed(digest if peer.token else "", peer.certificate)
            if allowed is not None:
                return Permission(allowed, self._refuse)
        self._refuse(CREDENTIALS)

    def _refuse(self, field: str) -> NoReturn:
        self._refused(field)
        if field == CREDENTIALS:
            problem, remedy = "no class of senders has these credentials", "send the token or certificate"
        else:
            problem, remedy = "this sender may not emit it", "see [edge.senders] of the agent"
        raise RecordError(problem, reason=SENDER, field=field, remedy=remedy)


class _Class:
    """One class, its patterns compiled."""

    def __init__(self, given: SenderClass) -> None:
        self._tokens = given.token_sha256
        self._names = _pattern(given.certificates) if given.certificates else None
        self._sources = given.sources
        self._allowed = {"event": _pattern(given.events), "source": _pattern(given.sources)}
        if given.jurisdictions:
            self._allowed["jurisdiction"] = _pattern(given.jurisdictions)
        self._is_personal = any(CERTIFICATE in source for source in given.sources)

    def allowed(self, digest: str, names: Sequence[str]) -> Mapping[str, re.Pattern[str]] | None:
        """The patterns of what it may emit, None when the peer is not of this class."""
        if self._tokens:
            # All are compared, so that the time taken does not say which one was near.
            known = [secrets.compare_digest(digest, token) for token in self._tokens]
            if not any(known):
                return None
        if self._names is None:
            return self._allowed
        matching = [name for name in names if self._names.match(name)]
        if not matching:
            return None
        if not self._is_personal:
            return self._allowed
        return {**self._allowed, "source": _pattern(self._sources, matching)}


def _pattern(globs: Sequence[str], names: Collection[str] = ()) -> re.Pattern[str]:
    """One expression that matches what any of the patterns matches; none: nothing."""
    parts = []
    for glob in globs:
        for name in names if CERTIFICATE in glob else ("",):
            before, *after = (translate(piece) for piece in glob.split(CERTIFICATE))
            parts.append("".join([_inner(before), *(re.escape(name) + _inner(piece) for piece in after)]))
    return re.compile(f"(?:{'|'.join(parts)})\\Z" if parts else r"(?!)", re.DOTALL)


def _inner(translated: str) -> str:
    """What ``fnmatch.translate`` made, without its anchor: ``(?s:...)\\Z``."""
    return translated[: translated.rindex(")") + 1]


def new_token() -> tuple[str, str]:
    """A new token of 256 random bits and the hash that a configuration holds."""
    token = secrets.token_urlsafe(32)
    return token, hashlib.sha256(token.encode()).hexdigest()
