"""Group membership and committed offsets, through aiokafka's public consumer.

Comes in: topics or partitions, a pair of callbacks. Goes out: who owns what, commits. Invariants: the
consumer's own fetcher is paused at assignment (positions and bytes are the reader's); what a callback raises
is kept for the next :meth:`GroupMember.check`, because aiokafka only logs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import (
    AuthenticationFailedError,
    CommitFailedError,
    GroupAuthorizationFailedError,
    IllegalGenerationError,
    IllegalStateError,
    KafkaError,
    RebalanceInProgressError,
    TopicAuthorizationFailedError,
    UnknownMemberIdError,
)

from connectors.kafka_client import Partition, connection_options
from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError, OwnershipLost, PipelineError, TransientError

OnPartitions = Callable[[list[Partition]], Awaitable[None]]
_POLL_EVERY_S = 0.5
_OWNERSHIP = (
    CommitFailedError,
    IllegalGenerationError,
    UnknownMemberIdError,
    RebalanceInProgressError,
    IllegalStateError,
)
_NOT_ALLOWED = (AuthenticationFailedError, GroupAuthorizationFailedError, TopicAuthorizationFailedError)


class GroupMember:
    """One consumer: in a group by subscription, or with partitions of its own choice."""

    def __init__(
        self,
        cluster: ClusterConfig,
        group: str | None,
        consumer_options: Mapping[str, Any],
        *,
        own_reader: bool = True,
    ) -> None:
        self._place = cluster.bootstrap
        self._own_reader = own_reader
        self._options = {"group_id": group, **consumer_options}
        self._cluster = cluster
        self._consumer: AIOKafkaConsumer | None = None
        self._failed: BaseException | None = None  # raised once
        self._unassigned: BaseException | None = None  # raised until an assignment succeeds
        self._poll: asyncio.Task[Any] | None = None
        self._polled_at = 0.0
        self.rebalancing = False

    @property
    def consumer(self) -> AIOKafkaConsumer:
        """The started public consumer."""
        if self._consumer is None:
            raise TransientError("not started", operation="ask Kafka", place=self._place)
        return self._consumer

    async def start(self) -> None:
        """Connect. Raises TransientError when no broker answers."""
        consumer = AIOKafkaConsumer(
            **connection_options(self._cluster),
            **self._options,
            enable_auto_commit=False,
            auto_offset_reset="none",
            partition_assignment_strategy=(RoundRobinPartitionAssignor,),
        )
        try:
            await consumer.start()
        except (KafkaError, OSError) as error:
            await consumer.stop()
            raise self.translated(error, "connect to Kafka") from error
        self._consumer = consumer

    async def stop(self) -> None:
        """Leave the group; the revoke callback is not called."""
        if self._poll is not None:
            self._poll.cancel()
            await asyncio.gather(self._poll, return_exceptions=True)
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()

    def subscribe(self, topics: Iterable[str], on_assigned: OnPartitions, on_revoked: OnPartitions) -> None:
        """Join the group; the callbacks are awaited inside the rebalance, one at a time."""
        self.rebalancing = True
        self.consumer.subscribe(list(topics), listener=_Listener(self, on_assigned, on_revoked))

    def assign(self, partitions: Iterable[Partition]) -> None:
        """Take exactly these partitions, without a group's say."""
        mine = [TopicPartition(*partition) for partition in partitions]
        self.consumer.assign(mine)
        self.quiet(mine)

    def quiet(self, partitions: Iterable[TopicPartition]) -> None:
        """Keep the consumer's own fetcher away from them: a position it need not look up, and paused."""
        for partition in partitions:
            self.consumer.pause(partition)
            self.consumer.seek(partition, 0)

    def check(self) -> None:
        """Raise what a callback or the coordinator raised; keeps the membership's poll clock going."""
        failed, self._failed = self._failed or self._unassigned, None
        if failed is not None:
            raise failed
        if not self._own_reader:
            return  # who reads through the consumer polls by that
        now = asyncio.get_running_loop().time()
        if self._poll is not None and self._poll.done():
            poll, self._poll = self._poll, None
            error = None if poll.cancelled() else poll.exception()
            if error is not None:
                raise self.translated(error, "read as a group") from error
        if self._poll is None and now - self._polled_at > _POLL_EVERY_S:
            self._polled_at = now
            self._poll = asyncio.create_task(self.consumer.getmany(timeout_ms=0), name="kafka group poll")

    def settled(self, error: BaseException | None, *, assigning: bool) -> None:
        """A callback ended: its error is kept, after an assignment until the next one, else for one check."""
        if assigning:
            self._unassigned = error
        else:
            self._failed = self._failed or error

    async def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Write the group's next offsets. Raises OwnershipLost, TransientError."""
        try:
            await self.consumer.commit({TopicPartition(*p): offset for p, offset in offsets.items()})
        except (KafkaError, OSError) as error:
            raise self.translated(error, "commit") from error

    def translated(self, error: BaseException, operation: str) -> BaseException:
        """The pipeline's error for one of aiokafka's."""
        name = type(error).__name__
        if isinstance(error, _OWNERSHIP):
            return OwnershipLost(
                name, operation=operation, place=self._place, remedy="drop the batch and seek"
            )
        if isinstance(error, _NOT_ALLOWED):
            return ConfigError(
                name, operation=operation, place=self._place, remedy="check access list and SASL"
            )
        if isinstance(error, PipelineError) or not isinstance(error, (KafkaError, OSError)):
            return error
        return TransientError(name, operation=operation, place=self._place)

    async def committed(self, partition: Partition) -> int | None:
        """The group's next offset, or None. Raises OwnershipLost, TransientError."""
        try:
            return await self.consumer.committed(TopicPartition(*partition))
        except (KafkaError, OSError) as error:
            raise self.translated(error, "read committed offsets") from error


class _Listener(ConsumerRebalanceListener):
    def __init__(self, member: GroupMember, on_assigned: OnPartitions, on_revoked: OnPartitions) -> None:
        self._member, self._on_assigned, self._on_revoked = member, on_assigned, on_revoked

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._member.rebalancing = True
        await self._call(self._on_revoked, revoked, assigning=False)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._member.quiet(assigned)
        await self._call(self._on_assigned, assigned, assigning=True)
        self._member.rebalancing = False

    async def _call(
        self, callback: OnPartitions, partitions: Iterable[TopicPartition], *, assigning: bool
    ) -> None:
        failed: BaseException | None = None
        try:
            await callback(sorted((tp.topic, tp.partition) for tp in partitions))
        except Exception as error:
            failed = error
        self._member.settled(failed, assigning=assigning)
