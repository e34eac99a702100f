"""What the edge tells a metrics object; the default one does nothing.

Labels are names of events, regions, lanes and reasons, never a value of an event.
"""

from __future__ import annotations

from typing import Protocol


class EdgeMetrics(Protocol):
    """Called from several threads."""

    def accepted(self, event: str, region: str, count: int) -> None:
        """``count`` events are durable."""

    def rejected(self, event: str, reason: str, count: int) -> None:
        """``count`` events were refused."""

    def minimised(self, event: str, region: str, rule: str, count: int) -> None:
        """A filter of the region's edge policy kept ``count`` events from being taken."""

    def forwarded(self, event: str, region: str, count: int) -> None:
        """The broker acknowledged ``count`` events."""

    def evicted(self, lane: str, reason: str, count: int) -> None:
        """``count`` accepted events were given up."""

    def spool(self, pending: dict[str, int], payload_bytes: int) -> None:
        """What waits now: events per lane name, bytes in all."""

    def committed(self, seconds: float) -> None:
        """One group commit, encoding included, took this long."""


class NoMetrics:
    """Counts nothing."""

    def accepted(self, event: str, region: str, count: int) -> None:
        """Nothing."""

    def rejected(self, event: str, reason: str, count: int) -> None:
        """Nothing."""

    def minimised(self, event: str, region: str, rule: str, count: int) -> None:
        """Nothing."""

    def forwarded(self, event: str, region: str, count: int) -> None:
        """Nothing."""

    def evicted(self, lane: str, reason: str, count: int) -> None:
        """Nothing."""

    def spool(self, pending: dict[str, int], payload_bytes: int) -> None:
        """Nothing."""

    def committed(self, seconds: float) -> None:
        """Nothing."""
