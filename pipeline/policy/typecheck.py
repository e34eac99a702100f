"""The type check: may this event flow to this destination?

Comes in: an event type and a leg's terms. Goes out: a checked :class:`Flow`, or sentences that say which
field, which tag, which rule. It knows nothing of batches or keys, so it runs wherever a pack is read.
Invariant: a flow without faults leaves no tag that the destination may not hold, and on a border none that
the origin does not let out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pipeline.errors import ConfigError
from pipeline.events import EventType
from pipeline.policy.faults import part_faults
from pipeline.policy.flow import EVENT_TIME, ORIGIN, RAW_POSITION, Decision, Flow
from pipeline.policy.operators import KeyedParameters, TokenParameters
from pipeline.policy.resolve import resolve
from pipeline.policy.tags import uncovered
from pipeline.policy.terms import Terms
from pipeline.policy.violations import Violation, listed


def check_flow(terms: Terms, event: EventType) -> Flow:
    """The checked flow of an event (on a border: of the origin's curated event).

    Raises ConfigError with every fault when the tags do not fit.
    """
    flow, violations = judge_flow(terms, event)
    if violations:
        raise ConfigError(
            "; ".join(map(str, violations)),
            operation="policy check",
            place=f"{terms.origin} to {terms.destination}, {event.name}",
        )
    return flow


def judge_flow(terms: Terms, event: EventType) -> tuple[Flow, tuple[Violation, ...]]:
    """The flow as far as it can be decided, and everything that speaks against it.

    Raises ConfigError for an event that may not take this leg, or a border's event without raw position.
    """
    if not terms.permits(event.name):
        raise ConfigError(
            f"{event.name} is not among the events of the transfer: what is not permitted is denied",
            operation="policy",
            place=f"{terms.origin} to {terms.destination}",
            remedy=f"the pack of {terms.origin} says which: transfers.{terms.destination}.only_events",
        )
    flow, faults = resolve(terms, event)
    found = (*faults, *flow_faults(flow))
    return flow, tuple(
        replace(fault, origin=terms.origin, destination=terms.destination, event=event.name)
        for fault in found
    )


def flow_faults(flow: Flow) -> Iterator[Violation]:
    """What the types say against a flow: column types, tags that are left, names that clash."""
    for decision in flow.decisions:
        for fault in _decision_faults(decision, flow):
            yield replace(
                fault,
                fields=tuple(field.name for field in decision.fields),
                tags=fault.tags or tuple(sorted(decision.tags)),
                rule=decision.rule,
                source=decision.source,
            )
    yield from _column_faults(flow)
    yield from _epoch_faults(flow)
    yield from _row_faults(flow)


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
            f"{operator.name} takes none of its tags {listed(decision.tags)} (rule {decision.rule})",
            f"it takes {listed(operator.takes)}: choose another operator, or drop the field",
        )
    transfer, parameters = flow.terms.transfer, decision.parameters
    if transfer and isinstance(parameters, KeyedParameters) and parameters.purpose not in transfer.purposes:
        yield Violation(
            names,
            f"{operator.name} works for the purpose {parameters.purpose}, the data cross for "
            f"{listed(transfer.purposes)}",
            "name the purpose in the transfer, or use one that is",
        )
    left = uncovered(decision.result, flow.allowed) if decision.output else ()
    if left:
        yield Violation(
            names,
            f"{operator.name} (rule {decision.rule}) leaves {listed(left)}, and {flow.region} may hold "
            f"only {listed(flow.allowed)}",
            "use a stronger operator, or drop the field",
            tags=left,
        )


def _column_faults(flow: Flow) -> Iterator[Violation]:
    outputs = [decision.output for decision in flow.columns] + list(flow.appended)
    for twice in sorted({str(name) for name in outputs if outputs.count(name) > 1}):
        yield Violation(twice, "two columns of that name would leave", "rename or drop one", fields=(twice,))
    needed = {"transport": RAW_POSITION} | ({"jurisdiction": (ORIGIN,)} if flow.terms.crosses else {})
    for tag, columns in needed.items():
        if uncovered({tag}, flow.allowed):
            places = " and ".join(f"{place}.allowed" for place, _ in flow.terms.layers)
            yield Violation(
                " and ".join(columns),
                f"{flow.region} must be allowed to hold {tag}",
                f"add {tag} to {places}",
                fields=columns,
                tags=(tag,),
            )


def _row_faults(flow: Flow) -> Iterator[Violation]:
    """What decides about whole rows has to find its fields in what comes in, and columns in what leaves."""
    if flow.terms.crosses:  # at a landing the pack alone can be asked, and was when it was read
        for place, leg in flow.terms.layers:
            yield from part_faults(
                leg.event(flow.event.name), flow.event, f"{place}.events.{flow.event.name}"
            )
    for name in flow.terms.twice(flow.event.name):
        yield Violation(name, f"both ends of the leg ask for a {name}, and not for the same", "leave one")
    gone = [d for d in flow.decisions if d.crowded and d.output is None]
    for decision in gone:
        yield Violation(
            "crowd",
            f"{listed(field.name for field in decision.fields)} is dropped, so no crowd can share it",
            "take it out of the crowd's fields",
            fields=tuple(field.name for field in decision.fields),
        )


def _epoch_faults(flow: Flow) -> Iterator[Violation]:
    by_epoch = [
        d
        for d in flow.decisions
        if isinstance(d.parameters, KeyedParameters) and not isinstance(d.parameters, TokenParameters)
    ]
    keyed = sorted({d.operator.name for d in by_epoch})
    if keyed:
        fields = {field.name: field for field in flow.event.fields}
        time = fields.get(EVENT_TIME)
        if time is None or time.kind != "timestamp-micros" or time.nullable:
            yield Violation(
                EVENT_TIME,
                f"{listed(keyed)} needs it in timestamp-micros, never null: it decides the epoch",
                "give the event the envelope's field",
                fields=(EVENT_TIME,),
            )
