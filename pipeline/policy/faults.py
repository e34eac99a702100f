"""What is wrong with the content of a pack: names that do not exist, rules that do not do what they should.

Comes in: a :class:`~pipeline.policy.pack.Pack` whose shape is right, and the events. Goes out: sentences.
Invariant: a pack without faults names only tags, operators, parameters, purposes, events and fields that
exist. What two packs say together is judged by :mod:`pipeline.policy.load`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from pydantic import ValidationError

from pipeline.errors import ConfigError
from pipeline.events import TAGS, EventType
from pipeline.policy.filters import filter_faults
from pipeline.policy.operators import CategoryParameters, KeyedParameters
from pipeline.policy.pack import Pack, sentences
from pipeline.policy.rules import EventRules, LegRules, Rule
from pipeline.policy.tags import covers, known, uncovered
from pipeline.policy.violations import Violation


def pack_faults(pack: Pack, events: Mapping[str, EventType]) -> Iterator[Violation]:
    """What is wrong with the content: names that do not exist, rules that do not do what their place asks."""
    leg, place = pack.landing, "landing"
    yield from _tag_faults(leg.allowed.tags, f"{place}.allowed")
    for tag, rule in leg.rules.items():
        where = f"{place}.rules.{tag!r}"
        yield from _tag_faults((tag,), where)
        faults = list(_rule_faults(rule, pack, where)) or _discharge_faults(tag, rule, leg, where)
        yield from (replace(fault, tags=(tag,)) for fault in faults)
    for name, part in leg.events.items():
        where = f"{place}.events.{name}"
        if name not in events:
            yield Violation(where, f"no such event; there are {', '.join(sorted(events))}", event=name)
            continue
        faults = _event_faults(pack, part, events[name], where)
        yield from (replace(fault, event=name) for fault in faults)


def _event_faults(pack: Pack, part: EventRules, event: EventType, where: str) -> Iterator[Violation]:
    if part.also_allowed:
        yield from _tag_faults(part.also_allowed.tags, f"{where}.also_allowed")
    names = [field.name for field in event.fields]
    for field, rule in part.fields.items():
        place = f"{where}.fields.{field}"
        if field not in names:
            yield Violation(place, f"no such field; the event has {', '.join(names)}", fields=(field,))
        yield from (replace(fault, fields=(field,)) for fault in _rule_faults(rule, pack, place))
    rule_names = [rule.name for rule in part.filters]
    for twice in sorted({name for name in rule_names if rule_names.count(name) > 1}):
        yield Violation(f"{where}.filters", f"two are named {twice}; their counts would be one", "rename one")
    for wanted in part.filters:
        for fault in filter_faults(wanted, event):
            yield Violation(
                where, fault, rule=f"{where.removeprefix('landing.')}.filters", source=wanted.source
            )


def _tag_faults(tags: tuple[str, ...], where: str) -> Iterator[Violation]:
    for tag in tags:
        if not known(tag, TAGS):
            yield Violation(where, f"unknown tag {tag!r}; the vocabulary has {', '.join(TAGS)}", tags=(tag,))


def _rule_faults(rule: Rule, pack: Pack, where: str) -> Iterator[Violation]:
    def fault(problem: str, remedy: str = "") -> Violation:
        return Violation(where, problem, remedy, rule=where.removeprefix("landing."), source=rule.source)

    try:
        parameters = rule.checked_parameters
    except ConfigError as error:
        yield fault(error.problem)
        return
    except ValidationError as error:
        yield from (fault(f"{rule.operator} with {name}: {text}") for name, text in sentences(error))
        return
    if isinstance(parameters, KeyedParameters) and parameters.purpose not in pack.purposes:
        yield fault(
            f"purpose {parameters.purpose!r} is not one of the pack's: {', '.join(pack.purposes)}",
            "declare it with its legal basis",
        )
    if isinstance(parameters, CategoryParameters) and parameters.hierarchy not in pack.hierarchies:
        yield fault(
            f"hierarchy {parameters.hierarchy!r} is not one of the pack's: "
            f"{', '.join(pack.hierarchies) or 'it has none'}",
            "declare its table",
        )


def _discharge_faults(tag: str, rule: Rule, leg: LegRules, where: str) -> Iterator[Violation]:
    operator = rule.known_operator
    if not any(covers(taken, tag) for taken in operator.takes):
        yield Violation(
            where,
            f"{operator.name} does not discharge {tag}: it takes {', '.join(sorted(operator.takes))}",
            "choose an operator that does, or drop",
            rule=where.removeprefix("landing."),
            source=rule.source,
        )
        return
    everywhere = frozenset(leg.allowed.tags).union(
        *(part.also_allowed.tags for part in leg.events.values() if part.also_allowed)
    )
    left = uncovered(operator.gives(rule.checked_parameters, frozenset({tag})), everywhere)
    if left:
        yield Violation(
            where,
            f"{operator.name} leaves {', '.join(left)}, which this destination may not hold",
            "use a stronger operator, or drop",
            rule=where.removeprefix("landing."),
            source=rule.source,
        )
