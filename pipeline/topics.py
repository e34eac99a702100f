"""Names of the topics: the only place that spells one.

Every name starts with the region, so an access list per region is one prefix rule.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topics:
    """Topic names under an optional prefix (for a shared cluster, or a test of its own)."""

    prefix: str = ""

    def raw(self, region: str, event: str) -> str:
        """What the edge sends: every field, inside its own region only."""
        return f"{self.prefix}{region}.raw.{event}"

    def curated(self, region: str, event: str) -> str:
        """What the region's policy lets through."""
        return f"{self.prefix}{region}.curated.{event}"

    def quarantine(self, region: str) -> str:
        """Position and reason of each record that could not be taken; no value."""
        return f"{self.prefix}{region}.quarantine"

    def stats(self, region: str) -> str:
        """One record per processed batch: what became of which raw positions."""
        return f"{self.prefix}{region}.stats"

    def watermarks(self, region: str) -> str:
        """The processor's state: how far each partition is read and each spool was seen (compacted)."""
        return f"{self.prefix}{region}.watermarks"

    def edges(self, region: str) -> str:
        """Each spool's ledger: accepted, forwarded, evicted (compacted)."""
        return f"{self.prefix}{region}.edges"

    def event_of_raw(self, topic: str, region: str) -> str:
        """The event name inside a raw topic's name."""
        return topic.removeprefix(f"{self.prefix}{region}.raw.")
