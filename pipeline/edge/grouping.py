"""One commit's submissions, numbered and encoded.

Comes in: submissions in the order they came. Goes out: blocks, receipts and the lanes' next sequences,
nothing of it on disk yet. Invariants: rows of one submission have consecutive sequences; one that cannot be
encoded fails alone and uses none.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.edge.blocks import Block, Receipt, Stamp
from pipeline.edge.submission import Refused, Submission
from pipeline.errors import RecordError

log = logging.getLogger(__name__)


@dataclass
class Group:
    """What one transaction will hold, and who waits for it."""

    blocks: list[Block] = field(default_factory=list)
    receipts: list[tuple[Submission, Receipt]] = field(default_factory=list)
    next_sequence: dict[int, int] = field(default_factory=dict)


def encode_group(
    submissions: Sequence[Submission], spool: int, next_sequence: Mapping[int, int],
    live: Mapping[int, int] | None = None,
) -> Group:  # fmt: skip
    """Encode all submissions, in one batch per (encoder, lane); the bad ones fail here.

    ``live``: the number that a lane's new events get, where it is not the lane's own.
    """
    group = Group()
    runs: dict[tuple[int, int], list[Submission]] = {}
    for submission in submissions:
        runs.setdefault((id(submission.encoder), submission.lane), []).append(submission)
    received_us = time.time_ns() // 1000
    for (_, lane), run in runs.items():
        lane = (live or {}).get(lane, lane)
        first = group.next_sequence.get(lane, next_sequence[lane])
        following = _encode_run(run, Stamp(spool, lane, first, received_us), group)
        if following > first:
            group.next_sequence[lane] = following
    return group


def _encode_run(run: list[Submission], stamp: Stamp, group: Group) -> int:
    """Add a run's blocks and receipts to the group; returns the lane's next sequence."""
    while run:
        try:
            blocks = run[0].encoder.encode([one.rows for one in run], stamp)
        except Refused as refused:
            for index, fault in refused.faults.items():
                run[index].future.set_exception(fault)
            run = [one for index, one in enumerate(run) if index not in refused.faults]
        except BaseException as error:  # a panic of the encoder is no Exception
            if len(run) == 1:
                log.error("encoding failed with %s", type(error).__name__)
                problem = f"cannot be encoded ({type(error).__name__})"
                run.pop().future.set_exception(RecordError(problem, reason="undecodable"))
                break
            # One of them is at fault: the others must not suffer.
            half = len(run) // 2
            middle = _encode_run(run[:half], stamp, group)
            return _encode_run(run[half:], Stamp(stamp.spool, stamp.lane, middle, stamp.received_us), group)
        else:
            group.blocks += blocks
            return _receipts(run, stamp, group)
    return stamp.first_sequence


def _receipts(run: Sequence[Submission], stamp: Stamp, group: Group) -> int:
    sequence = stamp.first_sequence
    for one in run:
        receipt = Receipt(stamp.spool, stamp.lane, sequence, one.count, one.filtered)
        group.receipts.append((one, receipt))
        sequence += one.count
    return sequence
