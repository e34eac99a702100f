"""Names of the topics: the only place that spells one.

Every name starts with the region that owns it, so an access list per region is one prefix rule; what comes
over a border ends with the origin, so an access list per origin is one suffix more.
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

    def consent(self, region: str) -> str:
        """What people have said, last word per purpose and person (compacted, one partition)."""
        return f"{self.prefix}{region}.consent"

    def event_of_raw(self, topic: str, region: str) -> str:
        """The event name inside a raw topic's name."""
        return topic.removeprefix(f"{self.prefix}{region}.raw.")

    def landing(self, region: str) -> LegTopics:
        """The topics of the leg into the region itself."""
        return LegTopics(self.prefix, region, region)

    def border(self, origin: str, destination: str) -> LegTopics:
        """The topics of the leg from one region into another."""
        return LegTopics(self.prefix, destination, origin)


@dataclass(frozen=True)
class LegTopics:
    """Topics of the leg from ``origin`` into ``destination``; the same region twice is the landing.

    Each has one writer, the processor of this leg: what the store proves of a curated partition (its raw
    offsets rise) would not hold if two origins shared one.
    """

    prefix: str
    destination: str
    origin: str

    @property
    def is_border(self) -> bool:
        """Whether events leave their region on this leg."""
        return self.origin != self.destination

    @property
    def events_from(self) -> str | None:
        """The origin, if it is another region; None for the landing."""
        return self.origin if self.is_border else None

    def source(self, event: str) -> str:
        """What the leg reads: raw events, or what the origin has curated."""
        topics = Topics(self.prefix)
        return topics.curated(self.origin, event) if self.is_border else topics.raw(self.destination, event)

    def curated(self, event: str) -> str:
        """What the leg lets through."""
        return self._name(f"curated.{event}")

    @property
    def stats(self) -> str:
        """One record per processed batch: what became of which positions of the source topics."""
        return self._name("stats")

    @property
    def quarantine(self) -> str:
        """Position and reason of each record that could not be taken; no value."""
        return self._name("quarantine")

    @property
    def watermarks(self) -> str:
        """The leg's state (compacted)."""
        return self._name("watermarks")

    @property
    def group(self) -> str:
        """The consumer group of the leg's instances."""
        if self.is_border:
            return f"{self.prefix}{self.destination}.border.{self.origin}"
        return f"{self.prefix}{self.destination}.processor"

    def _name(self, kind: str) -> str:
        return f"{self.prefix}{self.destination}.{kind}" + (f".{self.origin}" if self.is_border else "")
