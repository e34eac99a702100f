"""Partitions are Kafka's own for the source as key."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
from aiokafka.partitioner import murmur2 as kafka_murmur2

from pipeline.edge.partition import positive_murmur2, source_hashes

# org.apache.kafka.common.utils.UtilsTest.testMurmur2
KNOWN = {
    "21": -973932308,
    "foobar": -790332482,
    "a-little-bit-long-string": -985981536,
    "a-little-bit-longer-string": -1486304829,
    "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    "abc": 479470107,
}


@pytest.mark.parametrize("source", KNOWN)
def test_known_hashes(source):
    assert positive_murmur2(source) == KNOWN[source] & 0x7FFFFFFF
    assert source_hashes(pa.array([source])).tolist() == [KNOWN[source] & 0x7FFFFFFF]


@pytest.mark.parametrize("distinct", [1, 63, 64, 65, 2000])
def test_many_at_once_agree_with_the_client_library(distinct):
    seed = 20260
    rng = random.Random(seed)
    alphabet = "ab-1ü漢🚗"
    sizes = [rng.choice([0, 1, 2, 3, 4, 5, 17, 90, 400]) for _ in range(distinct)]
    names = ["".join(rng.choices(alphabet, k=size)) + str(n) for n, size in enumerate(sizes)]
    sources = pa.array([rng.choice(names) for _ in range(3000)])
    expected = [kafka_murmur2(name.encode()) & 0x7FFFFFFF for name in sources.to_pylist()]
    assert source_hashes(sources).tolist() == expected, f"seed {seed}"
    assert np.array_equal(source_hashes(sources.slice(100, 500)), expected[100:600])
