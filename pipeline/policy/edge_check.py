"""What speaks against a pack's minimisation at the edge, before any event is taken.

Comes in: the ``[edge]`` part of a pack, an event, and the rules that read it later. Goes out: sentences.
Invariants of what has none: every operator leaves a value of its field's own type, nullability and range; a
field that a later filter, consent or crowd reads stays as it is, for a changed value would be judged
otherwise; a moment stays in its epoch, for pseudonyms of two epochs must not become one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import pyarrow as pa
from pydantic import ValidationError

from pipeline.errors import ConfigError
from pipeline.events import EventField, EventType
from pipeline.policy.filters import filter_faults
from pipeline.policy.operators import TokenParameters
from pipeline.policy.operators.edge_places import ROLES
from pipeline.policy.pack import Pack
from pipeline.policy.rules import EventRules, Rule
from pipeline.policy.tags import covered
from pipeline.policy.terms import Terms
from pipeline.policy.violations import Violation

EVENT_TIME = "event_time"
STAMPED = ("spool", "lane", "sequence", "received_time")  # the spool writes them, after the minimisation
FIXED = {"source": "it decides the partition", "jurisdiction": "it decides the region"}
SNAP = "snap_location"
NOTHING_LEFT = ("drop", "null")


def edge_faults(pack: Pack, event: EventType, later: Iterable[Terms] = ()) -> Iterator[Violation]:
    """Everything that speaks against a pack's minimisation of one event, each as a sentence.

    ``later``: the legs on which the event goes on from the pack's region; landing's rules are always asked.
    """
    part, where = pack.edge.event(event.name), f"edge.events.{event.name}"
    fields = {field.name: field for field in event.fields}
    read = _read_later(pack, event.name, later)
    for name, rule in part.fields.items():
        place = f"{where}.fields.{name}"
        for fault in _field_faults(name, rule, event, read):
            tags = tuple(sorted(fields[name].tags)) if name in fields else ()
            yield replace(
                fault, place=place, destination=pack.region, event=event.name, fields=(name,), tags=tags,
                rule=place, source=rule.source,
            )  # fmt: skip
    for fault in _part_faults(part, event, where):
        yield replace(fault, destination=pack.region, event=event.name)


def _part_faults(part: EventRules, event: EventType, where: str) -> Iterator[Violation]:
    extra = [name for name in ("also_allowed", "consent", "crowd") if getattr(part, name) is not None]
    if extra:
        yield Violation(where, f"{', '.join(extra)} has no place at the edge", "say it in landing")
    names = [wanted.name for wanted in part.filters]
    for twice in sorted({name for name in names if names.count(name) > 1}):
        yield Violation(f"{where}.filters", f"two are named {twice}; their counts would be one", "rename one")
    for wanted in part.filters:
        place = f"{where}.filters"
        for problem in filter_faults(wanted, event):
            yield Violation(place, problem, rule=place, source=wanted.source)
        for condition in wanted.drop_when:
            if condition.field in STAMPED:
                problem = f"filter {wanted.name} reads {condition.field}, which the spool writes afterwards"
                yield Violation(place, problem, "filter on another field", rule=place, source=wanted.source)
    pairs = [event.field(n) for n, r in part.fields.items() if r.operator == SNAP and n in event.arrow.names]
    rules = [rule for rule in part.fields.values() if rule.operator == SNAP]
    if pairs and (
        sorted(str(f.role) for f in pairs) != sorted(ROLES) or rules[0].parameters != rules[-1].parameters
    ):
        problem = f"{SNAP} takes exactly one field per role {', '.join(ROLES)}, with the same parameters"
        yield Violation(where, problem, "give both fields the same rule")


def _read_later(pack: Pack, event: str, later: Iterable[Terms]) -> dict[str, str]:
    """Fields whose raw value a later rule decides by, and which."""
    read: dict[str, str] = {}
    landing = pack.landing.event(event)
    asked = [(landing.filters, landing.consent, landing.crowd)]
    asked += [(terms.filters(event), terms.consent(event), terms.crowd(event)) for terms in later]
    for filters, consent, crowd in asked:
        for wanted in filters:
            read.update((condition.field, f"filter {wanted.name}") for condition in wanted.drop_when)
        if consent is not None:
            read[consent.subject] = "consent"
        if crowd is not None:
            read.update((name, "crowd") for name in (crowd.subject, *crowd.fields))
    return read


def _field_faults(name: str, rule: Rule, event: EventType, read: Mapping[str, str]) -> Iterator[Violation]:
    if name not in event.arrow.names:
        yield Violation(name, f"no such field; the event has {', '.join(event.arrow.names)}")
        return
    try:
        operator, parameters = rule.known_operator, rule.checked_parameters
    except ConfigError as error:
        yield Violation(name, error.problem)
        return
    except ValidationError:
        yield Violation(name, f"the parameters of {rule.operator} do not fit", "mend the rule")
        return
    if operator.name == "keep":
        return
    field, column = event.field(name), event.arrow.field(name).type
    if problem := _untouchable(field, rule, read):
        yield Violation(name, problem, "leave it to landing")
    elif operator.name in NOTHING_LEFT:
        if not field.nullable:
            yield Violation(
                name, f"{operator.name} leaves null, and the field is never null",
                "use constant, or leave it to landing",
            )  # fmt: skip
    elif operator.name == SNAP:
        if field.role not in ROLES or column != pa.float64():
            yield Violation(
                name, f"{SNAP} takes doubles in the roles {', '.join(ROLES)}", "use another operator"
            )
    elif operator.roles or operator.output:
        yield Violation(name, f"{operator.name} makes another column", f"for places there is {SNAP}")
    elif isinstance(parameters, TokenParameters):
        yield Violation(name, f"{operator.name} needs a vault, and an edge has none", "leave it to landing")
    elif not operator.accepts(column, parameters):
        yield Violation(name, f"{operator.name} works on {operator.expects}, the field is {column}")
    elif not taken_tags(rule, field):
        yield Violation(name, f"{operator.name} takes none of its tags", "choose another operator")
    else:
        yield from _result_faults(field, column, rule)


def _untouchable(field: EventField, rule: Rule, read: Mapping[str, str]) -> str:
    if field.name in STAMPED:
        return "the spool writes it afterwards"
    if field.name in FIXED:
        return FIXED[field.name]
    if field.name in read:
        return f"a later rule ({read[field.name]}) decides by its value and would decide otherwise"
    if field.name == EVENT_TIME and rule.operator != "truncate_time":
        # A week or a year begins in another epoch: pseudonyms would be those of that epoch, and join two.
        return "it decides the epoch of pseudonyms: only truncate_time leaves it there"
    return ""


def _result_faults(field: EventField, column: pa.DataType, rule: Rule) -> Iterator[Violation]:
    """The schema must still hold, the declared range included: the processor would quarantine the rest."""
    operator, parameters = rule.known_operator, rule.checked_parameters
    result = operator.result(parameters)
    value = getattr(parameters, "value", None)
    if result and not (field.symbols and value in field.symbols) and result != (column, field.kind):
        yield Violation(
            field.name, f"{operator.name} leaves {result[1]}, the field is {field.kind}",
            "at the edge a value keeps its field's type",
        )  # fmt: skip
        return
    if operator.nulls == "possible" and not field.nullable:
        yield Violation(field.name, f"{operator.name} can leave null, and the field is never null")
    low, high = field.minimum, field.maximum
    if not operator.deterministic and (low, high) != (None, None):
        yield Violation(field.name, f"{operator.name} can leave the field's range", "leave it to landing")
    ends = (
        [value]
        if isinstance(value, int | float)
        else [operator.bound(parameters, e) for e in (low, high) if e is not None]
    )
    if any((low is not None and end < low) or (high is not None and end > high) for end in ends):
        yield Violation(
            field.name, f"{operator.name} can leave a value outside the field's range",
            "choose other parameters: the checks would refuse it",
        )  # fmt: skip


def taken_tags(rule: Rule, field: EventField) -> frozenset[str]:
    """Tags of the field that the rule's operator discharges."""
    return frozenset(tag for tag in field.tags if covered(tag, rule.known_operator.takes))
