"""A decided flow: what becomes of each field of one event on one leg, and which rows leave at all.

Values only: who decides is :mod:`pipeline.policy.resolve`, who judges :mod:`pipeline.policy.typecheck`, who
runs it :mod:`pipeline.policy.plan`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.events import EventField, EventType
from pipeline.policy.filters import Filter
from pipeline.policy.operators import Operator, Parameters
from pipeline.policy.rules import Consent, Crowd
from pipeline.policy.tags import covered
from pipeline.policy.terms import Terms

RAW_POSITION = ("raw_partition", "raw_offset")
ORIGIN = "origin"
EVENT_TIME = "event_time"
IN_A_CROWD = "quasi.crowd"


@dataclass(frozen=True)
class Decision:
    """What happens to one field, or to the fields that an operator takes together.

    ``output`` is the result's column, None when nothing is left. ``rule`` is the rule's place: under
    ``landing`` in the destination's pack, under ``transfers`` in the origin's. ``crowded``: rows leave only
    in a crowd that shares this column.
    """

    fields: tuple[EventField, ...]
    operator: Operator
    parameters: Parameters
    rule: str
    source: str
    output: str | None
    crowded: bool = False

    @property
    def tags(self) -> frozenset[str]:
        """Tags before."""
        return frozenset().union(*(field.tags for field in self.fields))

    @property
    def taken(self) -> frozenset[str]:
        """Tags that the operator discharges."""
        return frozenset(tag for tag in self.tags if covered(tag, self.operator.takes))

    @property
    def result(self) -> frozenset[str]:
        """Tags after. What a crowd shares identifies no one in it by itself, whatever quasi it was."""
        left = (self.tags - self.taken) | self.operator.gives(self.parameters, self.taken)
        if not self.crowded or not left:
            return left
        return frozenset(IN_A_CROWD if covered(tag, ("quasi",)) else tag for tag in left)

    @property
    def nullable(self) -> bool:
        """Whether the result can be null."""
        if self.operator.nulls == "as the input":
            return any(field.nullable for field in self.fields)
        return self.operator.nulls == "possible"


@dataclass(frozen=True)
class Flow:
    """One event on one leg, decided.

    ``event``: what the operators see; on a border without the raw position, which ``input`` still has.
    ``allowed``: tags that its columns may have at the destination. ``filters``, ``consent`` and ``crowd``
    (None: none is asked for) say which rows leave at all.
    """

    event: EventType
    terms: Terms
    decisions: tuple[Decision, ...]
    input: EventType

    @property
    def region(self) -> str:
        """The destination."""
        return self.terms.destination

    @property
    def allowed(self) -> frozenset[str]:
        """See :meth:`Terms.allowed_for`."""
        return self.terms.allowed_for(self.event.name)

    @property
    def filters(self) -> tuple[Filter, ...]:
        """See :meth:`Terms.filters`."""
        return self.terms.filters(self.event.name)

    @property
    def consent(self) -> Consent | None:
        """See :meth:`Terms.consent`."""
        return self.terms.consent(self.event.name)

    @property
    def crowd(self) -> Crowd | None:
        """See :meth:`Terms.crowd`."""
        return self.terms.crowd(self.event.name)

    @property
    def crowd_columns(self) -> tuple[str, ...]:
        """Columns of the result that a crowd has to share; empty without a crowd."""
        return tuple(str(decision.output) for decision in self.columns if decision.crowded)

    @property
    def columns(self) -> tuple[Decision, ...]:
        """The decisions that leave a column."""
        return tuple(decision for decision in self.decisions if decision.output is not None)

    @property
    def appended(self) -> tuple[str, ...]:
        """Columns after those: on a border the origin, then the raw position."""
        return (ORIGIN, *RAW_POSITION) if self.terms.crosses else RAW_POSITION
