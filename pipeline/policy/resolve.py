"""Which rule serves a field: the first there is.

1. on a border, the transfer's own rule for the field (origin's pack, ``transfers.<d>.events.<e>.fields``);
2. the destination's own rule for the field (``landing.events.<e>.fields``);
3. for each of its tags, on a border, the most specific of the transfer's rules that covers it;
4. else the most specific of the destination's rules that covers it.

When the rules of several tags differ, ``drop`` wins, and ``keep`` gives way; two other operators are a fault.
Comes in: an event type and a leg's terms. Goes out: a :class:`Flow`, and sentences about fields that no rule
serves. Tags are not judged here.

A border's event is the origin's curated one. Its raw position is the event's identity and no operator's
business: it is taken out before the rules are asked and stands again at the end of the result, after the
``origin``.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import ValidationError

from pipeline.errors import ConfigError
from pipeline.events import EventField, EventType
from pipeline.policy.flow import RAW_POSITION, Decision, Flow
from pipeline.policy.operators import Parameters
from pipeline.policy.rules import Rule
from pipeline.policy.tags import most_specific
from pipeline.policy.terms import Terms
from pipeline.policy.violations import Violation, listed


def resolve(terms: Terms, event: EventType) -> tuple[Flow, list[Violation]]:
    """Which operator each field gets, and why some get none; tags are not judged yet."""
    faults: list[Violation] = []
    found: list[Decision] = []
    inner = _without_position(terms, event) if terms.crosses else event
    for field in inner.fields:
        rule, place = None, ""
        try:
            rule, place = _rule_for(field, terms, event.name)
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
    crowd = terms.crowd(event.name)
    crowded = crowd.fields if crowd else ()
    decisions = [
        replace(decision, crowded=any(field.name in crowded for field in decision.fields))
        for decision in decisions
    ]
    return Flow(inner, terms, tuple(decisions), event), faults


def _without_position(terms: Terms, event: EventType) -> EventType:
    fields = event.schema["fields"]
    if tuple(field["name"] for field in fields[-len(RAW_POSITION) :]) != RAW_POSITION:
        raise ConfigError(
            f"{event.name} does not end with {' and '.join(RAW_POSITION)}",
            operation="policy",
            place=f"{terms.origin} to {terms.destination}",
            remedy="what crosses a border is the origin's curated event, not its raw one",
        )
    return replace(event, schema={**event.schema, "fields": fields[: -len(RAW_POSITION)]})


def _rule_for(field: EventField, terms: Terms, event: str) -> tuple[Rule, str]:
    """The rule and its place; the order is the module's."""
    for place, leg in terms.layers:
        own = leg.event(event).fields.get(field.name)
        if own is not None:
            return own, f"{place}.events.{event}.fields.{field.name}"
    if not field.tags:
        raise ConfigError("has no tag, so no rule can speak of it", remedy="tag it in the schema")
    return _strongest(dict(_tag_rule(tag, terms) for tag in sorted(field.tags)))


def _tag_rule(tag: str, terms: Terms) -> tuple[str, Rule]:
    for place, leg in terms.layers:
        general = most_specific(tag, leg.rules)
        if general is not None:
            return f"{place}.rules.{general!r}", leg.rules[general]
    raise ConfigError(
        f"no rule for tag {tag}: what no rule serves is denied", remedy="add one, if to drop it"
    )


def _strongest(rules: dict[str, Rule]) -> tuple[Rule, str]:
    """Of rules by their place the one that goes for all."""
    for place, rule in rules.items():
        if rule.operator == "drop":
            return rule, place
    working = {place: rule for place, rule in rules.items() if rule.operator != "keep"} or rules
    distinct = {(rule.operator, str(_parameters(rule))) for rule in working.values()}
    if len(distinct) > 1:
        raise ConfigError(
            f"the rules {listed(working)} ask for different operators",
            remedy="give the field a rule of its own",
        )
    place, rule = next(iter(working.items()))
    return rule, place


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
            f"{operator.name} takes fields in the roles {listed(operator.roles)}, this one has "
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
                    listed(names),
                    f"{operator.name} takes exactly one field per role {listed(operator.roles)}, with "
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
