"""Transfers: what a region lets out to another one, on which basis and until when; and what it never may.

Comes in: ``[transfers.<destination>]`` and ``[[transfers_denied]]`` of the *origin's* pack. Invariant: a
transfer names its basis, its purposes and its law (GDPR 44 to 49); without one nothing crosses. There is no
onward transfer: only what a region landed itself crosses, never what it received.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Self

from pydantic import Field, model_validator

from pipeline.config import REGION_NAME
from pipeline.policy.rules import Allowed, EventRules, Jurisdiction, Law, LegRules, Name, Rule, Strict, Tags

Region = Annotated[str, Field(pattern=REGION_NAME)]
DAY_US = 86_400_000_000


class Transfer(Strict):
    """One destination of an origin.

    ``basis``: adequacy decision, clauses or other ground. ``purposes``: those of the pack for which the data
    cross. ``valid_until``: the last day on which the basis holds (UTC). ``only_events``: those that may
    cross; empty: every event. ``allowed``: tags that may leave. ``rules`` and ``events`` go before the
    destination's own; their operators run with the destination's keys and tables.
    """

    basis: Law
    source: Law
    purposes: Annotated[tuple[Name, ...], Field(min_length=1)]
    valid_until: date | None = None
    only_events: tuple[str, ...] = ()
    allowed: Allowed
    rules: dict[str, Rule] = Field(default={})
    events: dict[str, EventRules] = Field(default={})

    @property
    def leg(self) -> LegRules:
        """Its rules, as those of a destination."""
        return LegRules(allowed=self.allowed, rules=self.rules, events=self.events)

    def permits(self, event: str) -> bool:
        """Whether the event may cross at all."""
        return not self.only_events or event in self.only_events

    @property
    def valid_until_us(self) -> int | None:
        """First microsecond (since 1970 UTC) on which the basis holds no more; None: it has no end."""
        if self.valid_until is None:
            return None
        end = datetime(self.valid_until.year, self.valid_until.month, self.valid_until.day, tzinfo=UTC)
        return int((end + timedelta(days=1)).timestamp()) * 1_000_000


class TransferDenied(Strict):
    """Tags that may never leave this pack's region towards these places, whatever a transfer says.

    ``destinations``: names of regions. ``jurisdictions``: where a destination collects or stands; ``CN``
    means its parts too. A tag means all below it too: ``location`` denies ``location.coarse``.
    """

    destinations: tuple[Region, ...] = ()
    jurisdictions: tuple[Jurisdiction, ...] = ()
    tags: Tags
    source: Law

    @model_validator(mode="after")
    def _says_where(self) -> Self:
        if not self.destinations and not self.jurisdictions:
            raise ValueError("say destinations or jurisdictions: a denial without a place denies nothing")
        return self
