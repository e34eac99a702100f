"""The join: the one place where stages meet the adapters they are built with.

Comes in: configuration. Goes out: roles that run until they are told to stop. Everything is a constructor
argument; there are no globals and no registration by import.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from prometheus_client import CollectorRegistry

from connectors import presidio
from connectors.broker import BrokerOptions, LocalBroker
from connectors.http_ingest import HttpIngest
from connectors.kafka import KafkaAdmin, KafkaReader, KafkaWriter, ReaderOptions, TopicSpec
from connectors.kafka_scan import LogScanner
from connectors.lake import Lake
from connectors.token_vault import SqliteTokenVault, create_vault
from pipeline.checks import Checks
from pipeline.config import ClusterConfig, Config
from pipeline.edge import EdgeClient, EdgeReport, Forwarder, Spool, Summariser
from pipeline.errors import ConfigError
from pipeline.intake import Reading
from pipeline.keyring import Keyring
from pipeline.metrics import EdgeMetrics, ProcessorMetrics, StoreMetrics, serve
from pipeline.policy import (
    Packs,
    Plan,
    check_flow,
    compile_plan,
    curated_subject,
    load_packs,
)
from pipeline.policy.consent import ConsentBook, ConsentNames
from pipeline.policy.door import demand_landable
from pipeline.policy.minimise import edge_plans
from pipeline.policy.plan import Choices
from pipeline.policy.recognisers import asked_for
from pipeline.processor import ConsentFeed, LandingLeg, Leg, Ports, Processor, StateLog
from pipeline.schemas import EventType, SchemaStore
from pipeline.stack import announce_ready
from pipeline.store import Inflow, StorePlan, StorePorts, StoreWriter
from pipeline.topics import LegTopics, Topics

log = logging.getLogger(__name__)


DRAIN_S = 8.0  # how long a role may take to finish what is in hand once it was told to stop


class Startable(Protocol):
    """A connection with a beginning and an end."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


S = TypeVar("S", bound=Startable)
Work = Callable[[asyncio.Event], Awaitable[None]]  # runs until the event is set


@dataclass(frozen=True)
class Project:
    """Configuration with everything that is read from files: schemas, packs, topic names."""

    config: Config
    schemas: SchemaStore
    packs: Packs
    topics: Topics

    @classmethod
    def open(cls, config: Config) -> Project:
        """Load and cross-check. Raises ConfigError with every fault; nothing has been started then."""
        folder = config.schemas_path()
        schemas = SchemaStore.load(folder)
        packs = load_packs(folder / "policies", schemas.events)
        for region in config.regions:
            packs.pack(region)
        return cls(config, schemas, packs, Topics(config.topic_prefix))

    def cluster(self, region: str) -> ClusterConfig:
        """How to reach the region's Kafka: as configured, else the local stack's broker."""
        cluster = self.config.region(region).cluster
        if cluster.bootstrap:
            return cluster
        return cluster.model_copy(update={"bootstrap": self.broker().bootstrap})

    def broker(self, *, detached: bool = True) -> LocalBroker:
        """The local stack's broker; not started here."""
        stack = self.config.stack
        options = BrokerOptions(
            port=stack.broker_port, heap_mb=stack.broker_heap_mb, start_timeout_s=stack.start_timeout_s,
            stop_timeout_s=stack.stop_timeout_s, jars=jars_path(), detached=detached,
        )  # fmt: skip
        return LocalBroker(self.config.state, options)

    def collects(self, region: str) -> bool:
        """Whether events land here from edges; a region that does not only receives over borders."""
        return self.packs.pack(region).collects

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

    @cached_property
    def keys(self) -> Keyring:
        """The key stores of the regions."""
        return Keyring(self.config)

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
        plan = self.plan(region, region, kind)
        locked = self.schemas.latest(curated_subject(region, event))
        if locked.schema != plan.schema:
            raise ConfigError(
                "the policy makes another schema than the locked one", operation="policy",
                place=f"{region}, {event}", remedy="run `pipeline schema lock`",
            )  # fmt: skip
        checks = Checks(kind, self.config.limits, self.packs.jurisdictions(region), self.packs.known)
        return LandingLeg(self.reading(event), plan, self.schemas.codec(locked.id), checks, choices=choices)

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


