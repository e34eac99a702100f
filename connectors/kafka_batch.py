"""One Kafka record batch (magic 2): its header, checksum and compression, both ways.

Comes in: bytes of a fetch response, or the joined records of a batch to send. Goes out: :class:`RawBatch`
(header fields and the still compressed records) and sealed batches. Invariant: nothing here allocates more
than the bound it is given, whatever a batch claims about itself: eight kilobytes of zstd can become 256 MiB
behind every limit of broker and fetch.

Layout: Kafka documentation, "Record Batch" (KIP-98); codec ids: none 0, gzip 1, snappy 2, lz4 3, zstd 4.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import cramjam
import numpy as np
from aiokafka.record.util import calc_crc32c

HEADER = struct.Struct(">qiibIhiqqqhii")
HEADER_BYTES = HEADER.size  # 61
_LENGTH_END = 12  # base offset and length stand before what length counts
_CRC = struct.Struct(">I")
_CRC_AT = 17
_CHECKED_FROM = 21  # the checksum covers attributes and everything after
_MAGIC_AT = 16

CODECS = {"none": 0, "gzip": 1, "lz4": 3, "zstd": 4}  # those that we write
_SNAPPY = 2  # read only
_LIKELY_RATIO = 16
_ROOM_BYTES_MIN = 65_536
_CODEC_MASK = 0x07
_LOG_APPEND_TIME = 0x08
_CONTROL = 0x20
_XERIAL_MAGIC = b"\x82SNAPPY\0"


class BatchRefused(Exception):
    """A whole, addressable batch that cannot be read; ``reason`` holds no byte of it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class RawBatch:
    """A batch as it stands in a response; ``data`` starts at its first byte and ends at its last."""

    data: memoryview
    base_offset: int
    crc: int
    attributes: int
    last_offset_delta: int
    first_timestamp_ms: int
    max_timestamp_ms: int
    count: int

    @property
    def next_offset(self) -> int:
        """First offset after the batch, also when compaction took its last records."""
        return self.base_offset + self.last_offset_delta + 1

    @property
    def is_control(self) -> bool:
        """A transaction marker: it takes an offset and holds no event."""
        return bool(self.attributes & _CONTROL)

    @property
    def has_broker_time(self) -> bool:
        """True when every record's time is the broker's (``max_timestamp_ms``)."""
        return bool(self.attributes & _LOG_APPEND_TIME)

    def crc_holds(self) -> bool:
        """True when the bytes are those that the producer sent."""
        return bool(calc_crc32c(self.data[_CHECKED_FROM:]) == self.crc)

    def records(self, bytes_max: int) -> bytes | memoryview:
        """The joined records, decompressed into at most ``bytes_max`` bytes, or BatchRefused."""
        body = self.data[HEADER_BYTES:]
        return decompress(self.attributes & _CODEC_MASK, body, bytes_max)


def split_batches(data: memoryview) -> Iterator[RawBatch]:
    """The whole batches at the start of ``data``; a cut-off last one (normal in a fetch) ends the run.

    Raises BatchRefused for a magic other than 2 (written by a broker or producer before Kafka 0.11).
    """
    at = 0
    while len(data) - at >= HEADER_BYTES:
        fields = HEADER.unpack_from(data, at)
        end = at + _LENGTH_END + fields[1]
        if data[at + _MAGIC_AT] != 2:
            raise BatchRefused("record format older than magic 2")
        if end < at + HEADER_BYTES:
            raise BatchRefused("length shorter than the header")
        if end > len(data):
            return
        yield RawBatch(
            data[at:end], fields[0], fields[4], fields[5], fields[6], fields[7], fields[8], fields[12]
        )
        at = end


