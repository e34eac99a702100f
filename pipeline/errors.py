"""Every error the pipeline raises, sorted by what the caller does about it.

    PipelineError
    ├── ConfigError      wrong use or configuration: exit 2, before any I/O
    │   └── BasisEnded   what permitted a transfer holds no more: exit 1, nothing crosses
    ├── RecordError      this record is bad: tell the waiting caller, or quarantine it and go on
    ├── TransientError   try again under a deadline
    ├── OwnershipLost    another instance owns the partition or the store now: drop the batch, seek
    └── StoreCorrupt     positions or files contradict each other: stop and ask

A message names operation, place, what was expected and found, and what to do. It names fields and never
holds the value of one: messages travel to logs that live outside the region.
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base of all; ``str()`` is one line fit for a person: operation at place: problem (remedy)."""

    def __init__(self, problem: str, *, operation: str = "", place: str = "", remedy: str = "") -> None:
        self.problem = problem
        self.operation = operation
        self.place = place
        self.remedy = remedy
        where = " at ".join(part for part in (operation, place) if part)
        text = f"{where}: {problem}" if where else problem
        super().__init__(f"{text} ({remedy})" if remedy else text)


class ConfigError(PipelineError):
    """Wrong configuration, schema, pack or command; nothing has been started."""


class BasisEnded(ConfigError):
    """The basis of a transfer has ended: configuration that was right became wrong with the date."""


class RecordError(PipelineError):
    """One event cannot be taken.

    ``reason`` is one of :class:`pipeline.checks.Reason` (as text), ``field`` the field's name or "".
    """

    def __init__(self, problem: str, *, reason: str, field: str = "", remedy: str = "") -> None:
        super().__init__(problem, operation="event rejected", place=field, remedy=remedy)
        self.reason = reason
        self.field = field


class TransientError(PipelineError):
    """The outside is away or slow; the same call may succeed later."""


class OwnershipLost(PipelineError):
    """Another instance owns this partition or store; what is in hand must be dropped, not written."""


class StoreCorrupt(PipelineError):
    """What is stored contradicts what the topics say; going on could lose or double rows."""