def jars_path() -> Path:
    """Where the local broker's jars are kept: beside the project, so that every state folder shares them."""
    beside = Path(__file__).resolve().parent.parent
    home = beside if (beside / "pyproject.toml").exists() else Path.cwd()
    return home / ".pipeline" / "jars"


@asynccontextmanager
async def started(service: S) -> AsyncIterator[S]:
    """Start now, stop at the end."""
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


@dataclass(frozen=True)
class Role:
    """One process of the pipeline: its name, its ready file, its signals."""

    name: str
    ready_file: Path
    metrics_host: str
    metrics_port: int = 0

    def serving(self, registry: CollectorRegistry) -> AbstractContextManager[int]:
        """``/metrics`` on a port of its own, which it hands out."""
        return serve(registry, self.metrics_host, self.metrics_port)

    async def run(self, work: Work, ready: asyncio.Event, port: int) -> None:
        """Run ``work`` until SIGTERM or SIGINT; a second one ends the process at once.

        Once ``ready`` is set the ready file appears and names ``port``, where ``/metrics`` is.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, stop, number)
        announcing = asyncio.create_task(self._announce(ready, port))
        working = asyncio.ensure_future(work(stop))
        ending = asyncio.create_task(self._end(stop, working))
        try:
            await working
        except asyncio.CancelledError:
            if not stop.is_set():
                raise
        finally:
            announcing.cancel()
            ending.cancel()
            self.ready_file.unlink(missing_ok=True)

    async def _end(self, stop: asyncio.Event, working: asyncio.Future[None]) -> None:
        """Break off what has not ended DRAIN_S after the stop; everything is safe to break off."""
        await stop.wait()
        await asyncio.sleep(DRAIN_S)
        log.warning("%s: not drained in %g s, broken off", self.name, DRAIN_S)
        working.cancel()

    def _on_signal(self, stop: asyncio.Event, number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        log.info("%s: stopping", self.name)
        stop.set()

    async def _announce(self, ready: asyncio.Event, port: int) -> None:
        await ready.wait()
        self.ready_file.parent.mkdir(parents=True, exist_ok=True)
        announce_ready(self.ready_file, port)
        log.info("%s: ready, metrics on port %d", self.name, port)


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


@contextmanager
def open_edge(
    project: Project, name: str, metrics: EdgeMetrics | None = None
) -> Iterator[tuple[Spool, EdgeClient]]:
    """The spool of one edge and a client on it; ConfigError while another process has it."""
    config = project.config
    summariser = Summariser(project.schemas)
    spool = Spool(config.spool_path(name), config.edge.lanes, config.edge, metrics, summariser)
    try:
        plans = edge_plans(
            project.packs, config.regions, project.schemas.events,
            project.keys.store,
        )  # fmt: skip
        with EdgeClient(config, project.schemas, spool, project.packs.region_of, metrics, plans) as client:
            yield spool, client
    finally:
        spool.close()


def forwarder(project: Project, name: str, spool: Spool, metrics: EdgeMetrics | None = None) -> Forwarder:
    """What empties the spool towards every region's Kafka."""
    config = project.config
    writers = {
        region: KafkaWriter(project.cluster(region)) for region in config.regions if project.collects(region)
    }
    report = EdgeReport(name, config.edge.lanes, project.schemas, project.topics)
    return Forwarder(spool, writers, project.topics, config.edge, metrics, report)


async def run_edge(project: Project, region: str, role: Role) -> None:
    """An edge agent: events in over HTTP, into the spool, towards Kafka; until told to stop.

    Starts and accepts also while every broker is away. ``/metrics`` is on the port of its door.
    """
    registry = CollectorRegistry()
    metrics = EdgeMetrics(registry)
    with open_edge(project, region, metrics) as (spool, client):
        door = HttpIngest(client, registry, role.metrics_port or project.config.edge.http_port)
        async with started(door):
            ready = asyncio.Event()
            ready.set()
            await role.run(forwarder(project, region, spool, metrics).run, ready, door.port)


Runner = Callable[[Project, str, Role], Coroutine[Any, Any, None]]
