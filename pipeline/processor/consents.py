"""What people have said, followed on its topic, so that every event after it is processed accordingly.

Comes in: the region's ``consent`` topic (compacted, one partition; key ``<purpose>|<consent name>``, value
one ``control.consent`` record, or none: forgotten). Goes out: an up-to-date :class:`ConsentBook`. Invariant:
after :meth:`ConsentFeed.catch_up` the book holds everything that was acknowledged before the call, so a batch
that is computed then honours every choice made before it was looked at.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Protocol

import pyarrow as pa

from pipeline.control_records import decode_control, encode_control
from pipeline.errors import RecordError, StoreCorrupt, TransientError
from pipeline.policy.consent import Choice, ConsentBook
from pipeline.schemas import SchemaStore

PARTITION = 0
ANSWER_WAIT_S = 10.0
TopicPartition = tuple[str, int]


class Reader(Protocol):
    """What the feed needs of a consumer without a group."""

    async def assign(self, positions: Mapping[TopicPartition, int], on_out_of_range: Any = ...) -> None: ...
    async def fetch(self, timeout_s: float) -> list[Any]: ...
    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]: ...


class ConsentFeed:
    """Reads one region's choices into its book, from the first record on."""

    def __init__(self, reader: Reader, topic: str, schemas: SchemaStore, book: ConsentBook) -> None:
        self.book = book
        self._reader, self._schemas = reader, schemas
        self._partition: TopicPartition = (topic, PARTITION)
        self._position: int | None = None
        self._turn = asyncio.Lock()

    async def catch_up(self) -> None:
        """Read to the end of the log as it is now. Raises TransientError (no answer: decide nothing),
        StoreCorrupt (a record that is no choice: whom it speaks of cannot be told)."""
        async with self._turn:
            if self._position is None:
                await self._reader.assign({self._partition: 0}, on_out_of_range="earliest")
                self._position = 0
            end = (await self._reader.end_offsets([self._partition]))[self._partition]
            heard = time.monotonic()
            while self._position < end:
                for run in await self._reader.fetch(0.5):
                    self._learn(run)
                    self._position, heard = run.next_offset, time.monotonic()
                if time.monotonic() - heard > ANSWER_WAIT_S:
                    raise TransientError(
                        "no answer in time", operation="reading consent", place=self._partition[0]
                    )

    def _learn(self, run: Any) -> None:
        if run.refused or run.keys is None:
            raise self._corrupt(run.first_offset)
        for key, value in zip(run.keys.to_pylist(), run.values.to_pylist(), strict=True):
            purpose, _, name = (key or b"").decode("ascii", "replace").partition("|")
            if not purpose or not name:
                raise self._corrupt(run.first_offset)
            self.book.learn(purpose, name, None if value is None else self._choice(value, run.first_offset))

    def _choice(self, value: bytes, offset: int) -> Choice:
        try:
            kind, record = decode_control(self._schemas, value)
        except RecordError:
            raise self._corrupt(offset) from None
        if kind != "consent" or record["choice"] not in set(Choice):
            raise self._corrupt(offset)
        return Choice(record["choice"])

    def _corrupt(self, offset: int) -> StoreCorrupt:
        return StoreCorrupt(
            f"a record at or after position {offset} is no choice of anyone",
            operation="reading consent", place=self._partition[0],
            remedy="only `pipeline consent` and its library write here: find who else did",
        )  # fmt: skip


def choice_record(
    schemas: SchemaStore, purpose: str, name: str, choice: Choice | None
) -> tuple[pa.BinaryArray, pa.BinaryArray]:
    """Values and keys of one choice, ready to be sent to the topic; None forgets it."""
    value = None
    if choice is not None:
        said_us = time.time_ns() // 1000
        content = {"purpose": purpose, "subject": name, "choice": choice.value, "said_time": said_us}
        value = encode_control(schemas, "consent", content)
    return pa.array([value], pa.binary()), pa.array([f"{purpose}|{name}".encode()], pa.binary())
