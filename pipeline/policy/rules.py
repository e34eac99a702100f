"""The words of a pack: a rule, what may be held, and what one event needs beyond the rules per tag.

Comes in: plain values of a TOML file. Goes out: frozen models, their shape checked and their content not yet:
whether names exist is said by :mod:`pipeline.policy.faults`. Invariant: whatever limits a person's data names
the law or principle it comes from.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import ConfigError
from pipeline.policy.filters import Filter
from pipeline.policy.operators import OPERATORS, Operator, Parameters

Law = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
Jurisdiction = Annotated[str, Field(pattern=r"^[A-Z]{2}(-[A-Z0-9]{1,3})?$")]
Tags = Annotated[tuple[str, ...], Field(min_length=1)]
CROWD_K_MAX = 10_000
HOLD_S_MAX = 86_400.0


class Strict(BaseModel):
    """A table of a pack: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Rule(Strict):
    """An operator with its parameters, and the law or principle that asks for it."""

    operator: str
    parameters: dict[str, Any] = Field(default={}, alias="with")
    source: Law

    @property
    def known_operator(self) -> Operator:
        """Its signature; a ConfigError for a name that is not in the table."""
        try:
            return OPERATORS[self.operator]
        except KeyError:
            raise ConfigError(
                f"unknown operator {self.operator!r}; there are {', '.join(sorted(OPERATORS))}",
                operation="policy",
            ) from None

    @cached_property
    def checked_parameters(self) -> Parameters:
        """The parameters in the operator's own model; pydantic's ValidationError when they do not fit."""
        return self.known_operator.parameters.model_validate(self.parameters)


class Allowed(Strict):
    """Tags that may be held, and why."""

    tags: tuple[str, ...]
    source: Law


class Consent(Strict):
    """Rows pass by what their subject decided about a purpose of the pack.

    ``subject``: the field that names the person, as it comes in. ``opt-in``: only who said yes passes;
    ``opt-out``: who said no does not.
    """

    purpose: Name
    subject: str
    mode: Literal["opt-in", "opt-out"]
    source: Law


class Crowd(Strict):
    """Rows pass in a crowd of ``k`` different subjects who share what the fields became (k-anonymity).

    ``subject``: the field that names whom a row is about, as it comes in. ``fields``: fields of the event
    whose columns have to be shared, per ``window`` of the event's own time (UTC). ``hold_s``: how long rows
    wait for company.
    """

    k: Annotated[int, Field(ge=2, le=CROWD_K_MAX)]
    subject: str
    fields: Annotated[tuple[str, ...], Field(min_length=1)]
    window: Literal["hour", "day"]
    hold_s: Annotated[float, Field(ge=0, le=HOLD_S_MAX)] = 0.0
    source: Law


class EventRules(Strict):
    """What one event needs beyond the rules per tag; a field's own rule replaces those of its tags."""

    also_allowed: Allowed | None = None
    fields: dict[str, Rule] = {}
    filters: tuple[Filter, ...] = ()
    consent: Consent | None = None
    crowd: Crowd | None = None


class LegRules(Strict):
    """One destination. What no rule serves, and what ``allowed`` does not cover, is denied."""

    allowed: Allowed
    rules: dict[str, Rule]
    events: dict[str, EventRules] = {}

    def allowed_for(self, event: str) -> frozenset[str]:
        """Tags that this destination may hold in columns of the event."""
        extra = self.event(event).also_allowed
        return frozenset(self.allowed.tags) | frozenset(extra.tags if extra else ())

    def event(self, name: str) -> EventRules:
        """The event's own part, empty when there is none."""
        return self.events.get(name, EventRules())


class EdgeRules(Strict):
    """Minimisation where events arise, before the spool: only ``fields`` and ``filters`` of each event.

    An operator here leaves a value of the field's own type, so that the event's schema still holds.
    """

    events: dict[str, EventRules] = {}

    def event(self, name: str) -> EventRules:
        """The event's own part, empty when there is none."""
        return self.events.get(name, EventRules())
