"""The type check: may this event flow to this destination, and what happens to each of its fields?

Comes in: an event type and a leg's rules. Goes out: a :class:`Flow` (one decision per column, in the order of
the schema) or sentences that say which field, which tag, which rule. It knows nothing of batches or keys, so
it runs wherever a pack is read. Invariant: a flow without faults leaves no tag that the destination may not
hold.

Which rule serves a field: its own, if the pack has one; else, for each of its tags, the most specific rule
that covers it. When these differ, ``drop`` wins, and ``keep`` gives way; two other operators are a fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pydantic import ValidationError

from pipeline.errors import ConfigError
from pipeline.events import EventField, EventType
from pipeline.policy.operators import KeyedParameters, Operator, Parameters
from pipeline.policy.pack import Pack
from pipeline.policy.rules import LegRules, Rule
from pipeline.policy.tags import covered, most_specific, uncovered
from pipeline.policy.violations import Violation

RAW_POSITION = ("raw_partition", "raw_offset")
EVENT_TIME = "event_time"


@dataclass(frozen=True)
class Decision:
    """What happens to one field, or to the fields that an operator takes together.

    ``output`` is the result's column, None when nothing is left; ``rule`` is the rule's place in the pack.
    """

    fields: tuple[EventField, ...]
    operator: Operator
    parameters: Parameters
    rule: str
    source: str
    output: str | None

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
        """Tags after."""
        return (self.tags - self.taken) | self.operator.gives(self.parameters, self.taken)

    @property
    def nullable(self) -> bool:
        """Whether the result can be null."""
        if self.operator.nulls == "as the input":
            return any(field.nullable for field in self.fields)
        return self.operator.nulls == "possible"


@dataclass(frozen=True)
class Flow:
    """One event on one leg, decided. ``allowed``: tags that its columns may have at the destination."""

    event: EventType
    region: str
    decisions: tuple[Decision, ...]
    allowed: frozenset[str]

    @property
    def columns(self) -> tuple[Decision, ...]:
        """The decisions that leave a column."""
        return tuple(decision for decision in self.decisions if decision.output is not None)


def check_flow(pack: Pack, event: EventType, origin: str, destination: str) -> Flow:
    """The checked flow; ConfigError with every fault when the tags do not fit."""
    flow, violations = judge_flow(pack, event, origin, destination)
    if violations:
        raise ConfigError(
            "; ".join(map(str, violations)),
            operation="policy check",
            place=f"{origin} to {destination}, {event.name}",
        )
    return flow


def judge_flow(
    pack: Pack, event: EventType, origin: str, destination: str
) -> tuple[Flow, tuple[Violation, ...]]:
    """The flow as far as it can be decided, and everything that speaks against it.

    Raises ConfigError when the pack has no such leg.
    """
    flow, faults = resolve(pack.leg(origin, destination), event, destination)
    return flow, (*faults, *flow_faults(flow))


def resolve(leg: LegRules, event: EventType, region: str) -> tuple[Flow, list[Violation]]:
    """Which operator each field gets, and why some get none; tags are not judged yet."""
    faults: list[Violation] = []
    found: list[Decision] = []
    for field in event.fields:
        rule, place = None, ""
        try:
            rule, place = _rule_for(field, leg, event.name)
            found.append(_decide(field, rule, place))
        except ConfigError as error:
            faults.append(
                Violation(
                    field.name,
                    error.problem,
                    error.remedy,
                    fields=(field.name,),
                    tags=tuple(sorted(field.tags)),
                    rule=place,
                    source=rule.source if rule else "",
                )
            )
    decisions = _join_roles(found, faults)
    flow = Flow(event, region, tuple(decisions), leg.allowed_for(event.name))
    return flow, [replace(fault, destination=region, event=event.name) for fault in faults]


def flow_faults(flow: Flow) -> Iterator[Violation]:
    """What the types say against a flow: column types, tags that are left, names that clash."""
    for decision in flow.decisions:
        for fault in _decision_faults(decision, flow):
            yield replace(
                fault,
                destination=flow.region,
                event=flow.event.name,
                fields=tuple(field.name for field in decision.fields),
                tags=fault.tags or tuple(sorted(decision.tags)),
                rule=decision.rule,
                source=decision.source,
            )
    for fault in (*_column_faults(flow), *_epoch_faults(flow)):
        yield replace(fault, destination=flow.region, event=flow.event.name)


def _decision_faults(decision: Decision, flow: Flow) -> Iterator[Violation]:
    names = " and ".join(field.name for field in decision.fields)
    operator = decision.operator
    for field in decision.fields:
        column = flow.event.arrow.field(field.name).type
        if not operator.accepts(column, decision.parameters):
            yield Violation(
                field.name,
                f"{operator.name} works on {operator.expects}, the field is {column}",
                "choose another operator, or drop the field",
            )
    if not decision.taken and decision.output:
        yield Violation(
            names,
            f"{operator.name} takes none of its tags {_list(decision.tags)} (rule {decision.rule})",
            f"it takes {_list(operator.takes)}: choose another operator, or drop the field",
        )
    left = uncovered(decision.result, flow.allowed) if decision.output else ()
    if left:
        yield Violation(
            names,
            f"{operator.name} (rule {decision.rule}) leaves {_list(left)}, and {flow.region} may hold "
            f"only {_list(flow.allowed)}",
            "use a stronger operator, or drop the field",
            tags=left,
        )


def _column_faults(flow: Flow) -> Iterator[Violation]:
    outputs = [decision.output for decision in flow.columns] + list(RAW_POSITION)
    for twice in sorted({str(name) for name in outputs if outputs.count(name) > 1}):
        yield Violation(twice, "two columns of that name would leave", "rename or drop one", fields=(twice,))
    if left := uncovered({"transport"}, flow.allowed):
        yield Violation(
            " and ".join(RAW_POSITION),
            f"{flow.region} must be allowed to hold {_list(left)}",
            f"add {_list(left)} to landing.allowed",
            fields=RAW_POSITION,
            tags=left,
        )


def _epoch_faults(flow: Flow) -> Iterator[Violation]:
    keyed = sorted({d.operator.name for d in flow.decisions if isinstance(d.parameters, KeyedParameters)})
    if keyed:
        fields = {field.name: field for field in flow.event.fields}
        time = fields.get(EVENT_TIME)
        if time is None or time.kind != "timestamp-micros" or time.nullable:
            yield Violation(
                EVENT_TIME,
                f"{_list(keyed)} needs it in timestamp-micros, never null: it decides the epoch",
                "give the event the envelope's field",
                fields=(EVENT_TIME,),
            )


def _rule_for(field: EventField, leg: LegRules, event: str) -> tuple[Rule, str]:
    own = leg.event(event).fields.get(field.name)
    if own is not None:
        return own, f"events.{event}.fields.{field.name}"
    if not field.tags:
        raise ConfigError("has no tag, so no rule can speak of it", remedy="tag it in the schema")
    served: dict[str, str] = {}
    for tag in sorted(field.tags):
        general = most_specific(tag, leg.rules)
        if general is None:
            raise ConfigError(
                f"no rule for tag {tag}: what no rule serves is denied", remedy="add one, if to drop it"
            )
        served[tag] = general
    return _strongest({general: leg.rules[general] for general in served.values()})


def _strongest(rules: dict[str, Rule]) -> tuple[Rule, str]:
    for general, rule in rules.items():
        if rule.operator == "drop":
            return rule, f"rules.{general!r}"
    working = {general: rule for general, rule in rules.items() if rule.operator != "keep"} or rules
    distinct = {(rule.operator, str(_parameters(rule))) for rule in working.values()}
    if len(distinct) > 1:
        raise ConfigError(
            f"the rules for {_list(working)} ask for different operators",
            remedy="give the field a rule of its own",
        )
    general, rule = next(iter(working.items()))
    return rule, f"rules.{general!r}"


def _parameters(rule: Rule) -> Parameters:
    try:
        return rule.checked_parameters
    except ValidationError:  # the pack's own faults say which and why
        raise ConfigError(f"the parameters of {rule.operator} do not fit", remedy="mend the rule") from None


def _decide(field: EventField, rule: Rule, place: str) -> Decision:
    operator = rule.known_operator
    output = None if operator.run is None else operator.output or field.name
    if operator.roles and field.role not in operator.roles:
        raise ConfigError(
            f"{operator.name} takes fields in the roles {_list(operator.roles)}, this one has "
            f"{field.role or 'none'} (rule {place})",
            remedy="give it a role in the schema or drop it in the pack",
        )
    return Decision((field,), operator, _parameters(rule), place, rule.source, output)


def _join_roles(decisions: list[Decision], faults: list[Violation]) -> list[Decision]:
    """Decisions of one operator that takes several fields together become one, at the place of the first."""
    joined: list[Decision] = []
    done: set[str] = set()
    for decision in decisions:
        operator = decision.operator
        if not operator.roles:
            joined.append(decision)
            continue
        if operator.name in done:
            continue
        done.add(operator.name)
        parts = [other for other in decisions if other.operator is operator]
        by_role = {part.fields[0].role: part.fields[0] for part in parts}
        same = all(part.parameters == decision.parameters for part in parts)
        if len(parts) != len(operator.roles) or set(by_role) != set(operator.roles) or not same:
            names = tuple(part.fields[0].name for part in parts)
            faults.append(
                Violation(
                    _list(names),
                    f"{operator.name} takes exactly one field per role {_list(operator.roles)}, with "
                    "the same parameters",
                    "drop the rest in the pack",
                    fields=names,
                    tags=tuple(sorted(decision.tags)),
                    rule=decision.rule,
                    source=decision.source,
                )
            )
            continue
        fields = tuple(by_role[role] for role in operator.roles)
        joined.append(
            Decision(fields, operator, decision.parameters, decision.rule, decision.source, decision.output)
        )
    return joined


def _list(names: object) -> str:
    return ", ".join(sorted(map(str, names))) if names else "nothing"  # type: ignore[call-overload]
