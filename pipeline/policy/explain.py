"""What happens to a field in a region, and why; or why it is denied.

Comes in: packs, an event, a field's name, a leg. Goes out: an :class:`Explanation`, read from the same
decisions that a plan is compiled from. It needs no keys and runs on packs that may not be used yet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import ConfigError
from pipeline.events import TAGS, EventField, EventType
from pipeline.policy.borders import landed_event
from pipeline.policy.flow import Flow
from pipeline.policy.packs import Packs
from pipeline.policy.terms import Terms
from pipeline.policy.typecheck import judge_flow
from pipeline.policy.violations import Violation


@dataclass(frozen=True)
class Explanation:
    """One field on its way into one region, from an edge or over a border.

    ``tags``: tag → meaning. ``rule``: its place, under ``landing`` in the region's pack or under
    ``transfers`` in the origin's. ``column``: the result's name, None when nothing is left. ``becomes``: the
    result's tags. ``filters``: name → source of those that look at the field; ``crowd`` and ``consent``
    likewise. ``basis`` and ``valid_until`` are the transfer's. ``against``: what speaks against the field
    itself; ``others``: how many faults the event has besides, each of which stops the event as well.
    ``stays``: on a border, it does not even land in the origin, whose landing is what the rest tells of.
    """

    origin: str
    region: str
    event: str
    field: str
    doc: str
    tags: dict[str, str]
    denied: bool
    rule: str
    operator: str
    does: str
    parameters: dict[str, Any]
    effect: str
    column: str | None
    becomes: tuple[str, ...]
    source: str
    filters: dict[str, str]
    crowd: str
    consent: str
    basis: str
    valid_until: str
    against: tuple[Violation, ...]
    others: int
    stays: bool = False

    @property
    def outcome(self) -> str:
        """One sentence."""
        if self.stays:
            return f"does not cross to {self.region}: it does not even land in {self.origin}"
        crosses = self.origin != self.region
        lands = f"cross from {self.origin} to" if crosses else "land in"
        if self.denied:
            return f"denied: {self.event} may not {lands} {self.region}"
        if self.column is None:
            return f"does not {lands} {self.region}"
        lands = f"crosses from {self.origin} to" if crosses else "lands in"
        return f"{lands} {self.region} as {self.column}: {', '.join(self.becomes)}"


def explain(packs: Packs, event: EventType, name: str, origin: str, destination: str) -> Explanation:
    """The whole way of one field of the (raw) event on one leg, a landing when the ends are the same.

    On a border ``name`` may be a field of the event, then followed through the origin's landing, or a column
    that only stands in the origin's store. Raises ConfigError for a leg that is not permitted, an event that
    may not take it, and a name that is neither.
    """
    terms = packs.terms(origin, destination)
    if not terms.crosses:
        return _explained(terms, event, name)
    landed, _ = landed_event(packs, origin, event)
    before = _explained(packs.terms(origin, origin), event, name) if name in event.arrow.names else None
    column = before.column if before else name
    if column is None:
        assert before is not None
        return replace(before, origin=origin, region=destination, stays=True)
    return _explained(terms, landed, column)


def _explained(terms: Terms, event: EventType, name: str) -> Explanation:
    flow, violations = judge_flow(terms, event)
    try:
        field = flow.event.field(name)
    except KeyError:
        raise ConfigError(
            f"{event.name} has no field {name!r}; it has {', '.join(f.name for f in flow.event.fields)}",
            operation="policy explain",
            place=f"{terms.origin} to {terms.destination}",
        ) from None
    against = tuple(v for v in violations if name in v.fields)
    return _explanation(flow, field, against, len(violations) - len(against))


def _explanation(flow: Flow, field: EventField, against: tuple[Violation, ...], others: int) -> Explanation:
    decision = next((d for d in flow.decisions if field in d.fields), None)
    terms, crowd, consent = flow.terms, flow.crowd, flow.consent
    return Explanation(
        origin=terms.origin,
        region=terms.destination,
        event=flow.event.name,
        field=field.name,
        doc=field.doc,
        tags={tag: TAGS.get(tag, "") for tag in sorted(field.tags)},
        denied=bool(against or others),
        rule=decision.rule if decision else "",
        operator=decision.operator.name if decision else "",
        does=decision.operator.meaning if decision else "",
        parameters=decision.parameters.model_dump(mode="json") if decision else {},
        effect=decision.operator.effect(decision.parameters) if decision else "",
        column=decision.output if decision else None,
        becomes=tuple(sorted(decision.result)) if decision and decision.output else (),
        source=decision.source if decision else "",
        filters={f.name: f.source for f in flow.filters if any(c.field == field.name for c in f.drop_when)},
        crowd=f"{crowd.k} people in one {crowd.window}: {crowd.source}"
        if crowd and field.name in crowd.fields
        else "",
        consent=f"{consent.mode}: {consent.source}" if consent and consent.subject == field.name else "",
        basis=terms.basis,
        valid_until=str(terms.valid_until or ""),
        against=against,
        others=others,
    )
