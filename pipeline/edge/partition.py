"""Which partition an event goes to: the one Kafka's default partitioner takes for its source as the key.

Comes in: sources. Goes out: ``murmur2(utf8) & 0x7fffffff``, to be taken modulo the number of partitions.
Invariant: equal to ``org.apache.kafka.common.utils.Utils.murmur2``, so another producer that uses the source
as its key agrees with us; records themselves carry no key (one place less for personal data).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pyarrow as pa

_SEED, _M, _R = 0x9747B28C, 0x5BD1E995, 24
_MASK = 0xFFFFFFFF
_FEW = 64  # below it the cached plain function is faster than numpy's fixed cost
_LONG_BYTES = 256  # longer sources go one by one: the table of words below is as wide as the longest


@lru_cache(maxsize=65_536)
def positive_murmur2(source: str) -> int:
    """The 31-bit hash of one source."""
    data = source.encode()
    size = len(data)
    h = _SEED ^ size
    for start in range(0, size - 3, 4):
        k = int.from_bytes(data[start : start + 4], "little") * _M & _MASK
        k = (k ^ k >> _R) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    tail = size % 4
    if tail:
        h = (h ^ int.from_bytes(data[size - tail :], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return (h ^ h >> 15) & 0x7FFFFFFF


def source_hashes(sources: pa.StringArray) -> np.ndarray:
    """The 31-bit hash of each source (int64, no nulls in); computed once per distinct one."""
    encoded = sources.dictionary_encode()
    distinct = encoded.dictionary
    if len(distinct) <= _FEW:
        hashes = np.array([positive_murmur2(source) for source in distinct.to_pylist()], dtype=np.int64)
    else:
        hashes = _hash_many(distinct)
    return hashes[encoded.indices.to_numpy()]


def _hash_many(sources: pa.StringArray) -> np.ndarray:
    """All at once, word by word: a row takes part as long as it has words left."""
    offsets = np.frombuffer(sources.buffers()[1], np.int32, len(sources) + 1, sources.offset * 4)
    offsets = offsets.astype(np.int64)
    sizes = np.diff(offsets)
    long_rows = np.flatnonzero(sizes > _LONG_BYTES)
    sizes[long_rows] = 0
    data = np.frombuffer(sources.buffers()[2] or b"", np.uint8)
    width = int(sizes.max(initial=0)) // 4 * 4 + 4
    columns = np.arange(width)
    inside = columns < sizes[:, None]
    table = np.zeros((len(sizes), width), np.uint8)
    table[inside] = data[(offsets[:-1, None] + columns)[inside]]
    words = table.view("<u4").astype(np.uint32)
    m, h = np.uint32(_M), np.uint32(_SEED) ^ sizes.astype(np.uint32)
    for column in range(width // 4):
        whole = sizes >= 4 * (column + 1)
        k = words[:, column] * m
        k = (k ^ (k >> np.uint32(_R))) * m
        h = np.where(whole, (h * m) ^ k, h)
    rest = words[np.arange(len(sizes)), sizes // 4]
    h = np.where(sizes % 4 > 0, (h ^ rest) * m, h)
    h = (h ^ (h >> np.uint32(13))) * m
    hashes = ((h ^ (h >> np.uint32(15))) & np.uint32(0x7FFFFFFF)).astype(np.int64)
    for row in long_rows:
        hashes[row] = positive_murmur2(sources[int(row)].as_py())
    return hashes
