"""Tags: what a value *is*, and how one tag covers another.

Comes in: tag names as the schemas spell them. Goes out: answers to "does this rule's tag cover that
field's tag". A dot goes down in the hierarchy: ``identifier`` covers ``identifier.direct``, never the
other way round and never a name that only starts alike. The vocabulary itself belongs to the schemas.
"""

from __future__ import annotations

from collections.abc import Iterable

EVERY = "*"  # in an operator's signature: discharges any tag


def covers(general: str, tag: str) -> bool:
    """True when ``general`` is ``tag`` or an ancestor of it."""
    return general in (EVERY, tag) or tag.startswith(general + ".")


def covered(tag: str, generals: Iterable[str]) -> bool:
    """True when one of ``generals`` covers ``tag``."""
    return any(covers(general, tag) for general in generals)


def uncovered(tags: Iterable[str], generals: Iterable[str]) -> tuple[str, ...]:
    """The tags that none of ``generals`` covers, sorted."""
    generals = tuple(generals)
    return tuple(sorted(tag for tag in tags if not covered(tag, generals)))


def most_specific(tag: str, generals: Iterable[str]) -> str | None:
    """The longest of ``generals`` that covers ``tag``; None when none does."""
    return max((general for general in generals if covers(general, tag)), key=len, default=None)


def common(one: Iterable[str], other: Iterable[str]) -> frozenset[str]:
    """What both allow: of two tags where one covers the other, the narrower."""
    one, other = tuple(one), tuple(other)
    return frozenset(t for t in one if covered(t, other)) | frozenset(t for t in other if covered(t, one))


def known(tag: str, vocabulary: Iterable[str]) -> bool:
    """True when ``tag`` is in the vocabulary or the parent of something in it."""
    return any(covers(tag, word) for word in vocabulary)
