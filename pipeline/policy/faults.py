"""What is wrong with the content of a pack: names that do not exist, rules that do not do what they should.

Comes in: a :class:`~pipeline.policy.pack.Pack` whose shape is right, and the events. Goes out: sentences.
Invariant: a pack without faults names only tags, operators, parameters, purposes, events and fields that
exist. What two packs say together is judged by :mod:`pipeline.policy.borders`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from pydantic import ValidationError

from pipeline.errors import ConfigError
from pipeline.events import TAGS, EventType
from pipeline.policy.filters import filter_faults
from pipeline.policy.operators import CategoryParameters, KeyedParameters
from pipeline.policy.pack import Pack, sentences
from pipeline.policy.rules import Crowd, EventRules, LegRules, Rule
from pipeline.policy.tags import covered, covers, known, uncovered
from pipeline.policy.violations import Violation, listed


def pack_faults(pack: Pack, events: Mapping[str, EventType]) -> Iterator[Violation]:
    """What one pack says about itself that cannot be."""
    leg, place = pack.landing, "landing"
    yield from tag_faults(leg.allowed.tags, f"{place}.allowed")
    yield from tag_rule_faults(leg, place, pack, ever_allowed(leg.allowed_for, (leg,)))
    for name, part in leg.events.items():
        where = f"{place}.events.{name}"
        if name not in events:
            yield Violation(where, f"no such event; there are {listed(events)}", event=name)
            continue
        # A region that only receives sees other columns than the event's: its flows are asked instead.
        faults = [*field_rule_faults(part, where, pack), *_purpose_faults(part, where, pack)]
        if pack.collects:
            faults += part_faults(part, events[name], where)
        elif part.consent:
            problem = (
                "the region collects nothing, and who comes over a border is a pseudonym: no choice is found"
            )
            faults.append(
                Violation(f"{where}.consent", problem, "ask in the landing of the region that collects")
            )
        yield from (replace(fault, event=name) for fault in faults)
    yield from _retention_faults(pack, events)
    yield from _own_transfer_faults(pack, events)
    for name, part in pack.edge.events.items():  # what the edge asks besides: pipeline.policy.edge_check
        where = f"edge.events.{name}"
        if name not in events:
            yield Violation(where, f"no such event; there are {listed(events)}", event=name)
        yield from (replace(f, event=name) for f in field_rule_faults(part, where, pack))


def ever_allowed(allowed_for: Callable[[str], frozenset[str]], legs: Iterable[LegRules]) -> frozenset[str]:
    """Tags that some event may leave a rule with; ``quasi`` among them where a crowd may then hide it."""
    parts = {name: part for leg in legs for name, part in leg.events.items()}
    tags = allowed_for("").union(*map(allowed_for, parts))
    hidden = any(leg.event(name).crowd for leg in legs for name in leg.events) and covered(
        "quasi.crowd", tags
    )
    return tags | ({"quasi"} if hidden else frozenset())


def tag_rule_faults(leg: LegRules, place: str, pack: Pack, everywhere: frozenset[str]) -> Iterator[Violation]:
    """Rules per tag: each has to serve its tag and leave what may be held.

    ``pack``: whose purposes and tables they use. ``everywhere``: see :func:`ever_allowed`.
    """
    for tag, rule in leg.rules.items():
        where = f"{place}.rules.{tag!r}"
        yield from tag_faults((tag,), where)
        faults = list(rule_faults(rule, pack, where)) or _discharge_faults(tag, rule, everywhere, where)
        yield from (replace(fault, tags=(tag,)) for fault in faults)


def field_rule_faults(part: EventRules, where: str, pack: Pack) -> Iterator[Violation]:
    """Rules of single fields, and the tags an event may have besides; not whether the fields exist."""
    if part.also_allowed:
        yield from tag_faults(part.also_allowed.tags, f"{where}.also_allowed")
    for field, rule in part.fields.items():
        found = rule_faults(rule, pack, f"{where}.fields.{field}")
        yield from (replace(fault, fields=(field,)) for fault in found)


def field_name_faults(part: EventRules, names: frozenset[str], where: str) -> Iterator[Violation]:
    """Rules of fields that are not there."""
    for field in part.fields:
        if field not in names:
            place = f"{where}.fields.{field}"
            yield Violation(place, f"no such field; the event has {listed(names)}", fields=(field,))


def part_faults(part: EventRules, event: EventType, where: str) -> Iterator[Violation]:
    """What decides about whole rows, against the event as it comes in: filters, consent, crowd."""
    rule_names = [rule.name for rule in part.filters]
    for twice in sorted({name for name in rule_names if rule_names.count(name) > 1}):
        yield Violation(f"{where}.filters", f"two are named {twice}; their counts would be one", "rename one")
    for wanted in part.filters:
        for problem in filter_faults(wanted, event):
            yield Violation(where, problem, rule=f"{where}.filters", source=wanted.source)
    for kind, rule in (("consent", part.consent), ("crowd", part.crowd)):
        if rule is None:
            continue
        place = f"{where}.{kind}"
        for problem in _subject_faults(rule.subject, event):
            yield Violation(place, problem, rule=place, source=rule.source, fields=(rule.subject,))
        if isinstance(rule, Crowd):
            yield from _crowd_faults(rule, event, place)


def _subject_faults(subject: str, event: EventType) -> Iterator[str]:
    field = next((field for field in event.fields if field.name == subject), None)
    if field is None:
        yield f"subject {subject!r}: no such field; the event has {listed(f.name for f in event.fields)}"
    elif field.kind != "string":
        yield f"subject {subject!r} is {field.kind}; a person is named by text"
    elif not any(covered(tag, ("identifier", "pseudonym")) for tag in field.tags):
        yield f"subject {subject!r} is {listed(field.tags)}; only an identifier or a pseudonym names a person"


def _crowd_faults(crowd: Crowd, event: EventType, place: str) -> Iterator[Violation]:
    names = {field.name for field in event.fields}
    for name in crowd.fields:
        if name not in names:
            problem = f"no such field {name!r}; the event has {listed(names)}"
            yield Violation(place, problem, rule=place, source=crowd.source, fields=(name,))
        elif name == crowd.subject:
            problem = f"{name!r} is the subject: no two share it"
            yield Violation(place, problem, rule=place, source=crowd.source, fields=(name,))


def _purpose_faults(part: EventRules, where: str, pack: Pack) -> Iterator[Violation]:
    if part.consent and part.consent.purpose not in pack.purposes:
        yield Violation(
            f"{where}.consent",
            f"purpose {part.consent.purpose!r} is not one of the pack's: {listed(pack.purposes)}",
            "declare it with its legal basis",
            rule=f"{where}.consent",
            source=part.consent.source,
        )


def _retention_faults(pack: Pack, events: Mapping[str, EventType]) -> Iterator[Violation]:
    for rule in pack.retention.events:
        if rule.event not in events:
            problem = f"no such event {rule.event!r}; there are {listed(events)}"
            yield Violation("retention.events", problem, event=rule.event)
    places = sorted({*pack.jurisdictions, *(j for rule in pack.retention.events for j in rule.jurisdictions)})
    for name in sorted({rule.event for rule in pack.retention.events} & events.keys()):
        told: set[tuple[int, int]] = set()
        for jurisdiction in places or [""]:
            kept = pack.retention.kept(name, jurisdiction)
            if kept.minimum_days > kept.maximum_days and (kept.minimum_days, kept.maximum_days) not in told:
                told.add((kept.minimum_days, kept.maximum_days))
                yield Violation(
                    f"retention of {name}" + (f" from {jurisdiction}" if jurisdiction else ""),
                    f"rows must be kept {kept.minimum_days} days ({kept.minimum_source}) and may be kept "
                    f"{kept.maximum_days} ({kept.maximum_source}): no row can satisfy both",
                    "lower minimum_days or raise maximum_days",
                    event=name,
                )


def _own_transfer_faults(pack: Pack, events: Mapping[str, EventType]) -> Iterator[Violation]:
    """What a transfer says that its own pack and the events already show to be wrong."""
    for destination, transfer in pack.transfers.items():
        place = f"transfers.{destination}"
        if destination == pack.region:
            yield Violation(place, "a region needs no transfer to itself", "take it out")
        if not pack.collects:
            yield Violation(
                place, f"{pack.region} collects nothing, so nothing of it can cross", "take it out"
            )
        for purpose in transfer.purposes:
            if purpose not in pack.purposes:
                problem = f"purpose {purpose!r} is not one of the pack's: {listed(pack.purposes)}"
                yield Violation(f"{place}.purposes", problem, "declare it with its legal basis")
        yield from tag_faults(transfer.allowed.tags, f"{place}.allowed")
        for name in (*transfer.only_events, *transfer.events):
            if name not in events:
                yield Violation(place, f"no such event {name!r}; there are {listed(events)}", event=name)
        for name in sorted(transfer.events):
            if not transfer.permits(name):
                problem = f"rules for {name}, which is not among only_events"
                yield Violation(place, problem, "list it or take them out", event=name)
    for index, denied in enumerate(pack.transfers_denied):
        yield from tag_faults(denied.tags, f"transfers_denied.{index}")


def tag_faults(tags: tuple[str, ...], where: str) -> Iterator[Violation]:
    """Tags that are not in the vocabulary."""
    for tag in tags:
        if not known(tag, TAGS):
            yield Violation(where, f"unknown tag {tag!r}; the vocabulary has {', '.join(TAGS)}", tags=(tag,))


def rule_faults(rule: Rule, pack: Pack, where: str) -> Iterator[Violation]:
    """Operators, parameters, purposes and tables that are not there; ``pack`` has the latter two."""

    def fault(problem: str, remedy: str = "") -> Violation:
        return Violation(where, problem, remedy, rule=where, source=rule.source)

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


def _discharge_faults(tag: str, rule: Rule, everywhere: frozenset[str], where: str) -> Iterator[Violation]:
    operator = rule.known_operator
    if not any(covers(taken, tag) for taken in operator.takes):
        yield Violation(
            where,
            f"{operator.name} does not discharge {tag}: it takes {', '.join(sorted(operator.takes))}",
            "choose an operator that does, or drop",
            rule=where,
            source=rule.source,
        )
        return
    left = uncovered(operator.gives(rule.checked_parameters, frozenset({tag})), everywhere)
    if left:
        yield Violation(
            where,
            f"{operator.name} leaves {', '.join(left)}, which this destination may not hold",
            "use a stronger operator, or drop",
            rule=where,
            source=rule.source,
        )
