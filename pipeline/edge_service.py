"""The join of an edge agent: its spool, its doors, its forwarder.

Comes in: an installation. Goes out: an agent that runs until it is told to stop. Invariant: it starts and
takes events while the core and every broker are away. Nothing of another role is imported: see
:mod:`pipeline.installation`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from connectors.http_ingest import HttpIngest
from connectors.kafka_writer import KafkaWriter
from pipeline.edge import EdgeClient, EdgeReport, Forwarder, Spool, Summariser
from pipeline.edge.senders import Senders
from pipeline.errors import ConfigError
from pipeline.installation import Installation
from pipeline.metrics import EdgeMetrics, MqttMetrics
from pipeline.policy.minimise import edge_plans
from pipeline.role import Role, started

if TYPE_CHECKING:
    from connectors.grpc_ingest import GrpcIngest
    from connectors.mqtt_bridge import MqttBridge

log = logging.getLogger(__name__)


@contextmanager
def open_edge(
    installation: Installation, name: str, metrics: EdgeMetrics | None = None
) -> Iterator[tuple[Spool, EdgeClient]]:
    """The spool of one edge and a client on it; ConfigError while another process has it."""
    config = installation.config
    summariser = Summariser(installation.schemas)
    spool = Spool(config.spool_path(name), config.edge.lanes, config.edge, metrics, summariser)
    try:
        plans = edge_plans(
            installation.packs, config.regions, installation.schemas.events,
            installation.keys.store,
        )  # fmt: skip
        with EdgeClient(
            config, installation.schemas, spool, installation.packs.region_of, metrics, plans
        ) as client:
            yield spool, client
    finally:
        spool.close()


def forwarder(
    installation: Installation, name: str, spool: Spool, metrics: EdgeMetrics | None = None
) -> Forwarder:
    """What empties the spool towards every region's Kafka."""
    config = installation.config
    writers = {
        region: KafkaWriter(installation.cluster(region))
        for region in config.regions
        if installation.collects(region)
    }
    report = EdgeReport(name, config.edge.lanes, installation.schemas, installation.topics)
    return Forwarder(spool, writers, installation.topics, config.edge, metrics, report)


def default_region(installation: Installation) -> str:
    """The one configured region that collects, for an agent of a region. ConfigError when there are more."""
    collecting = [region for region in installation.config.regions if installation.collects(region)]
    if len(collecting) != 1:
        raise ConfigError(
            f"{len(collecting)} configured regions collect, expected one", operation="edge",
            remedy="say --region",
        )  # fmt: skip
    return collecting[0]


async def run_edge(installation: Installation, region: str, role: Role) -> None:
    """An edge agent: events in over HTTP, gRPC and MQTT, into the spool, towards Kafka; until told to stop.

    ``/metrics`` is on the HTTP port, unless ``role`` names another one for it.
    """
    edge = installation.config.edge
    registry = CollectorRegistry()
    metrics = EdgeMetrics(registry)
    senders = Senders(edge.senders, metrics.refused_sender)
    if senders.open:
        log.warning("%s: open to this machine only, and to all of it: no [edge.senders]", role.name)
    with open_edge(installation, region, metrics) as (spool, client):
        http = HttpIngest(client, registry, role.metrics_port or edge.http_port, edge.listen, senders)
        ports: dict[str, int] = {}
        async with AsyncExitStack() as doors:
            await doors.enter_async_context(started(http))
            if edge.grpc:
                door = _grpc_door(client, installation, senders)
                ports["grpc_port"] = (await doors.enter_async_context(started(door))).port
            if edge.mqtt is not None:
                await doors.enter_async_context(started(_mqtt_bridge(client, installation, registry)))
            ready = asyncio.Event()
            ready.set()
            work = forwarder(installation, region, spool, metrics).run
            await role.run(work, ready, http.port, ports)


def _grpc_door(client: EdgeClient, installation: Installation, senders: Senders) -> GrpcIngest:
    """Imported here: an agent without it (``grpc = false``) saves some 20 MB."""
    from connectors.grpc_ingest import GrpcIngest

    edge = installation.config.edge
    return GrpcIngest(client, edge.grpc_port, edge.listen, senders)


def _mqtt_bridge(client: EdgeClient, installation: Installation, registry: CollectorRegistry) -> MqttBridge:
    """Imported here for the same reason. ConfigError for a route that does not fit an event."""
    from connectors.mqtt_bridge import MqttBridge

    settings = installation.config.edge.mqtt
    assert settings is not None, "asked for"
    return MqttBridge(client, settings, MqttMetrics(registry), installation.schemas.events)
