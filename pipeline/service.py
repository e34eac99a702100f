"""The join: the one place where stages meet the adapters they are built with.

Comes in: configuration. Goes out: roles that run until they are told to stop. Everything is a constructor
argument; there are no globals and no registration by import.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import cached_property
from typing import Any

from prometheus_client import CollectorRegistry

from connectors import presidio
from connectors.kafka import KafkaAdmin, KafkaReader, KafkaWriter, ReaderOptions, TopicSpec
from connectors.kafka_scan import LogScanner
from connectors.lake import Lake
from connectors.token_vault import SqliteTokenVault, create_vault
from pipeline.checks import Checks
from pipeline.codec import Codec
from pipeline.errors import ConfigError
from pipeline.installation import Installation
from pipeline.intake import Reading
from pipeline.metrics import ProcessorMetrics, StoreMetrics
from pipeline.policy import Plan, check_flow, compile_plan, curated_subject
from pipeline.policy.consent import ConsentBook, ConsentNames
from pipeline.policy.door import demand_landable
from pipeline.policy.plan import Choices
from pipeline.policy.recognisers import asked_for
from pipeline.processor import ConsentFeed, LandingLeg, Leg, Ports, Processor, StateLog
from pipeline.role import Role, started
from pipeline.schemas import EventType
from pipeline.store import Inflow, StorePlan, StorePorts, StoreWriter
from pipeline.topics import LegTopics


class Project(Installation):
    """An installation with what every role but the edge's needs: topics, keys, plans, legs."""

    def origins(self, region: str) -> tuple[str, ...]:
        """The configured regions from which something crosses into this one, sorted."""
        return tuple(origin for origin in self.packs.origins(region) if origin in self.config.regions)

    def legs_into(self, region: str) -> tuple[LegTopics, ...]:
        """The topics of every leg that ends in the region, its landing first."""
        landing = (self.topics.landing(region),) if self.collects(region) else ()
        return (*landing, *(self.topics.border(origin, region) for origin in self.origins(region)))

    def events_on(self, leg: LegTopics) -> tuple[str, ...]:
        """The events that may take the leg, sorted."""
        terms = self.packs.terms(leg.origin, leg.destination)
        return tuple(event for event in sorted(self.schemas.events) if terms.permits(event))

    def topic_specs(self, region: str) -> list[TopicSpec]:
        """All topics of a region. Partition p of a leg's topics serves partition p of what the leg reads."""
        specs = []
        for leg in self.legs_into(region):
            count = self.config.region(leg.origin).partitions
            events = self.events_on(leg)
            names = [leg.source(event) for event in events] if not leg.is_border else []
            names += [*(leg.curated(event) for event in events), leg.stats, leg.quarantine]
            specs += [TopicSpec(name, count) for name in names]
            specs.append(TopicSpec(leg.watermarks, count, True))
        if self.collects(region):
            specs.append(TopicSpec(self.topics.edges(region), self.config.region(region).partitions, True))
            specs.append(TopicSpec(self.topics.consent(region), 1, True))
        return specs

    async def ensure_topics(self, regions: list[str]) -> None:
        """Make the topics that are missing. Raises ConfigError, TransientError."""
        for region in regions:
            async with started(KafkaAdmin(self.cluster(region))) as admin:
                await admin.ensure_topics(self.topic_specs(region))

    def create_keys(self, regions: list[str]) -> None:
        """Make the root keys and token vaults that are missing; one that exists is never touched."""
        for region in regions:
            self.keys.create(region, self.packs.pack(region).purposes)
            create_vault(self.config.vault_path(region))

    def plan(self, origin: str, destination: str, event: EventType) -> Plan:
        """The event's plan on a leg, with the keys and the vault of the destination. Raises ConfigError."""
        terms = self.packs.terms(origin, destination)
        asked = asked_for(check_flow(terms, event))
        return compile_plan(
            terms, event, self.keys.store(destination),
            vault=SqliteTokenVault(self.config.vault_path(destination)),
            recognisers={presidio.NAME: self._presidio} if presidio.NAME in asked else {},
        )  # fmt: skip

    @cached_property
    def _presidio(self) -> presidio.Presidio:
        """One for all plans of the process, made when the first of them asks: its model is large."""
        return presidio.Presidio()

    def consent_names(self, region: str) -> ConsentNames:
        """What people are called where they are asked for consent."""
        return ConsentNames(self.keys.store(region), region)

    def leg(self, region: str, event: str, choices: Choices | None = None) -> Leg:
        """The landing leg of an event. Raises ConfigError when the policy does not type-check, the curated
        schema is not the locked one, or a key is missing. ``choices``: what people have said, without which
        a leg that asks for consent passes nothing."""
        kind = self.schemas.events[event]
        plan, curated = self.locked_plan(region, region, kind)
        checks = Checks(kind, self.config.limits, self.packs.jurisdictions(region), self.packs.known)
        return LandingLeg(self.reading(event), plan, curated, checks, choices=choices)

    def locked_plan(self, origin: str, destination: str, event: EventType) -> tuple[Plan, Codec]:
        """The event's plan on a leg and the codec of what it makes. Raises ConfigError as :meth:`plan`, and
        when that is not what the lock says."""
        plan = self.plan(origin, destination, event)
        came_from = None if origin == destination else origin
        locked = self.schemas.latest(curated_subject(destination, event.name, came_from))
        if locked.schema != plan.schema:
            raise ConfigError(
                "the policy makes another schema than the locked one", operation="policy",
                place=f"{origin} to {destination}, {event.name}", remedy="run `pipeline schema lock`",
            )  # fmt: skip
        return plan, self.schemas.codec(locked.id)

    def reading(self, event: str) -> Reading:
        """How raw records of an event are read, of whatever locked version."""
        ids = [entry.id for entry in self.schemas.entries() if self.schemas.event_of(entry.id) == event]
        codecs = {schema_id: self.schemas.codec(schema_id) for schema_id in ids}
        limit, fingerprints = self.config.limits.record_bytes_max, self.schemas.fingerprints(event)
        return Reading(self.schemas.events[event], codecs, limit, fingerprints)

    def inflows(self, region: str) -> tuple[Inflow, ...]:
        """Every leg that ends in the region's store."""
        return tuple(Inflow(leg, self.events_on(leg)) for leg in self.legs_into(region))

    def door(self, region: str) -> Callable[[int], None]:
        """The type check again, at the store: raises when the region may not hold what a schema id says."""
        return lambda schema_id: demand_landable(self.packs, region, self.schemas.by_id(schema_id))


