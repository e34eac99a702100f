"""The edge's account: what was taken, what left, what was given up, what still waits.

Comes in: rows of the spool's ``ledger`` table. Goes out: values for the balance and for the control topic.
Invariant, per (lane, region): ``accepted = forwarded + evicted + pending``; the spool changes the counters in
the transaction that changes the blocks, so the sum is exact at every moment, also after a kill.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LaneLedger:
    """Events of one lane bound for one region.

    ``spool`` is the incarnation of the file; over all regions of a lane ``accepted`` adds up to the last
    sequence given out.
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
    """Events given up, and why: the loss ledger's line.

    ``count`` events with sequences in ``[first_sequence, last_sequence]`` of the lane are lost. (A block
    holds one partition's share of a range, so other sequences of that range may be well.)
    """

    lane: int
    region: str
    event: str
    first_sequence: int
    last_sequence: int
    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class Settlement:
    """The blocks of (region, lane) up to row ``through`` are done with: sent, but for the ``losses``.

    Applying one twice changes nothing the second time, so it may be repeated after an unknown outcome.
    """

    region: str
    lane: int
    through: int
    losses: tuple[Loss, ...] = ()
