"""What happens to a field in a region, and why; or why it is denied.

Comes in: a pack, an event, a field's name. Goes out: an :class:`Explanation`, read from the same decisions
that a plan is compiled from. It needs no keys and runs on packs that may not be used yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError
from pipeline.events import TAGS, EventField, EventType
from pipeline.policy.load import Survey
from pipeline.policy.pack import Pack
from pipeline.policy.typecheck import Decision, Flow, judge_flow
from pipeline.policy.violations import Violation


@dataclass(frozen=True)
class Explanation:
    """One field on its way into one region.

    ``tags``: tag → meaning. ``rule``: its place in the pack's landing. ``column``: the result's name, None
    when nothing is left. ``becomes``: the result's tags. ``filters``: name → source of those that look at
    the field. ``against``: what speaks against the field itself; ``others``: how many faults the event has
    besides, each of which stops the event as well.
    """

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
    against: tuple[Violation, ...]
    others: int

    @property
    def outcome(self) -> str:
        """One sentence."""
        if self.denied:
            return f"denied: {self.event} may not land in {self.region}"
        if self.column is None:
            return f"does not land in {self.region}"
        return f"lands in {self.region} as {self.column}: {', '.join(self.becomes)}"


def judge_all(survey: Survey, events: Mapping[str, EventType]) -> tuple[list[Flow], list[Violation]]:
    """Every event into every region that has a readable pack: what is decided, and all that is wrong."""
    flows: list[Flow] = []
    violations = list(survey.violations)
    for region in survey.packs.regions:
        for _, event in sorted(events.items()):
            flow, found = judge_flow(survey.packs.pack(region), event, region, region)
            flows.append(flow)
            violations += found
    return flows, violations


def explain(pack: Pack, event: EventType, name: str) -> Explanation:
    """The whole way of one field into the pack's own region; ConfigError for a field the event has not."""
    try:
        field = event.field(name)
    except KeyError:
        raise ConfigError(
            f"{event.name} has no field {name!r}; it has {', '.join(f.name for f in event.fields)}",
            operation="policy explain",
        ) from None
    flow, violations = judge_flow(pack, event, pack.region, pack.region)
    against = tuple(v for v in violations if name in v.fields)
    decision = next((d for d in flow.decisions if field in d.fields), None)
    return _explanation(pack, event, field, decision, (against, len(violations) - len(against)))


def _explanation(
    pack: Pack,
    event: EventType,
    field: EventField,
    decision: Decision | None,
    faults: tuple[tuple[Violation, ...], int],
) -> Explanation:
    against, others = faults
    filters = pack.leg(pack.region, pack.region).event(event.name).filters
    return Explanation(
        region=pack.region,
        event=event.name,
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
        filters={f.name: f.source for f in filters if any(c.field == field.name for c in f.drop_when)},
        against=against,
        others=others,
    )
