"""Read one partition from an offset to its present end: how a stage loads what it wrote there before.

Comes in: topic, partition, first offset. Goes out: runs of records, up to the end of the log as it was
when the reading began. A start below what the topic still holds begins at what is there.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from connectors.kafka_reader import KafkaReader
from connectors.kafka_records import Fetched
from pipeline.config import ClusterConfig, LimitsConfig
from pipeline.errors import TransientError


class LogScanner:
    """Scans logs of one cluster; each scan has a connection of its own and closes it."""

    def __init__(self, cluster: ClusterConfig, limits: LimitsConfig) -> None:
        self._cluster = cluster
        self._limits = limits

    async def __call__(self, topic: str, partition: int, start: int) -> AsyncIterator[Fetched]:
        """Yield runs covering ``[start, end)``. Raises TransientError when nothing comes for the cluster's
        request timeout."""
        key = (topic, partition)
        reader = KafkaReader(self._cluster, None, self._limits)
        await reader.start()
        try:
            end = (await reader.end_offsets([key]))[key]
            position = max(start, (await reader.beginning_offsets([key]))[key])
            await reader.assign({key: position}, on_out_of_range="earliest")
            heard = time.monotonic()
            while position < end:
                for fetched in await reader.fetch(0.5):
                    position, heard = fetched.next_offset, time.monotonic()
                    yield fetched
                if time.monotonic() - heard > self._cluster.request_timeout_s:
                    raise TransientError("no answer in time", operation="scan", place=f"{topic}[{partition}]")
        finally:
            await reader.stop()
