"""What a reader takes from: pieces of fetch responses, turned into columns.

Comes in: positions. Goes out: :class:`Fetched`. Invariant: a piece leaves its lane only when its columns are
handed out, so a cancelled :meth:`RawSource.take` loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping

from connectors.kafka_client import ClusterClient, Partition, list_offsets
from connectors.kafka_fetch import FetchLimits, Lane, OutOfRange, Piece, RawFetch
from connectors.kafka_records import BytesCorrupt, Fetched, parse_batches
from pipeline.config import ClusterConfig

_THREAD_FROM_BYTES = 32_768  # below it a hop to a thread costs more than parsing in place
_ARROW_BYTES_MAX = 1 << 30  # a binary array counts its bytes in 31 bits
_Parsed = tuple[Fetched, int] | BytesCorrupt


class RawSource:
    """Our own fetch requests; decompression bounded per batch."""

    def __init__(
        self, cluster: ClusterConfig, limits: FetchLimits, batch_decompressed_bytes_max: int
    ) -> None:
        self._timeout_s = cluster.request_timeout_s
        self._bytes_max = min(batch_decompressed_bytes_max, _ARROW_BYTES_MAX)
        self._client = ClusterClient(cluster)
        self._fetch = RawFetch(self._client, limits, cluster.request_timeout_s)

    async def start(self) -> None:
        await self._client.start()
        self._fetch.start()

    async def stop(self) -> None:
        await self._fetch.stop()
        await self._client.close()

    async def follow(self, topics: Iterable[str]) -> None:
        await self._client.follow(topics)

    def open(self, partition: Partition, offset: int, on_out_of_range: OutOfRange) -> None:
        self._fetch.open(partition, offset, on_out_of_range)

    def close(self, partition: Partition) -> None:
        self._fetch.close(partition)

    def position(self, partition: Partition) -> int:
        return self._fetch.lanes[partition].position

    async def offsets(self, which: Mapping[Partition, int]) -> dict[Partition, int]:
        return await list_offsets(self._client, which, self._timeout_s)

    async def take(self, timeout_s: float) -> list[Fetched]:
        """The front piece of every lane; waits up to ``timeout_s`` for one."""
        self._raise_errors()
        if not self._fetch.has_ready():
            self._fetch.ready.clear()
            # Not wait_for: up to Python 3.11 it can swallow a cancellation that meets the result.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._fetch.ready.wait()
            self._raise_errors()
        return await self._hand_out()

    def _raise_errors(self) -> None:
        self._fetch.raise_if_broken()
        for lane in self._fetch.lanes.values():
            if lane.error is not None and not lane.pieces:
                raise lane.error

    async def _hand_out(self) -> list[Fetched]:
        taken = {partition: lane for partition, lane in self._fetch.lanes.items() if lane.pieces}
        pieces = {partition: lane.pieces[0] for partition, lane in taken.items()}
        if sum(len(piece.data) for piece in pieces.values()) < _THREAD_FROM_BYTES:
            parsed = _parse(pieces, self._bytes_max)
        else:
            parsed = await asyncio.to_thread(_parse, pieces, self._bytes_max)
        fetched: list[Fetched] = []
        for partition, lane in taken.items():
            if self._fetch.lanes.get(partition) is lane:  # neither sought nor closed meanwhile
                self._settle(partition, lane, parsed[partition], fetched)
        self._fetch.consumed()
        return fetched

    def _settle(self, partition: Partition, lane: Lane, parsed: _Parsed, fetched: list[Fetched]) -> None:
        if isinstance(parsed, BytesCorrupt):
            self._fetch.distrust(partition, lane, parsed.reason)
            return
        columns, used = parsed
        piece = lane.pieces[0]
        lane.suspect = 0
        lane.position = columns.next_offset
        if columns.next_offset < piece.end:
            lane.pieces[0] = Piece(columns.next_offset, piece.end, piece.data[used:])
        else:
            lane.pieces.popleft()
        if columns.next_offset > columns.first_offset:
            fetched.append(columns)


def _parse(pieces: dict[Partition, Piece], bytes_max: int) -> dict[Partition, _Parsed]:
    results: dict[Partition, _Parsed] = {}
    for partition, piece in pieces.items():
        try:
            results[partition] = parse_batches(
                piece.data, Fetched(*partition, piece.start, piece.start), bytes_max
            )
        except BytesCorrupt as error:
            results[partition] = error
    return results
