"""Topics: made, checked, named by their identity.

Comes in: :class:`TopicSpec`. Goes out: topics with leaders, topic ids, cluster id, partition counts.
Invariant: an existing topic is never changed; one that does not fit stops the start, because a changed
partition count would send a source's events to two partitions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, for_code

from connectors.kafka_client import (
    EARLIEST,
    LATEST,
    ClusterClient,
    Partition,
    WireError,
    backoff_s,
    connection_options,
    list_offsets,
)
from connectors.kafka_metadata import TopicsRequest
from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError, TransientError

_EXISTS = 36
_UNKNOWN_TOPIC = 3
_NOT_ALLOWED = (17, 29)  # no valid name, no access
_WAIT_FACTOR = 3  # topics may take longer than one request: metadata travels to every broker

# A small state topic: read as a whole at every start, so it is compacted soon and in small segments.
_COMPACTED = {
    "cleanup.policy": "compact",
    "segment.ms": "600000",
    "segment.bytes": "16777216",
    "min.cleanable.dirty.ratio": "0.1",
    "max.compaction.lag.ms": "900000",
}


@dataclass(frozen=True)
class TopicSpec:
    """A topic that has to exist; ``config`` are topic settings of its own and win over ours."""

    name: str
    partitions: int
    compacted: bool = False
    config: Mapping[str, str] = field(default_factory=dict)

    def settings(self, replication_factor: int) -> dict[str, str]:
        """Topic settings: with three replicas or more, two must have a record before it is acknowledged."""
        safe = {"min.insync.replicas": "2"} if replication_factor >= 3 else {}
        return {**safe, **(_COMPACTED if self.compacted else {}), **self.config}


@dataclass(frozen=True)
class TopicState:
    """What the cluster says of a topic."""

    id: str
    partitions: int
    led: bool  # every partition has a leader


class KafkaAdmin:
    """Administration of one cluster; start it, use it, stop it."""

    def __init__(self, cluster: ClusterConfig) -> None:
        self._cluster = cluster
        self._client = ClusterClient(cluster)
        self._admin: AIOKafkaAdminClient | None = None

    async def start(self) -> None:
        """Connect. Raises TransientError when no broker answers."""
        await self._client.start()
        admin = AIOKafkaAdminClient(**connection_options(self._cluster))
        try:
            await admin.start()
        except (KafkaError, OSError) as error:
            await self._client.close()
            raise self._transient("connect to Kafka", type(error).__name__) from error
        self._admin = admin

    async def stop(self) -> None:
        """Close the connections."""
        admin, self._admin = self._admin, None
        if admin is not None:
            await admin.close()
        await self._client.close()

    async def ensure_topics(self, topics: Iterable[TopicSpec]) -> None:
        """Make what is missing and wait until every partition has a leader.

        Raises ConfigError when a topic exists with another partition count or the broker refuses the
        settings, TransientError when leaders do not appear.
        """
        wanted = {spec.name: spec for spec in topics}
        there = await self._describe(wanted)
        self._check_counts(wanted, there)
        missing = [spec for name, spec in wanted.items() if name not in there]
        if missing:
            await self._create(missing)
        async with self._patience("create topics", "partitions without a leader"):
            for attempt in range(1, 1_000_000):
                there = await self._describe(wanted)
                if len(there) == len(wanted) and all(state.led for state in there.values()):
                    break
                await asyncio.sleep(backoff_s(attempt))
        self._check_counts(wanted, there)

    async def delete_topics(self, names: Iterable[str]) -> None:
        """Delete topics that exist; returns when the cluster no longer lists them."""
        names = list(names)
        there = await self._describe(names)
        try:
            await self._started.delete_topics(list(there))
        except (KafkaError, OSError) as error:
            raise self._transient("delete topics", type(error).__name__) from error
        async with self._patience("delete topics", "still listed"):
            attempt = 0
            while await self._describe(names):
                attempt += 1
                await asyncio.sleep(backoff_s(attempt))

    async def topic_ids(self, names: Iterable[str]) -> dict[str, str]:
        """UUID text per topic: a recreated topic has another one. A topic that does not exist is left out."""
        return {name: state.id for name, state in (await self._describe(names)).items()}

    async def partitions(self, name: str) -> int:
        """Partition count; 0 when the topic does not exist."""
        state = (await self._describe([name])).get(name)
        return 0 if state is None else state.partitions

    async def cluster_id(self) -> str:
        """The identity the cluster gave itself when it was formatted."""
        return str((await self._metadata([])).cluster_id)

    async def end_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Next offset to be written per partition. Raises TransientError."""
        return await self._offsets(partitions, LATEST)

    async def beginning_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """First offset still held per partition. Raises TransientError."""
        return await self._offsets(partitions, EARLIEST)

    async def _offsets(self, partitions: Iterable[Partition], which: int) -> dict[Partition, int]:
        wanted = dict.fromkeys(partitions, which)
        return await list_offsets(self._client, wanted, self._cluster.request_timeout_s)

    def _check_counts(self, wanted: Mapping[str, TopicSpec], there: Mapping[str, TopicState]) -> None:
        wrong = [
            f"{name}: expected {wanted[name].partitions} partitions, found {state.partitions}"
            for name, state in there.items()
            if state.partitions != wanted[name].partitions
        ]
        if wrong:
            raise ConfigError(
                "; ".join(wrong),
                operation="check topics",
                place=self._client.place,
                remedy="set regions.<name>.partitions to what is there, or use another topic_prefix",
            )

    async def _create(self, missing: list[TopicSpec]) -> None:
        replicas = self._cluster.replication_factor
        new = [
            NewTopic(spec.name, spec.partitions, replicas, topic_configs=spec.settings(replicas))
            for spec in missing
        ]
        last = ""
        async with self._patience("create topics", lambda: last):
            for attempt in range(1, 1_000_000):
                last = ""
                try:
                    response = await self._started.create_topics(new)
                    for _, code, *_ in response.topic_errors:
                        last = self._created(code) or last
                except (KafkaError, OSError) as error:
                    last = type(error).__name__
                if not last:
                    return
                await asyncio.sleep(backoff_s(attempt))

    def _created(self, code: int) -> str:
        """Nothing when made (now or by another), the error's name to try again; ConfigError when it never
        can.
        """
        if code in (0, _EXISTS):
            return ""
        error = for_code(code)
        if getattr(error, "retriable", False):
            return error.__name__
        raise self._refused("create topics", error.__name__)

    async def _describe(self, names: Iterable[str]) -> dict[str, TopicState]:
        names = list(names)
        found: dict[str, TopicState] = {}
        if not names:
            return found
        for code, name, topic_id, _, partitions, *_ in (await self._metadata(names)).topics:
            if code == _UNKNOWN_TOPIC:
                continue
            if code in _NOT_ALLOWED:
                raise self._refused("describe topics", for_code(code).__name__)
            led = code == 0 and all(row[0] == 0 and row[2] >= 0 for row in partitions)
            found[name] = TopicState(str(topic_id), len(partitions), led)
        return found

    async def _metadata(self, names: list[str]) -> Any:
        last = ""
        async with self._patience("read metadata", lambda: last):
            for attempt in range(1, 1_000_000):
                try:
                    return await self._client.send(self._client.any_node(), TopicsRequest(names))
                except WireError as error:
                    last = error.name
                await asyncio.sleep(backoff_s(attempt))
                await self._client.refresh()

    @property
    def _started(self) -> AIOKafkaAdminClient:
        if self._admin is None:
            raise self._transient("ask Kafka", "not started")
        return self._admin

    def _patience(self, operation: str, problem: Any) -> _Patience:
        return _Patience(
            self._cluster.request_timeout_s * _WAIT_FACTOR, operation, self._client.place, problem
        )

    def _refused(self, operation: str, name: str) -> ConfigError:
        return ConfigError(
            f"broker refuses ({name})",
            operation=operation,
            place=self._client.place,
            remedy="check replication_factor, topic names and settings, and the access list",
        )

    def _transient(self, operation: str, problem: str) -> TransientError:
        return TransientError(problem, operation=operation, place=self._client.place)


class _Patience:
    """``async with``: the block under a deadline; TransientError with the last problem when it passes."""

    def __init__(self, limit_s: float, operation: str, place: str, problem: Any) -> None:
        self._limit_s, self._operation, self._place, self._problem = limit_s, operation, place, problem
        self._timeout = asyncio.timeout(limit_s)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        try:
            await self._timeout.__aexit__(*error)
        except TimeoutError:
            problem = self._problem() if callable(self._problem) else self._problem
            raise TransientError(
                f"not done within {self._limit_s} s ({problem})", operation=self._operation, place=self._place
            ) from None
