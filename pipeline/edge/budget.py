"""What the spool holds, what of it is in flight, and how much more the bounds and the disk allow.

Comes in: rows to store, what settlements free, the connection inside a transaction. Goes out: who is refused,
and orders to shed. Invariant: memory follows the disk: what a transaction changed counts after its commit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import EdgeConfig
from pipeline.edge.blocks import Refusal
from pipeline.edge.ledger import SECOND, LossReason
from pipeline.edge.room import Held, Plan, lane_rules, largest, make_room
from pipeline.edge.shedding import Shedding, Summarise
from pipeline.edge.tables import ROW_BYTES, Database

Way = tuple[str, int]  # region, lane number


@dataclass(slots=True)
class Flight:
    """Blocks in flight per way: the last row, and the room up to it."""

    leases: dict[Way, tuple[int, int]] = field(default_factory=dict)

    def take_off(self, way: Way, last: int, room: int, *, more: bool) -> None:
        """Blocks up to row ``last`` were handed out; ``more``: in addition to those before."""
        through, kept = self.leases.get(way, (0, 0))
        if last > through:
            self.leases[way] = (last, room + (kept if more else 0))

    def landed(self, way: Way, through: int) -> None:
        """Blocks up to row ``through`` are settled."""
        if self.leases.get(way, (0, 0))[0] <= through:
            self.leases.pop(way, None)

    def copy(self) -> Flight:
        """For a transaction that may not come true."""
        return Flight(dict(self.leases))


class Budget:
    """Bounds of one spool file."""

    def __init__(
        self, folder: Path, lanes: Sequence[str], settings: EdgeConfig, summarise: Summarise | None
    ) -> None:
        self.used: dict[int, int] = {}  # room that blocks take, per lane number
        self.flight = Flight()
        self.rules = lane_rules(lanes, settings)
        self._folder = folder
        self._settings = settings
        self._summarise = summarise

    @property
    def total(self) -> int:
        """All that waits, with its rows."""
        return sum(self.used.values())

    def account(self, moved: Mapping[int, int], sign: int = 1) -> None:
        """Enter what a commit changed, per lane number."""
        for number, size in moved.items():
            self.used[number] = self.used.get(number, 0) + sign * size

    def plan(
        self, db: Database, rows: Sequence[Sequence[Any]], freed: Mapping[int, int], flight: Flight
    ) -> tuple[Plan, LossReason]:
        """Who may stay. ``freed``: negative bytes per lane number, gone in this transaction already."""
        brought: dict[int, int] = {}
        for row in rows:
            brought[row[1] % SECOND] = brought.get(row[1] % SECOND, 0) + room_of(row)
        if not brought:
            return Plan(), LossReason.BYTES
        used: dict[int, int] = {}
        kept: dict[int, int] = {}
        for number, size in self.used.items():
            used[number % SECOND] = used.get(number % SECOND, 0) + size + freed.get(number, 0)
        for (_, number), (_, room) in flight.leases.items():
            kept[number % SECOND] = kept.get(number % SECOND, 0) + room
        held = {lane: Held(size, min(size, kept.get(lane, 0))) for lane, size in used.items()}
        limit, reason = self._limit(db, sum(used.values()), sum(brought.values()))
        return make_room(self.rules, held, brought, limit), reason

    def order(self, lane: int, reason: LossReason, flight: Flight | None = None) -> Shedding:
        """An order for a lane that spares what is in flight; say how much or how old."""
        leases = (flight or self.flight).leases
        return Shedding(
            (lane, lane + SECOND), {way: last for way, (last, _) in leases.items()}, reason,
            summarise=self._summarise if self.rules[lane].summarises else None,
        )  # fmt: skip

    def refusals(self, plan: Plan, rows: Sequence[Sequence[Any]]) -> dict[int, Refusal]:
        """Per refused lane what was brought and the most the lane could ever hold."""
        cap = self._settings.spool_bytes_max
        return {
            lane: Refusal(
                sum(room_of(row) for row in rows if row[1] % SECOND == lane), largest(self.rules, lane, cap)
            )
            for lane in plan.refused
        }

    def _limit(self, db: Database, used: int, brought: int) -> tuple[int, LossReason]:
        """What the spool may hold now. Near the guard it may fill the pages it has, and grow no more."""
        cap = self._settings.spool_bytes_max
        disk = os.statvfs(self._folder)
        spare = disk.f_bavail * disk.f_frsize - self._settings.free_bytes_min
        if spare >= max(brought, cap - used):
            return cap, LossReason.BYTES
        (pages,) = db.execute("PRAGMA freelist_count").fetchone()
        (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
        room = used + pages * page_bytes + max(0, spare)
        return (room, LossReason.DISK) if room < cap else (cap, LossReason.BYTES)


def room_of(row: Sequence[Any]) -> int:
    """What a block's row takes."""
    return int(row[8]) + ROW_BYTES