@dataclass(frozen=True)
class UnsealedBatch:
    """A batch to send, complete but for the producer's identity and sequence."""

    records: bytes  # compressed when ``attributes`` says so
    attributes: int
    count: int
    first_timestamp_ms: int
    max_timestamp_ms: int

    def seal(self, producer_id: int = -1, epoch: int = -1, sequence: int = -1) -> bytes:
        """The batch's bytes with checksum; base offset 0 (the broker sets it)."""
        out = bytearray(HEADER_BYTES + len(self.records))
        out[HEADER_BYTES:] = self.records
        length, last = len(out) - _LENGTH_END, self.count - 1
        times = self.first_timestamp_ms, self.max_timestamp_ms
        HEADER.pack_into(
            out,
            0,
            0,
            length,
            -1,
            2,
            0,
            self.attributes,
            last,
            *times,
            producer_id,
            epoch,
            sequence,
            self.count,
        )
        _CRC.pack_into(out, _CRC_AT, calc_crc32c(memoryview(out)[_CHECKED_FROM:]))
        return bytes(out)


def compress(codec: int, data: bytes) -> tuple[int, bytes]:
    """``data`` under ``codec``, or as it is (codec 0) where compression does not shorten it.

    lz4 blocks are independent: the broker refuses linked ones (KIP-57). Fast levels: the network is local
    to a region, the processor's CPU is what runs out.
    """
    if codec == CODECS["none"]:
        return 0, data
    if codec == CODECS["gzip"]:
        packed = bytes(cramjam.gzip.compress(data, level=1))
    elif codec == CODECS["lz4"]:
        compressor = cramjam.lz4.Compressor(level=1, content_checksum=False, block_linked=False)
        compressor.compress(data)
        packed = bytes(compressor.finish())
    else:
        packed = bytes(cramjam.zstd.compress(data, level=1))
    return (codec, packed) if len(packed) < len(data) else (0, data)


def decompress(codec: int, data: memoryview, bytes_max: int) -> bytes | memoryview:
    """At most ``bytes_max`` bytes, or BatchRefused.

    The first try reserves what ordinary data unpack to; only what does not fit gets room up to the bound.
    """
    if codec == 0:
        if len(data) > bytes_max:
            raise BatchRefused("records larger than batch_decompressed_bytes_max")
        return data
    likely = max(_ROOM_BYTES_MIN, _LIKELY_RATIO * len(data))
    if likely < bytes_max:
        with contextlib.suppress(_RoomUsedUp):
            return _decompress_into(codec, data, likely)
    try:
        return _decompress_into(codec, data, bytes_max)
    except _RoomUsedUp:
        raise BatchRefused("decompresses past batch_decompressed_bytes_max") from None


class _RoomUsedUp(Exception):
    """More bytes came out than there is room for."""


def _decompress_into(codec: int, data: memoryview, room: int) -> memoryview:
    # Reserved, not touched: memory grows with what is really written.
    out = memoryview(np.empty(room, np.uint8))  # type: ignore[arg-type]
    try:
        if codec == CODECS["gzip"]:
            size = cramjam.gzip.decompress_into(data, out)
        elif codec == _SNAPPY:
            size = _unsnap(data, out)
        elif codec == CODECS["lz4"]:
            size = cramjam.lz4.decompress_into(data, out)
        elif codec == CODECS["zstd"]:
            size = cramjam.zstd.decompress_into(data, out)
        else:
            raise BatchRefused("unknown compression codec")
    except cramjam.DecompressionError as error:
        if "whole buffer" in str(error):
            raise _RoomUsedUp from None
        raise BatchRefused("cannot be decompressed") from None
    return out[:size]


def _unsnap(data: memoryview, out: memoryview) -> int:
    """Snappy, raw or in the block framing of Java's xerial library; returns the bytes written."""
    blocks = _xerial_blocks(data) if bytes(data[:8]) == _XERIAL_MAGIC else iter([data])
    size = 0
    for block in blocks:
        length = cramjam.snappy.decompress_raw_len(block)
        if length > len(out) - size:
            raise _RoomUsedUp
        size += cramjam.snappy.decompress_raw_into(block, out[size : size + length])
    return size


def _xerial_blocks(data: memoryview) -> Iterator[memoryview]:
    at = 16
    while at < len(data):
        if at + 4 > len(data):
            raise BatchRefused("cannot be decompressed")
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            raise BatchRefused("cannot be decompressed")
        yield data[at + 4 : end]
        at = end
