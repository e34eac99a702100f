"""Plans for those who run one themselves: in a stream of their own, on a file, in a comparison.

Comes in: a project. Goes out: the parts of a landing or a border, joined as the processor's are, with the
destination's own keys.
"""

from __future__ import annotations

import time

import pyarrow as pa

from connectors.faust_plan import Curator
from pipeline.checks import Checks
from pipeline.codec import Codec
from pipeline.errors import ConfigError
from pipeline.events import EventType
from pipeline.intake import Intake, RowChecks
from pipeline.mapping import Mapping, by_name
from pipeline.policy import Packs
from pipeline.policy.borders import landed_event
from pipeline.policy.offline import ByMapping, ByName, Conform, CuratedChecks, Offline
from pipeline.policy.packs import Leg
from pipeline.policy.standalone import Standalone
from pipeline.replay import Mapper
from pipeline.service import Project


def event_of(project: Project, name: str, operation: str) -> EventType:
    """The event of that name; ConfigError lists those that there are."""
    try:
        return project.schemas.events[name]
    except KeyError:
        known = ", ".join(sorted(project.schemas.events))
        raise ConfigError(f"unknown event {name!r}; there are {known}", operation=operation) from None


def intake(project: Project, region: str, name: str, packs: Packs | None = None) -> Intake:
    """The door of a region's landing for one event; ``packs``: other ones than the project's."""
    packs = packs or project.packs
    event = event_of(project, name, "intake")
    checks = Checks(event, project.config.limits, packs.jurisdictions(region), packs.known)
    return Intake(project.reading(name), checks)


def curator(project: Project, region: str, name: str) -> tuple[Curator, Codec]:
    """What a stream of raw records of one event needs to hold only what the region may hold, and the codec of
    the curated records it leaves.

    Raises ConfigError when the policy does not type-check, a key is missing, or the curated schema is not
    the locked one.
    """
    event = event_of(project, name, "curator")
    plan, curated = project.locked_plan(region, region, event)
    return Curator(intake(project, region, name), plan), curated


# --- on a file ------------------------------------------------------------------------------------------


def file_conform(
    project: Project, leg: Leg, event: EventType, columns: pa.Schema, mapping: Mapping | None,
    jurisdiction: str | None,
) -> Conform:  # fmt: skip
    """How a file's columns become rows of a leg's input: by a mapping, or by the names they have."""
    if mapping is not None or jurisdiction is not None:
        own = [field.name for field in event.own_fields]
        mapping = mapping or by_name(event.name, own, columns.names)
        return ByMapping(Mapper(mapping, event, columns, jurisdiction))
    return ByName(arriving_on(project.packs, leg, event), columns)


def offline(project: Project, leg: Leg, event: EventType, conform: Conform) -> Offline:
    """A leg's plan for a file, with the destination's keys. Raises ConfigError like the leg itself."""
    origin, destination = leg
    arriving = arriving_on(project.packs, leg, event)
    run = Standalone(project.plan(origin, destination, arriving))
    return Offline(run, conform, checks_on(project, project.packs, leg, arriving), time.time_ns() // 1000)


def arriving_on(packs: Packs, leg: Leg, event: EventType) -> EventType:
    """What the leg takes: the raw event, or across a border what its origin lands."""
    origin, destination = leg
    return event if origin == destination else landed_event(packs, origin, event)[0]


def checks_on(project: Project, packs: Packs, leg: Leg, arriving: EventType) -> RowChecks:
    """What the rows that a leg takes have to be."""
    here = packs.jurisdictions(leg[0])
    if leg[0] != leg[1]:
        return CuratedChecks(arriving, here)
    return Checks(arriving, project.config.limits, here, packs.known)
