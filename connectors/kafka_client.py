"""The wire to one Kafka cluster: the only place that touches aiokafka below its public classes.

Comes in: :class:`pipeline.config.ClusterConfig`, protocol requests. Goes out: responses, leaders, one error
kind (:class:`WireError`). What is used of aiokafka beyond its documented API, kept here and checked by
``tests/contract/test_kafka_touch_points.py``: ``AIOKafkaClient`` (bootstrap, send, close, add_topic,
force_metadata_update, cluster) and the request classes of ``aiokafka.protocol``.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.errors import KafkaError, UnknownError, for_code
from aiokafka.helpers import create_ssl_context
from aiokafka.protocol.api import Request, Response
from aiokafka.protocol.offset import OffsetRequest

from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError, TransientError

Partition = tuple[str, int]
LATEST, EARLIEST = -1, -2  # timestamps of ListOffsets with a meaning of their own
_METADATA_AGE_MAX_MS = 60_000
_BACKOFF_MIN_S, _BACKOFF_MAX_S = 0.05, 2.0
# At DEBUG these print requests, responses and records, that is, values of events.
_TALKATIVE = ("aiokafka.conn", "aiokafka.producer.producer")


class WireError(Exception):
    """A request has no usable answer: not sent, sent and lost, or refused with an error code."""

    def __init__(self, name: str, code: int = -1) -> None:
        super().__init__(name)
        self.name = name
        self.code = code


def connection_options(cluster: ClusterConfig) -> dict[str, Any]:
    """Arguments that every aiokafka class takes: addresses, time limits, TLS and SASL.

    Raises ConfigError without an address, or when a certificate file cannot be read.
    """
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.INFO)
    if not cluster.bootstrap:
        raise ConfigError("bootstrap: expected host:port, got nothing", operation="connect to Kafka")
    options: dict[str, Any] = {
        "bootstrap_servers": cluster.bootstrap,
        "request_timeout_ms": int(cluster.request_timeout_s * 1000),
        "metadata_max_age_ms": _METADATA_AGE_MAX_MS,
        "security_protocol": cluster.security_protocol,
    }
    if cluster.security_protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(cluster)
    if cluster.security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = cluster.sasl_mechanism
        options["sasl_plain_username"] = cluster.sasl_username
        options["sasl_plain_password"] = cluster.sasl_password.get_secret_value()
    return options


def _ssl_context(cluster: ClusterConfig) -> Any:
    files = {
        name: str(path)
        for name, path in (
            ("cafile", cluster.ssl_cafile),
            ("certfile", cluster.ssl_certfile),
            ("keyfile", cluster.ssl_keyfile),
        )
        if path is not None
    }
    try:
        return create_ssl_context(**files)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(
            f"{', '.join('ssl_' + name for name in files)}: {error.strerror or 'not a usable PEM file'}",
            operation="connect to Kafka",
            place=cluster.bootstrap,
        ) from error


def backoff_s(attempt: int) -> float:
    """Seconds to wait before try ``attempt`` (1, 2, …): doubling, capped, with jitter."""
    ceiling = min(_BACKOFF_MAX_S, _BACKOFF_MIN_S * 2 ** min(attempt, 16))
    return random.uniform(_BACKOFF_MIN_S, ceiling)


class ClusterClient:
    """Connections and metadata of one cluster, for code that speaks the protocol itself."""

    def __init__(self, cluster: ClusterConfig) -> None:
        self.place = cluster.bootstrap
        self._cluster = cluster
        self._client: AIOKafkaClient | None = None
        self._refreshing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect to one broker. Raises TransientError when none answers."""
        client = AIOKafkaClient(**connection_options(self._cluster))
        try:
            await client.bootstrap()
        except (KafkaError, OSError) as error:
            await client.close()
            raise TransientError(
                f"no broker answers ({type(error).__name__})",
                operation="connect to Kafka",
                place=self.place,
                remedy="check bootstrap, user and certificates, and that the broker is up",
            ) from error
        self._client = client

    async def close(self) -> None:
        """Close all connections; requests in flight end in WireError."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    @property
    def client(self) -> AIOKafkaClient:
        """The started client."""
        if self._client is None:
            raise TransientError("not started", operation="ask Kafka", place=self.place)
        return self._client

    def leader(self, partition: Partition) -> int | None:
        """Node that leads the partition by our metadata, or None."""
        node = self.client.cluster.leader_for_partition(TopicPartition(*partition))
        return None if node in (None, -1) else int(node)

    async def follow(self, topics: Iterable[str]) -> None:
        """Keep metadata of these topics, and have it now if the cluster answers."""
        if [self.client.add_topic(topic) for topic in topics]:
            await self.refresh()

    async def refresh(self) -> None:
        """Ask for fresh metadata, once for all who wait; returns also when nobody answers."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh(), name="kafka metadata")
        await asyncio.shield(self._refreshing)

    async def _refresh(self) -> None:
        """When no known broker answers, begin again from the bootstrap addresses."""
        try:
            async with asyncio.timeout(self._cluster.request_timeout_s):
                done = await self.client.force_metadata_update()
            if not done:
                await self.client.bootstrap()
        except (KafkaError, OSError, TimeoutError):
            return  # still away: the caller backs off and comes back

    def any_node(self) -> int:
        """One of the brokers, at random. Raises WireError when none is known."""
        node = self.client.get_random_node()
        if node is None:
            raise WireError("NoBrokersAvailable")
        return int(node)

    async def send(self, node: int, request: Request[Any], *, aside: bool = False) -> Response:
        """One request to one node; ``aside`` uses a second connection, past long polls. Raises WireError."""
        group = ConnectionGroup.COORDINATION if aside else ConnectionGroup.DEFAULT
        try:
            return await self.client.send(node, request, group=group)
        except (KafkaError, OSError, TimeoutError, KeyError) as error:
            # KeyError: the connection was closed between aiokafka's look and its use of it.
            raise WireError(type(error).__name__) from error


def check_code(code: int) -> None:
    """Raise WireError, with the error's name, for a code other than 0."""
    if code:
        kind = for_code(code)
        raise WireError(f"error code {code}" if kind is UnknownError else kind.__name__, code)


async def list_offsets(
    client: ClusterClient, which: Mapping[Partition, int], timeout_s: float
) -> dict[Partition, int]:
    """Offsets by time per partition: LATEST (the end), EARLIEST (the start of the log) or milliseconds.

    Raises TransientError when the leaders have not answered within ``timeout_s``.
    """
    found: dict[Partition, int] = {}
    last = "no leader"
    try:
        async with asyncio.timeout(timeout_s):
            await client.follow({topic for topic, _ in which})
            for attempt in range(1, 1_000_000):
                try:
                    for partition, time_ms in which.items():
                        if partition not in found:
                            found[partition] = await _list_offset(client, partition, time_ms)
                    return found
                except WireError as error:
                    last = error.name
                await asyncio.sleep(backoff_s(attempt))
                await client.refresh()
    except TimeoutError:
        pass
    raise TransientError(
        f"no answer within {timeout_s} s ({last})", operation="list offsets", place=client.place
    )


async def _list_offset(client: ClusterClient, partition: Partition, time_ms: int) -> int:
    node = client.leader(partition)
    if node is None:
        raise WireError("no leader")
    topic, number = partition
    response = await client.send(node, OffsetRequest(-1, 0, [(topic, [(number, time_ms)])]), aside=True)
    for _, rows in response.topics:
        for _, code, _, offset in rows:
            check_code(code)
            return int(offset)
    raise WireError("empty answer")
