"""The border: what joins the legs from other regions into one region to their adapters.

Comes in: a project, and the region that receives. Goes out: a role that runs one leg per origin and event
until it is told to stop. Each origin's topics are read where they are, in the origin's own Kafka; everything
that is written, state included, is in the receiving region's. Nothing else moves data between regions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from prometheus_client import CollectorRegistry

from connectors.kafka import KafkaAdmin, KafkaReader, KafkaWriter, ReaderOptions
from connectors.kafka_scan import LogScanner
from pipeline.errors import ConfigError, PipelineError, TransientError
from pipeline.events import EventType
from pipeline.intake import Reading
from pipeline.metrics import BorderMetrics
from pipeline.policy import curated_subject
from pipeline.policy.door import demand_landable
from pipeline.processor import BorderLeg, Ports, Processor, StateLog, acceptable
from pipeline.processor.processor import Writer
from pipeline.service import Project, Role, started


def border_leg(project: Project, origin: str, region: str, event: str) -> BorderLeg:
    """The leg of an event from ``origin`` into ``region``.

    Raises ConfigError when the transfer is not permitted or does not type-check, its schemas are not the
    locked ones, or a key is missing; BasisEnded when its basis does not hold now.
    """
    schemas, subject = project.schemas, curated_subject(origin, event)
    newest = schemas.latest(subject)
    versions = [entry for entry in schemas.entries() if entry.subject == subject]
    taken = acceptable(versions, newest, lambda locked: demand_landable(project.packs, origin, locked))
    arriving = EventType(event, newest.version, newest.id, newest.schema)
    plan, curated = project.locked_plan(origin, region, arriving)
    codecs = {number: schemas.codec(number) for number in taken}
    reading = Reading(arriving, codecs, project.config.limits.record_bytes_max, carried=taken)
    return BorderLeg(reading, plan, curated, project.packs.jurisdictions(origin))


async def run_border(project: Project, region: str, role: Role, *, origin: str | None = None) -> None:
    """All that crosses into the region (or only what comes from ``origin``), until told to stop.

    Raises BasisEnded when a transfer's basis ends: one process then stops with all its origins, so run one
    per origin where that must not be.
    """
    origins = _origins(project, region, origin)
    for one in origins:
        project.packs.terms(one, region).demand_valid(time.time_ns() // 1000)
    registry = CollectorRegistry()
    metrics = BorderMetrics(registry, region)
    async with started(KafkaAdmin(project.cluster(region))) as admin:
        await admin.ensure_topics(project.topic_specs(region))
    async with AsyncExitStack() as stack:
        writer = await stack.enter_async_context(started(KafkaWriter(project.cluster(region))))
        processors = [
            await stack.enter_async_context(border_processor(project, (one, region), writer, metrics))
            for one in origins
        ]
        ready = asyncio.Event()
        watching = asyncio.create_task(_all_ready(processors, ready))
        try:
            with role.serving(registry) as port:
                await role.run(lambda stop: _run_all(processors, stop), ready, port)
        finally:
            watching.cancel()


@asynccontextmanager
async def border_processor(
    project: Project, way: tuple[str, str], writer: Writer, metrics: BorderMetrics
) -> AsyncIterator[Processor]:
    """The processor of all legs from one region into another, connected and not yet running.

    ``way``: (origin, destination). ``writer``: to the destination's Kafka. Raises what :func:`border_leg`
    does, and TransientError while the origin's topics are not there.
    """
    (origin, region), config = way, project.config
    topics = project.topics.border(origin, region)
    terms = project.packs.terms(origin, region)
    legs = {
        topics.source(event): border_leg(project, origin, region, event)
        for event in project.events_on(topics)
    }
    async with started(KafkaAdmin(project.cluster(origin))) as admin:
        ids = await admin.topic_ids(sorted(legs))
    if missing := sorted(legs.keys() - ids.keys()):
        raise TransientError(
            "the topic does not exist yet", operation="border", place=missing[0],
            remedy=f"start the processor of {origin} first",
        )  # fmt: skip
    scan = LogScanner(project.cluster(region), config.limits)
    state = StateLog(project.schemas, scan, topics.watermarks, topics.stats)
    reader = KafkaReader(
        project.cluster(origin), topics.group, config.limits, ReaderOptions(config.processor)
    )
    counts = metrics.of(origin, terms.basis, terms.valid_until_us)
    async with started(reader):
        yield Processor(legs, ids, Ports(reader, writer, state), project.schemas, topics, counts)


def _origins(project: Project, region: str, wanted: str | None) -> Sequence[str]:
    found = project.origins(region)
    if wanted is not None and wanted not in found:
        project.config.region(wanted)
        project.packs.terms(wanted, region)  # says why not
    if not found:
        raise ConfigError(
            f"nothing crosses into {region}: no configured region's pack permits a transfer there",
            operation="border", place=region,
        )  # fmt: skip
    return [wanted] if wanted is not None else found


async def _all_ready(processors: Sequence[Processor], ready: asyncio.Event) -> None:
    for processor in processors:
        await processor.ready.wait()
    ready.set()


async def _run_all(processors: Sequence[Processor], stop: asyncio.Event) -> None:
    """Until ``stop``; the first failure ends all of them."""
    try:
        async with asyncio.TaskGroup() as group:
            for processor in processors:
                group.create_task(processor.run(stop))
    except* PipelineError as errors:
        raise errors.exceptions[0] from None
