"""Where an event goes: region by jurisdiction, partition by source.

Comes in: columns of jurisdictions and sources. Goes out: one small number per row, and what the numbers mean.
Invariant: an event without a region never gets a way; the caller is told instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa

from pipeline.edge.partition import source_hashes

PARTITIONS_MAX = 1024  # as the configuration allows


class Routes:
    """``region_of`` is the policy packs' answer for a jurisdiction; ``partitions`` per configured region."""

    def __init__(self, region_of: Callable[[str], str | None], partitions: Mapping[str, int]) -> None:
        self._region_of = region_of
        self._partitions = dict(partitions)
        self._regions = sorted(partitions)
        self._known: dict[str, int] = {}  # jurisdiction -> index of its region; as many as the packs name
        self.known: frozenset[str] = frozenset()

    def region(self, jurisdiction: str) -> str | None:
        """The configured region of a jurisdiction; None when no pack or no configuration has it."""
        index = self._known.get(jurisdiction)
        if index is not None:
            return self._regions[index]
        region = self._region_of(jurisdiction)
        if region not in self._partitions:
            return None
        self._known[jurisdiction] = self._regions.index(region)
        self.known = frozenset(self._known)
        return region

    def learn(self, jurisdictions: pa.StringArray) -> frozenset[str]:
        """Look up all of a column; returns those known so far, these included."""
        for jurisdiction in jurisdictions.unique().to_pylist():
            if jurisdiction:
                self.region(jurisdiction)
        return self.known

    def ways(self, sources: pa.StringArray, jurisdictions: pa.StringArray) -> np.ndarray:
        """One code per row (int64); equal codes share region and partition. KeyError for no region."""
        encoded = jurisdictions.dictionary_encode()
        regions = np.array([self._known[name] for name in encoded.dictionary.to_pylist()], dtype=np.int64)
        counts = np.array([self._partitions[name] for name in self._regions], dtype=np.int64)
        region = regions[encoded.indices.to_numpy()]
        return region * PARTITIONS_MAX + source_hashes(sources) % counts[region]

    def way(self, code: int) -> tuple[str, int]:
        """Region and partition of a code."""
        return self._regions[code // PARTITIONS_MAX], code % PARTITIONS_MAX
