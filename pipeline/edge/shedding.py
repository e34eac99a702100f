"""Giving up a lane's oldest events: exactly counted, entered in the loss ledger, never what is in flight.

Comes in: a lane, how much must go or how old it is, what is in flight per region. Goes out: losses. Runs
inside the caller's transaction. Invariants: oldest first within the lane, over all its regions; a block whose
checksum is wrong is not counted by its own word but set aside as damaged.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pyarrow as pa

from pipeline.edge.blocks import Block
from pipeline.edge.ledger import Loss, LossReason
from pipeline.edge.summary import Summary, merged
from pipeline.edge.tables import BLOCK_COLUMNS, ROW_BYTES, Database, from_row, give_up, set_aside

log = logging.getLogger(__name__)

SHED_BLOCKS_MAX = 2_000  # at a time: what one transaction deletes it first writes over

Summarise: TypeAlias = Callable[[str, pa.BinaryArray], Summary]


@dataclass(frozen=True, slots=True)
class Shedding:
    """An order to give up blocks of a lane.

    ``numbers``: the lane's numbers; ``leases``: per (region, number) the last row that is in flight. Ends
    when ``bytes`` are free (rows included) or the next block came in after ``before_ms``.
    """

    numbers: tuple[int, ...]
    leases: Mapping[tuple[str, int], int]
    reason: LossReason
    bytes: int | None = None
    before_ms: int | None = None
    summarise: Summarise | None = None


@dataclass
class Shed:
    """What went. ``freed``: bytes per lane number, rows included."""

    freed: dict[int, int] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)
    more: bool = False  # SHED_BLOCKS_MAX ended it

    def plus(self, other: Shed) -> None:
        """Take in what went besides."""
        for number, size in other.freed.items():
            self.freed[number] = self.freed.get(number, 0) + size
        self.losses += other.losses
        self.more |= other.more


def shed(db: Database, order: Shedding) -> Shed:
    """Carry the order out."""
    done = Shed()
    gone: dict[tuple[str, int], int] = {}  # per way the last row that goes
    damaged: dict[tuple[str, int], list[int]] = {}
    kinds: dict[tuple[int, int, str, str], Loss] = {}
    left = order.bytes
    for seen, (identity, row) in enumerate(_oldest(db, order)):
        # one row more than goes is read: its time says whether it does
        region, lane, received_ms, size = row[0], row[1], row[6], row[8] + ROW_BYTES
        if left is not None and left <= 0:
            break
        if order.before_ms is not None and received_ms >= order.before_ms:
            break
        if seen == SHED_BLOCKS_MAX and left is None:
            done.more = True
            break
        block = from_row(identity, row)
        if block is None:
            damaged.setdefault((region, lane), []).append(identity)
        else:
            kind = (block.spool, lane, region, block.event)
            kinds[kind] = _grown(kinds.get(kind), _loss(block, order, row[8]))
            gone[region, lane] = identity
        done.freed[lane] = done.freed.get(lane, 0) + size
        left = None if left is None else left - size
    for (region, lane), bad in damaged.items():
        done.losses += set_aside(db, (lane, region), bad)
    for (region, lane), last in gone.items():
        lease = order.leases.get((region, lane), 0)
        db.execute(
            "DELETE FROM block WHERE region = ? AND lane = ? AND id > ? AND id <= ?",
            (region, lane, lease, last),
        )
    for loss in kinds.values():
        give_up(db, loss)
    done.losses += kinds.values()
    return done


def _oldest(db: Database, order: Shedding) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Rows (id, columns) that may go, in order of acceptance over all regions and numbers of the lane."""
    regions = [region for (region,) in db.execute("SELECT DISTINCT region FROM ledger")]
    ways = [_way(db, region, number, order) for region in regions for number in order.numbers]
    yield from heapq.merge(*ways, key=lambda found: found[0])


def _way(db: Database, region: str, number: int, order: Shedding) -> Iterator[tuple[int, tuple[Any, ...]]]:
    statement = f"SELECT id, {BLOCK_COLUMNS} FROM block WHERE region = ? AND lane = ? AND id > ? ORDER BY id"
    lease = order.leases.get((region, number), 0)
    with closing(db.execute(statement, (region, number, lease))) as rows:
        for identity, *row in rows:
            yield identity, tuple(row)


def _loss(block: Block, order: Shedding, size: int) -> Loss:
    summary: Summary = {}
    if order.summarise is not None:
        try:
            summary = order.summarise(block.event, block.values)
        except Exception as error:  # what cannot be summarised is given up all the same
            log.warning("no summary of %s: %s", block.event, type(error).__name__)
    return Loss(
        block.lane, block.region, block.event, block.first_sequence, block.last_sequence, len(block.values),
        order.reason, block.spool, size, block.received_ms, block.received_ms, summary,
    )  # fmt: skip


def _grown(loss: Loss | None, more: Loss) -> Loss:
    if loss is None:
        return more
    return Loss(
        loss.lane, loss.region, loss.event, min(loss.first_sequence, more.first_sequence),
        max(loss.last_sequence, more.last_sequence), loss.count + more.count, loss.reason, loss.spool,
        loss.bytes + more.bytes, min(loss.first_ms, more.first_ms), max(loss.last_ms, more.last_ms),
        merged(loss.summary, more.summary),
    )  # fmt: skip
