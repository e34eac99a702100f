"""One step of the forwarder: blocks of a lane, regrouped into one part per partition.

Comes in: blocks in order of acceptance. Goes out: parts to send, and after them one settlement. Invariants: a
part's values are sent in order, and what was acknowledged is not sent again by the same step; the settlement
exists only when every part is through.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipeline.edge.blocks import Block
from pipeline.edge.ledger import Loss, Settlement


@dataclass
class Part:
    """The step's share of one partition; ``[at, at + width)`` is what goes next."""

    event: str
    partition: int
    blocks: list[Block] = field(default_factory=list)
    values: pa.BinaryArray = None
    timestamps_ms: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    at: int = 0
    width: int = 0
    lost: dict[int, str] = field(default_factory=dict)  # row -> reason

    def seal(self) -> None:
        """All blocks are in: make the columns."""
        arrays = [block.values for block in self.blocks]
        self.values = arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays)
        times = np.array([block.received_ms for block in self.blocks], dtype=np.int64)
        # A clock that was ahead and then set right: brokers refuse records from the future.
        times = np.minimum(times, time.time_ns() // 1_000_000)
        self.timestamps_ms = np.repeat(times, [len(array) for array in arrays])
        self.width = len(self.values)

    @property
    def done(self) -> bool:
        """Whether all rows are acknowledged or given up."""
        return self.at == len(self.values)

    def next_rows(self) -> tuple[pa.BinaryArray, np.ndarray]:
        """The values to send now, and their times (ms)."""
        return self.values.slice(self.at, self.width), self.timestamps_ms[self.at : self.at + self.width]

    def acknowledged(self) -> None:
        """The rows are through; try more at once again."""
        self.at += self.width
        self.width = min(2 * self.width, len(self.values) - self.at)

    def refused(self, reason: str) -> None:
        """One of the rows cannot be taken: halve until it stands alone, then give it up."""
        if self.width > 1:
            self.width //= 2
            return
        self.lost[self.at] = reason
        self.acknowledged()


class Step:
    """Blocks of one (region, lane), at least one."""

    def __init__(self, region: str, lane: int, blocks: Sequence[Block]) -> None:
        self.region, self.lane = region, lane
        self._through = blocks[-1].identity
        parts: dict[tuple[str, int], Part] = {}
        for block in blocks:
            key = (block.event, block.partition)
            parts.setdefault(key, Part(*key)).blocks.append(block)
        self.parts = list(parts.values())
        for part in self.parts:
            part.seal()

    @property
    def first_ms(self) -> int:
        """When the first block was accepted."""
        return min(block.received_ms for part in self.parts for block in part.blocks)

    @property
    def size(self) -> tuple[int, int]:
        """Events and bytes."""
        return sum(len(part.values) for part in self.parts), sum(part.values.nbytes for part in self.parts)

    def open_parts(self) -> list[Part]:
        """The parts that still have rows to send."""
        return [part for part in self.parts if not part.done]

    def settlement(self) -> Settlement:
        """What the spool may let go of."""
        losses = [loss for part in self.parts for loss in self._losses(part)]
        return Settlement(self.region, self.lane, self._through, tuple(losses))

    def forwarded(self) -> dict[str, int]:
        """Events acknowledged by the broker, per event type."""
        counts = Counter[str]()
        for part in self.parts:
            counts[part.event] += len(part.values) - len(part.lost)
        return counts

    def _losses(self, part: Part) -> list[Loss]:
        starts = np.cumsum([0, *(len(block.values) for block in part.blocks)])
        found = Counter[tuple[int, str]]()
        sizes = Counter[tuple[int, str]]()
        for row, reason in part.lost.items():
            key = (int(np.searchsorted(starts, row, side="right")) - 1, reason)
            found[key] += 1
            sizes[key] += len(part.values[row].as_py())
        return [
            Loss(
                self.lane, self.region, part.event, part.blocks[index].first_sequence,
                part.blocks[index].last_sequence, count, reason, part.blocks[index].spool,
                sizes[index, reason], part.blocks[index].received_ms, part.blocks[index].received_ms,
            )
            for (index, reason), count in found.items()
        ]  # fmt: skip