async def run_processor(project: Project, region: str, role: Role) -> None:
    """The landing processor of one region, until told to stop."""
    config, cluster = project.config, project.cluster(region)
    registry = CollectorRegistry()
    topics, book = project.topics.landing(region), ConsentBook(project.consent_names(region))
    legs = {topics.source(event): project.leg(region, event, book) for event in project.schemas.events}
    async with started(KafkaAdmin(cluster)) as admin:
        await admin.ensure_topics(project.topic_specs(region))
        topic_ids = await admin.topic_ids(list(legs))
    reader = KafkaReader(cluster, topics.group, config.limits, ReaderOptions(config.processor))
    scan = LogScanner(cluster, config.limits)
    state = StateLog(project.schemas, scan, topics.watermarks, topics.stats)
    said = KafkaReader(cluster, None, config.limits)
    feed = ConsentFeed(said, project.topics.consent(region), project.schemas, book)
    async with started(reader), started(said), started(KafkaWriter(cluster)) as writer:
        processor = Processor(
            legs, topic_ids, Ports(reader, writer, state, feed), project.schemas, topics,
            ProcessorMetrics(registry, region),
        )  # fmt: skip
        with role.serving(registry) as port:
            await role.run(processor.run, processor.ready, port)


async def run_store(project: Project, region: str, role: Role) -> None:
    """The store writer of one region, until told to stop."""
    config, cluster = project.config, project.cluster(region)
    registry = CollectorRegistry()
    plan = StorePlan(project.inflows(region), project.door(region), config.flush)
    lake = Lake(config.store_path(region), region)
    try:
        # Rows wait for a flush anyway: fewer, larger fetches.
        fetch = config.processor.model_copy(update={"fetch_linger_ms": min(200.0, config.flush.age_s * 100)})
        reader = KafkaReader(
            cluster, f"{config.topic_prefix}{region}.store", config.limits, ReaderOptions(fetch)
        )
        async with started(KafkaAdmin(cluster)) as admin, started(reader):
            await admin.ensure_topics(project.topic_specs(region))
            ports = StorePorts(lake, reader, admin, StoreMetrics(registry, region))
            writer = StoreWriter(ports, project.schemas, plan)
            with role.serving(registry) as port:
                await role.run(writer.run, writer.ready, port)
    finally:
        lake.close()


Runner = Callable[[Project, str, Role], Coroutine[Any, Any, None]]
