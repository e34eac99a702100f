"""How long rows must and may be held.

Comes in: a pack's ``[retention]`` and ``[[retention.events]]``. Goes out: for each event and jurisdiction the
two bounds in days, each with the rule it comes from. The more specific rule speaks: one for the event in that
jurisdiction, else one for the event, else the pack's. Of two equally specific ones the stricter: the longer
minimum, the shorter maximum. Minimum and maximum are looked up apart, so a duty to keep (IN: DPDP Rules 8(3))
and a limit (EU: GDPR 5(1)(e)) can meet from different rules, and then they may contradict each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field, model_validator

from pipeline.policy.rules import Jurisdiction, Law, Strict

RETENTION_DAYS_MAX = 36_525
MinimumDays = Annotated[int, Field(ge=0, le=RETENTION_DAYS_MAX)]
MaximumDays = Annotated[int, Field(ge=1, le=RETENTION_DAYS_MAX)]


@dataclass(frozen=True)
class Kept:
    """The bounds for one event in one jurisdiction, in days, and the laws they come from."""

    minimum_days: int
    maximum_days: int
    minimum_source: str
    maximum_source: str


class EventRetention(Strict):
    """Bounds for one event; ``jurisdictions`` empty: in all of them. At least one bound is given."""

    event: str
    jurisdictions: tuple[Jurisdiction, ...] = ()
    minimum_days: MinimumDays | None = None
    maximum_days: MaximumDays | None = None
    source: Law

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.minimum_days is None and self.maximum_days is None:
            raise ValueError("say minimum_days or maximum_days")
        return self


class Retention(Strict):
    """The pack's bounds, and what single events need."""

    minimum_days: MinimumDays
    maximum_days: MaximumDays
    source: Law
    events: tuple[EventRetention, ...] = ()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.minimum_days > self.maximum_days:
            raise ValueError(
                f"rows must be kept {self.minimum_days} days and may be kept {self.maximum_days}: "
                "no row can satisfy both; lower minimum_days or raise maximum_days"
            )
        return self

    def kept(self, event: str, jurisdiction: str) -> Kept:
        """The bounds for rows of the event that were collected in the jurisdiction."""
        layers = [
            [rule for rule in self.events if rule.event == event and jurisdiction in rule.jurisdictions],
            [rule for rule in self.events if rule.event == event and not rule.jurisdictions],
        ]
        minimum, minimum_source = self.minimum_days, self.source
        maximum, maximum_source = self.maximum_days, self.source
        for layer in reversed(layers):
            longest = [(r.minimum_days, r.source) for r in layer if r.minimum_days is not None]
            shortest = [(r.maximum_days, r.source) for r in layer if r.maximum_days is not None]
            minimum, minimum_source = max(longest, default=(minimum, minimum_source))
            maximum, maximum_source = min(shortest, default=(maximum, maximum_source))
        return Kept(minimum, maximum, minimum_source, maximum_source)

    def maximum_days_of(self, event: str, jurisdictions: Iterable[str]) -> int:
        """The shortest maximum over the jurisdictions; the pack's when there are none."""
        kept = (self.kept(event, jurisdiction).maximum_days for jurisdiction in jurisdictions)
        return min(kept, default=self.maximum_days)
