"""Blocks: the unit the spool stores and the forwarder sends.

Comes in: framed Avro values as one ``pa.BinaryArray``. Goes out: bytes for a row of the spool, and back
without a copy. One block holds events of one type, for one partition of one region's topic, in sequence
order. A checksum covers the values and what is said about them, so a flipped bit cannot send an event to
another region or partition.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipeline.edge.ledger import Loss, Settlement

BLOCK_BYTES_MAX = 1 << 20  # a reader holds at least one block: this bounds what one step needs in memory


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof of a durable commit: the events have sequences ``[first_sequence, first_sequence + count)``.

    ``filtered``: events of the same call that the region's policy keeps from being taken at all.
    """

    spool: int
    lane: int
    first_sequence: int
    count: int
    filtered: int = 0


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the spool gives a run of events: its incarnation, their lane, first sequence, time of receipt."""

    spool: int
    lane: int
    first_sequence: int
    received_us: int


@dataclass(frozen=True, slots=True)
class Block:
    """Events on their way to ``partition`` of the raw topic of (region, event).

    ``values`` are framed Avro, one per event. ``identity`` is the row in the spool, 0 before it is stored;
    it grows in the order of acceptance. ``spool`` is the incarnation that numbered the events; 0 is the
    file's own.
    """

    lane: int
    region: str
    event: str
    partition: int
    first_sequence: int
    last_sequence: int
    received_ms: int
    values: pa.BinaryArray
    identity: int = 0
    spool: int = 0

    def checksum(self, spool: int, payload: bytes) -> int:
        """CRC-32 over all that is stored but the row number."""
        said = (
            spool, self.lane, self.region, self.event, self.partition, self.first_sequence,
            self.last_sequence, self.received_ms, len(self.values),
        )  # fmt: skip
        return zlib.crc32(payload, zlib.crc32(repr(said).encode()))


@dataclass(frozen=True, slots=True)
class Change:
    """One transaction: blocks to keep, the next sequence of each lane they move, blocks to let go.

    ``spool`` is the incarnation the blocks were numbered for; 0 for whichever the file has.
    """

    blocks: Sequence[Block] = ()
    next_sequence: Mapping[int, int] = field(default_factory=dict)
    settlements: Sequence[Settlement] = ()
    spool: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """A lane had no room: what was brought, and the most it could ever hold, both in bytes."""

    brought: int
    largest: int


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a change: lanes whose blocks were not taken, and what was given up for the others."""

    refused: Mapping[int, Refusal] = field(default_factory=dict)
    losses: tuple[Loss, ...] = ()


def bounds(values: pa.BinaryArray) -> np.ndarray:
    """Offsets of the values in their data buffer: ``len(values) + 1`` int32, not starting at 0 in a slice."""
    if len(values) == 0:
        return np.zeros(1, dtype=np.int32)
    return np.frombuffer(values.buffers()[1], dtype=np.int32, count=len(values) + 1, offset=values.offset * 4)


def pack(values: pa.BinaryArray) -> bytes:
    """The row's payload: offsets from 0 (int32, little-endian) and then the values end to end."""
    offsets = bounds(values)
    data = values.buffers()[2]
    body = b"" if data is None else memoryview(data)[int(offsets[0]) : int(offsets[-1])]
    return b"".join(((offsets - offsets[0]).astype("<i4").tobytes(), body))


def unpack(payload: bytes, count: int) -> pa.BinaryArray:
    """The values of a payload, without a copy; the array keeps ``payload`` alive.

    Look at no value before the checksum has passed. ValueError when the payload cannot hold ``count`` values.
    """
    head = 4 * (count + 1)
    if not 4 <= head <= len(payload):
        raise ValueError("payload and count do not fit")
    whole = pa.py_buffer(payload)
    return pa.Array.from_buffers(pa.binary(), count, [None, whole.slice(0, head), whole.slice(head)])
