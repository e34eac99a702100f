"""Recognisers: what finds the places in a text that lead to a person, and how one is plugged in.

Comes in: recognisers by name, and a flow. Goes out: the flow whose ``redact_text`` runs with those that its
pack asks for. Invariants: a character that any of them found is hidden; the patterns always run, for they are
what ``text.redacted`` means; a recogniser that is asked for and not there is a ConfigError before any batch;
one that says something impossible stops the batch instead of letting it pass.

The core knows none but its patterns. Others come from outside as constructor arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from pipeline.errors import ConfigError
from pipeline.policy.flow import Decision, Flow
from pipeline.policy.operators.text import RedactParameters, redacting
from pipeline.policy.redaction import PATTERNS, Span, find, replaced

_KIND = re.compile(r"[a-z][a-z0-9_]{0,40}")


class Recogniser(Protocol):
    """Finds places in a text.

    The same text must give the same spans, or a batch that is processed again would not give the same rows.
    It sees clear text: it logs nothing of it and sends it nowhere.
    """

    def find(self, text: str) -> Iterable[Span]:
        """Spans in any order, also overlapping; kinds in lower case with underscores, scores from 0 to 1."""
        ...


class Patterns:
    """The forms of :mod:`pipeline.policy.redaction`; each is certain."""

    def find(self, text: str) -> Iterable[Span]:
        """See :class:`Recogniser`."""
        return find(text)


Redact = Callable[[str], str]


def redactor(recognisers: Sequence[Recogniser], score_min: float) -> Redact:
    """What hides in a text all that these find with at least this score.

    Where spans overlap all their characters are hidden, under the kind of the earliest recogniser in the
    sequence. The returned function raises ValueError for a span that lies outside the text or whose kind is
    not a plain word: such a kind could carry the text itself.
    """

    def redact(text: str) -> str:
        ranked = [
            (rank, _sound(span, text))
            for rank, recogniser in enumerate(recognisers)
            for span in recogniser.find(text)
            if not span.score < score_min  # a score that is no number hides, too
        ]
        return replaced(text, _merged(ranked))

    return redact


def _sound(span: Span, text: str) -> Span:
    if not 0 <= span.start < span.end <= len(text) or not _KIND.fullmatch(span.kind):
        raise ValueError("a recogniser gave a span outside the text, or a kind that is no plain word")
    return span


def _merged(ranked: Iterable[tuple[int, Span]]) -> list[Span]:
    """Overlapping spans as one, disjoint and in order."""
    merged: list[tuple[int, Span]] = []
    for rank, span in sorted(ranked, key=lambda found: (found[1].start, found[0], -found[1].end)):
        last_rank, last = merged[-1] if merged else (0, None)
        if last is None or span.start >= last.end:
            merged.append((rank, span))
            continue
        kind = last.kind if last_rank <= rank else span.kind
        whole = Span(last.start, max(last.end, span.end), kind, max(last.score, span.score))
        merged[-1] = (min(last_rank, rank), whole)
    return [span for _, span in merged]


def asked_for(flow: Flow) -> frozenset[str]:
    """Names of the recognisers that a flow needs from outside."""
    return frozenset(name for decision in flow.decisions for name in _names(decision)) - {PATTERNS}


def plugged(flow: Flow, recognisers: Mapping[str, Recogniser]) -> Flow:
    """The flow with these recognisers in its ``redact_text``; the same flow where it asks for none.

    Raises ConfigError when it asks for one that is not among them.
    """
    known = {**recognisers, PATTERNS: Patterns()}
    missing = sorted(asked_for(flow) - set(known))
    if missing:
        raise ConfigError(
            f"the pack asks for the recogniser {', '.join(missing)}; there are {', '.join(sorted(known))}",
            operation="redact_text",
            place=f"{flow.region}, {flow.event.name}",
            remedy="plug it in, or take it out of the pack",
        )
    return replace(flow, decisions=tuple(_plugged(decision, known) for decision in flow.decisions))


def _plugged(decision: Decision, known: Mapping[str, Recogniser]) -> Decision:
    names = _names(decision)
    if not set(names) - {PATTERNS}:
        return decision
    parameters = decision.parameters
    assert isinstance(parameters, RedactParameters), "only it names recognisers"
    run = redacting(redactor([known[name] for name in names], parameters.score_min))
    return replace(decision, operator=replace(decision.operator, run=run))


def _names(decision: Decision) -> tuple[str, ...]:
    return decision.parameters.recognisers if isinstance(decision.parameters, RedactParameters) else ()
