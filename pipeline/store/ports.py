"""What the store writer needs of the outside, and what it is told to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline.config import FlushConfig
from pipeline.store.account import Source, StoreState
from pipeline.store.decode import Curated, Door
from pipeline.topics import LegTopics

TopicPartition = tuple[str, int]


class Store(Protocol):
    """What the writer needs of a store. Called from one thread at a time; calls block."""

    def state(self) -> StoreState: ...
    def ensure_table(self, event: str, schema: pa.Schema) -> None: ...
    def commit(
        self, rows: Mapping[str, pa.Table], account: pa.Table, expected: Mapping[Source, int]
    ) -> object: ...


class Reader(Protocol):
    """What the writer needs of a consumer: started, with partitions assigned by hand."""

    async def assign(self, positions: dict[TopicPartition, int]) -> None: ...
    async def fetch(self, timeout_s: float) -> list[Any]: ...
    async def commit(self, offsets: dict[TopicPartition, int]) -> None: ...
    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]: ...
    async def beginning_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]: ...


class Cluster(Protocol):
    """Who the topics are."""

    async def cluster_id(self) -> str: ...
    async def topic_ids(self, names: list[str]) -> dict[str, str]: ...
    async def partitions(self, name: str) -> int: ...


class Metrics(Protocol):
    """What the writer counts; :class:`pipeline.metrics.StoreMetrics` is one."""

    def stored(self, event: str, count: int) -> None: ...
    def repeats(self, event: str, count: int) -> None: ...
    def committed(self, seconds: float, trigger: str) -> None: ...
    def end_to_end(self, event: str, seconds: np.ndarray) -> None: ...
    def lag(self, event: str, records: int) -> None: ...


class NoMetrics:
    """Counts nothing."""

    def stored(self, event: str, count: int) -> None:
        """Nothing."""

    def repeats(self, event: str, count: int) -> None:
        """Nothing."""

    def committed(self, seconds: float, trigger: str) -> None:
        """Nothing."""

    def end_to_end(self, event: str, seconds: np.ndarray) -> None:
        """Nothing."""

    def lag(self, event: str, records: int) -> None:
        """Nothing."""


@dataclass(frozen=True)
class StorePorts:
    """The writer's connections to the outside."""

    store: Store
    reader: Reader
    cluster: Cluster
    metrics: Metrics = field(default_factory=NoMetrics)


@dataclass(frozen=True)
class Inflow:
    """One leg that ends in the store: its topics, and the events that it carries."""

    topics: LegTopics
    events: tuple[str, ...]

    @property
    def curated(self) -> tuple[Curated, ...]:
        """Its curated topics."""
        return tuple(Curated(self.topics, event) for event in self.events)


@dataclass(frozen=True)
class StorePlan:
    """What one writer does: everything that flows into one region's store, from edges or over borders.

    ``door(schema_id)`` raises when the region may not hold such rows.
    """

    inflows: tuple[Inflow, ...]
    door: Door
    flush: FlushConfig = field(default_factory=FlushConfig)
    stop_timeout_s: float = 15.0

    @property
    def curated(self) -> dict[str, Curated]:
        """Every curated source by topic."""
        return {source.topic: source for inflow in self.inflows for source in inflow.curated}

    @property
    def topics(self) -> list[str]:
        """All that the writer reads."""
        return [*self.curated, *(inflow.topics.stats for inflow in self.inflows)]
