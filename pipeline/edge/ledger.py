"""The edge's account: what was taken, what left, what was given up, what still waits.

Comes in: rows of the spool's ``ledger`` and ``loss`` tables. Goes out: values for the balance and for the
control topic. Invariants, per (spool, lane, region): ``accepted = forwarded + evicted + pending``; the
counters change in the transaction that changes the blocks, so the sum is exact at every moment, also after a
kill. What is added to ``evicted`` is, in the same transaction, the count of a :class:`Loss`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pipeline.edge.summary import FieldSummary

SECOND = 1_000  # the second number of a lane that drains newest first: lane + SECOND


class LossReason(StrEnum):
    """Why accepted events were given up."""

    AGE = "age"  # older than spool_age_max_s
    BYTES = "bytes"  # the spool was at spool_bytes_max
    DISK = "disk"  # the disk was down to free_bytes_min
    DAMAGED = "damaged"  # not what was written
    OVERSIZE = "oversize"  # the broker never takes it


@dataclass(frozen=True, slots=True)
class LaneLedger:
    """Events of one lane bound for one region.

    ``spool`` is the incarnation that numbered them: the file's own, or an earlier one whose events it took
    over. Over all regions of a lane of the file's own, ``accepted`` adds up to the last sequence given out.
    """

    spool: int
    lane: int
    region: str
    accepted: int
    forwarded: int
    evicted: int
    pending: int


@dataclass(frozen=True, slots=True)
class Loss:
    """Events given up, and why.

    ``count`` events of the lane with sequences in ``[first_sequence, last_sequence]`` are lost. (Events of a
    range may go to several regions and partitions, so other sequences of that range may be well.) ``bytes``
    of payload, accepted from ``first_ms`` to ``last_ms`` (0: unknown). ``spool`` 0 is the file's own.
    """

    lane: int
    region: str
    event: str
    first_sequence: int
    last_sequence: int
    count: int
    reason: str
    spool: int = 0
    bytes: int = 0
    first_ms: int = 0
    last_ms: int = 0
    summary: Mapping[str, FieldSummary] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LossLine:
    """A line of the loss ledger. It may grow until it is sent; ``loss.count`` tells its states apart."""

    line: int
    loss: Loss
    at_ms: int


@dataclass(frozen=True, slots=True)
class Settlement:
    """The blocks of (region, lane) up to row ``through`` are done with: sent, but for the ``losses``.

    Applying one twice changes nothing the second time, so it may be repeated after an unknown outcome.
    """

    region: str
    lane: int
    through: int
    losses: tuple[Loss, ...] = ()


def lane_name(lanes: tuple[str, ...], number: int) -> str:
    """The configured name of a lane's number; the second number of a lane says so."""
    return lanes[number % SECOND] + ("/2" if number >= SECOND else "")


def without_copies(ledgers: Iterable[LaneLedger]) -> list[LaneLedger]:
    """One ledger per (spool, lane, region), where a file and a copy of it both have one.

    Both hold the same events, and a repeat is dropped downstream: sent by one is sent.
    """
    found: dict[tuple[int, int, str], LaneLedger] = {}
    for one in ledgers:
        key = (one.spool, one.lane, one.region)
        other = found.get(key, one)
        accepted, forwarded = max(one.accepted, other.accepted), max(one.forwarded, other.forwarded)
        pending = min(one.pending, other.pending, accepted - forwarded)
        found[key] = LaneLedger(*key, accepted, forwarded, accepted - forwarded - pending, pending)
    return list(found.values())
