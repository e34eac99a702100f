"""A policy pack: one region's rules, as data.

Comes in: a TOML file. Goes out: a frozen :class:`Pack`, or every fault of the file as a sentence. A pack says
per leg (landing in its own region; further destinations later) which tags may be held, which operator serves
which tag, what single events need beyond that, and which law each rule comes from. Invariant: a pack that
loads names only tags, operators, parameters, purposes, events and fields that exist.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.config import REGION_NAME
from pipeline.errors import ConfigError
from pipeline.events import TAGS, EventType
from pipeline.policy.filters import Filter, filter_faults
from pipeline.policy.hierarchies import Hierarchy
from pipeline.policy.operators import OPERATORS, CategoryParameters, KeyedParameters, Operator, Parameters
from pipeline.policy.tags import covers, known, uncovered
from pipeline.policy.violations import Violation

Law = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
Jurisdiction = Annotated[str, Field(pattern=r"^[A-Z]{2}(-[A-Z0-9]{1,3})?$")]
RETENTION_DAYS_MAX = 36_525


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Rule(_Strict):
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


class Allowed(_Strict):
    """Tags that may be held, and why."""

    tags: tuple[str, ...]
    source: Law


class EventRules(_Strict):
    """What one event needs beyond the rules per tag; a field's own rule replaces those of its tags."""

    also_allowed: Allowed | None = None
    fields: dict[str, Rule] = {}
    filters: tuple[Filter, ...] = ()


class LegRules(_Strict):
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


class Purpose(_Strict):
    """What data are processed for, and on which legal basis (GDPR 5(1)(b), 6; LGPD 7)."""

    meaning: Law
    basis: Law


class Retention(_Strict):
    """How long rows must and may be held, in days."""

    minimum_days: Annotated[int, Field(ge=0, le=RETENTION_DAYS_MAX)]
    maximum_days: Annotated[int, Field(ge=1, le=RETENTION_DAYS_MAX)]
    source: Law

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.minimum_days > self.maximum_days:
            raise ValueError(
                f"rows must be kept {self.minimum_days} days and may be kept {self.maximum_days}: "
                "no row can satisfy both; lower minimum_days or raise maximum_days"
            )
        return self


class Example(_Strict):
    """A row, and what the region shall hold of it: ``pipeline policy test`` runs it.

    ``input``: fields of the event; the rest is null or plain. ``expected``: columns and their values.
    ``absent``: columns that must not leave. ``filtered``: the filter that drops the row instead.
    """

    name: Law
    event: str
    input: dict[str, Any] = {}
    expected: dict[str, Any] = {}
    absent: tuple[str, ...] = ()
    filtered: str = ""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if bool(self.expected or self.absent) == bool(self.filtered):
            raise ValueError("say what leaves (expected, absent) or which filter drops it (filtered)")
        return self


class Pack(_Strict):
    """One region's policy."""

    region: Annotated[str, Field(pattern=REGION_NAME)]
    version: Annotated[str, Field(pattern=r"^\d{4}\.\d+$")]
    title: str = ""
    jurisdictions: tuple[Jurisdiction, ...]
    epoch: Literal["month", "quarter"]
    purposes: Annotated[dict[Name, Purpose], Field(min_length=1)]
    hierarchies: dict[Name, Hierarchy] = {}
    retention: Retention
    landing: LegRules
    examples: tuple[Example, ...] = ()

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of what the pack does; comments, order, layout and examples do not count."""
        content = self.model_dump(mode="json", by_alias=True, exclude={"examples"})
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def leg(self, origin: str, destination: str) -> LegRules:
        """The rules from origin to destination; ConfigError for a flow that the pack does not permit."""
        if origin == destination == self.region:
            return self.landing
        raise ConfigError(
            f"no leg from {origin} to {destination}: what is not permitted is denied",
            operation="policy",
            place=f"pack {self.region}",
            remedy=f"the pack of {self.region} permits {self.region} to {self.region}",
        )


def parse_pack(raw: Mapping[str, Any]) -> tuple[Pack | None, list[Violation]]:
    """A pack from plain values, or what is wrong with their shape."""
    try:
        return Pack.model_validate(raw), []
    except ValidationError as error:
        return None, [Violation(place, problem) for place, problem in _sentences(error)]


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
        yield from (fault(f"{rule.operator} with {name}: {text}") for name, text in _sentences(error))
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


def _sentences(error: ValidationError) -> list[tuple[str, str]]:
    return [
        (".".join(map(str, e["loc"])) or "file", e["msg"].removeprefix("Value error, "))
        for e in error.errors()
    ]
