"""Kafka to columns: positions of our own, whole batches, read ahead.

Comes in: topics (in a group) or partitions with positions. Goes out: :class:`Fetched` per partition.
Invariants: what is returned continues exactly where the last return (or seek) of the partition ended; nothing
is skipped except what ``refused`` names; a position outside the log is an error, never a silent reset.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from connectors.kafka_client import EARLIEST, LATEST, Partition
from connectors.kafka_fetch import FetchLimits, OutOfRange
from connectors.kafka_group import GroupMember, OnPartitions
from connectors.kafka_public import PublicSource
from connectors.kafka_records import Fetched
from connectors.kafka_source import RawSource
from pipeline.config import ClusterConfig, LimitsConfig, ProcessorConfig
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class ReaderOptions:
    """What a reader may be told beyond cluster, group and limits."""

    fetch: ProcessorConfig = field(default_factory=ProcessorConfig)
    # A name kept across restarts: no rebalance when its holder comes back within the session timeout.
    group_instance_id: str | None = None
    raw: bool = True  # False: aiokafka's own reader, slower, no bound on decompression

    def consumer_options(self) -> dict[str, Any]:
        """The group's side: a member that is silent for the session timeout loses its partitions."""
        session_ms = int(self.fetch.session_timeout_s * 1000)
        return {
            "group_instance_id": self.group_instance_id,
            "session_timeout_ms": session_ms,
            "heartbeat_interval_ms": min(1000, session_ms // 5),  # also how soon a rebalance is noticed
            "rebalance_timeout_ms": max(30_000, session_ms),
            "fetch_max_wait_ms": self.fetch.fetch_wait_max_ms,
            "max_partition_fetch_bytes": self.fetch.fetch_bytes_max,
        }


class Source(Protocol):
    """Where the bytes come from: our own fetch requests, or aiokafka's public reader."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def follow(self, topics: Iterable[str]) -> None:
        """Learn who leads these topics."""
        ...

    def open(self, partition: Partition, offset: int, on_out_of_range: OutOfRange) -> None:
        """Read from there."""
        ...

    def close(self, partition: Partition) -> None:
        """Read it no longer."""
        ...

    def position(self, partition: Partition) -> int:
        """Next offset that :meth:`take` returns."""
        ...

    async def take(self, timeout_s: float) -> list[Fetched]:
        """As :meth:`KafkaReader.fetch`."""
        ...

    async def offsets(self, which: Mapping[Partition, int]) -> dict[Partition, int]:
        """LATEST or EARLIEST per partition."""
        ...


class KafkaReader:
    """One consumer of a cluster; use from one task, the rebalance callbacks may seek and commit."""

    def __init__(
        self,
        cluster: ClusterConfig,
        group: str | None,
        limits: LimitsConfig,
        options: ReaderOptions | None = None,
    ) -> None:
        options = options or ReaderOptions()
        self._place = cluster.bootstrap
        self._group = group
        self._member = GroupMember(cluster, group, options.consumer_options(), own_reader=options.raw)
        self._joined = not options.raw
        self._source: Source
        if options.raw:
            limits_ = FetchLimits(
                options.fetch.fetch_bytes_max, options.fetch.fetch_wait_max_ms, options.fetch.fetch_linger_ms
            )
            self._source = RawSource(cluster, limits_, limits.batch_decompressed_bytes_max)
        else:
            self._source = PublicSource(self._member)
        self._mine: set[Partition] = set()
        self._opening: dict[Partition, int] | None = None  # seeks made while an assignment callback runs
        self._on_out_of_range: OutOfRange = "stop"

    async def start(self) -> None:
        """Connect. Raises TransientError when no broker answers, ConfigError for unusable settings."""
        await self._source.start()

    async def stop(self) -> None:
        """Leave the group and close; the revoke callback is not called: drain and commit before."""
        await self._source.stop()
        if self._joined:
            await self._member.stop()

    async def subscribe(
        self, topics: Iterable[str], on_assigned: OnPartitions, on_revoked: OnPartitions
    ) -> None:
        """Join the group. Both callbacks get a sorted list of (topic, partition) and are awaited in the
        rebalance.

        ``on_assigned`` seeks; a partition it does not seek starts at the group's committed offset, else at
        the log's start. By the time ``on_revoked`` runs, nothing more of its partitions is returned; it may
        commit. What a callback raises comes out of the next :meth:`fetch`; after ``on_assigned`` failed, of
        every one until the next assignment: its partitions are not read.
        """
        topics = list(topics)
        await self._join("subscribe")
        await self._source.follow(topics)

        async def assigned(partitions: list[Partition]) -> None:
            self._mine = set(partitions)
            opening: dict[Partition, int] = {}
            self._opening = opening
            try:
                await on_assigned(partitions)
                await self._fill_positions(partitions, opening)
            finally:
                self._opening = None
            for partition, offset in opening.items():
                self._source.open(partition, offset, "stop")

        async def revoked(partitions: list[Partition]) -> None:
            for partition in partitions:
                self._source.close(partition)
            try:
                if partitions:
                    await on_revoked(partitions)
            finally:
                self._mine = set()

        self._member.subscribe(topics, assigned, revoked)

    async def assign(self, positions: Mapping[Partition, int], on_out_of_range: OutOfRange = "stop") -> None:
        """Read exactly these partitions from these offsets; replaces an earlier assignment.

        ``on_out_of_range="earliest"``: a position before the log's start goes on at the start, and the next
        Fetched's ``first_offset`` shows it. With a group, :meth:`commit` leaves hints for lag tools.
        """
        for partition in self._mine - set(positions):
            self._source.close(partition)
        self._on_out_of_range = on_out_of_range
        self._mine = set(positions)
        if self._group is not None or self._joined:
            await self._join("assign")
            self._member.assign(positions)
        await self._source.follow({topic for topic, _ in positions})
        for partition, offset in positions.items():
            self._source.open(partition, offset, on_out_of_range)

    def seek(self, partition: Partition, offset: int) -> None:
        """Continue ``partition`` at ``offset``. Raises ConfigError when it is not assigned."""
        if partition not in self._mine:
            raise ConfigError("partition is not assigned", operation="seek", place=_name(partition))
        if self._opening is not None:
            self._opening[partition] = offset
        else:
            self._source.open(partition, offset, self._on_out_of_range)

    def assignment(self) -> set[Partition]:
        """Partitions owned now."""
        return set(self._mine)

    def position(self, partition: Partition) -> int:
        """Next offset to be returned. Raises ConfigError when the partition is not read."""
        try:
            return self._source.position(partition)
        except KeyError:
            raise ConfigError("partition is not read", operation="position", place=_name(partition)) from None

    async def fetch(self, timeout_s: float) -> list[Fetched]:
        """What has come, at most one Fetched per partition; [] when nothing came within ``timeout_s``.

        Waits through outages: a broker that is away gives [] until it is back. Raises StoreCorrupt for a
        position outside the log and for bytes that stay corrupt, ConfigError when reading is forbidden, and
        what a rebalance callback raised. A partition that failed is tried again after :meth:`seek`.
        """
        if self._joined:
            self._member.check()
        fetched = await self._source.take(timeout_s)
        if self._joined and not fetched:  # what was taken is taken: an error now would lose it, and can wait
            self._member.check()
        return fetched

    async def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Write next offsets for the group. Raises OwnershipLost, TransientError; ConfigError without a
        group.
        """
        await self._join("commit")
        await self._member.commit(offsets)

    async def committed(self, partitions: Iterable[Partition]) -> dict[Partition, int | None]:
        """The group's next offsets, None where there is none. Raises TransientError; ConfigError without a
        group.
        """
        await self._join("read committed offsets")
        return {partition: await self._member.committed(partition) for partition in partitions}

    async def end_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Next offset to be written per partition. Raises TransientError."""
        return await self._source.offsets(dict.fromkeys(partitions, LATEST))

    async def beginning_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """First offset still held per partition. Raises TransientError."""
        return await self._source.offsets(dict.fromkeys(partitions, EARLIEST))

    async def _join(self, operation: str) -> None:
        if self._group is None and not (operation == "assign" and self._joined):
            raise ConfigError("needs a group", operation=operation, place=self._place)
        if not self._joined:
            await self._member.start()
            self._joined = True

    async def _fill_positions(self, partitions: list[Partition], opening: dict[Partition, int]) -> None:
        for partition in partitions:
            if partition in opening:
                continue
            offset = await self._member.committed(partition)
            if offset is None:
                offset = (await self.beginning_offsets([partition]))[partition]
            opening.setdefault(partition, offset)


def _name(partition: Partition) -> str:
    return f"{partition[0]}[{partition[1]}]"
