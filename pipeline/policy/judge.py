"""The whole check: every event, from every origin, to every destination.

Comes in: packs as they were read, sound or not, and the events. Goes out: a :class:`Judgement`: what is
decided, what is not permitted, and everything that is wrong. Not permitted is the default and no fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.events import EventType
from pipeline.policy.borders import landed_event
from pipeline.policy.flow import Flow
from pipeline.policy.load import Survey
from pipeline.policy.packs import Packs
from pipeline.policy.typecheck import judge_flow
from pipeline.policy.violations import Violation


@dataclass(frozen=True)
class Denial:
    """An event that may not take a leg, and why."""

    event: str
    origin: str
    destination: str
    reason: str


@dataclass(frozen=True)
class Judgement:
    """``flows``: landings first, then borders. ``denied``: every other (event, origin, destination).
    ``violations``: of the packs, then of the flows; empty when everything may run."""

    flows: tuple[Flow, ...]
    denied: tuple[Denial, ...]
    violations: tuple[Violation, ...]


def judge_all(survey: Survey, events: Mapping[str, EventType]) -> Judgement:
    """Every event on every leg between regions that have a readable pack. Reads and raises nothing.

    What no more holds by time is among the violations of a survey that was told the time.
    """
    packs = survey.packs
    flows: list[Flow] = []
    denied: list[Denial] = []
    violations = list(survey.violations)
    landed: dict[tuple[str, str], EventType] = {}
    for origin, destination in packs.legs():
        terms = packs.terms(origin, destination)
        for name, event in sorted(events.items()):
            if not terms.permits(name):
                denied.append(Denial(name, origin, destination, "not among the events of the transfer"))
                continue
            if not terms.crosses:
                landed[origin, name], _ = landed_event(packs, origin, event)
            flow, found = judge_flow(terms, landed[origin, name] if terms.crosses else event)
            flows.append(flow)
            violations += found
    denied += _without_leg(packs, events)
    return Judgement(tuple(flows), tuple(denied), tuple(violations))


def _without_leg(packs: Packs, events: Mapping[str, EventType]) -> list[Denial]:
    legs = set(packs.legs())
    denied: list[Denial] = []
    for origin in packs.regions:
        collects = packs.pack(origin).collects
        for destination in packs.regions:
            if (origin, destination) in legs or (origin == destination and not collects):
                continue
            reason = (
                f"the pack of {origin} permits no such transfer"
                if collects
                else f"{origin} collects nothing, and what it received goes no further"
            )
            denied += [Denial(name, origin, destination, reason) for name in sorted(events)]
    return denied
