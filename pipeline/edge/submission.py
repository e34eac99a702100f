"""What producers hand to the spool's writer, and how it becomes blocks.

Comes in: validated rows of one event type in one lane. Goes out: a future receipt. The spool knows nothing of
Avro: it asks the submission's encoder for blocks once the sequences are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.edge.blocks import Block, Receipt, Stamp
from pipeline.errors import RecordError

WEIGHT_BYTES = 1024  # the queue is bounded in events; a larger one counts as several


class Refused(Exception):
    """Some of the parts cannot be stored; the others can, when asked again without them."""

    def __init__(self, faults: Mapping[int, RecordError]) -> None:
        super().__init__(f"{len(faults)} part(s)")
        self.faults = faults


class Encoder(Protocol):
    """Rows of one event type to blocks."""

    def encode(self, parts: Sequence[Any], stamp: Stamp) -> list[Block]:
        """Blocks of all rows of all parts, numbered from ``stamp.first_sequence`` in their order.

        Raises Refused, naming parts by their index; takes nothing then.
        """
        ...


@dataclass(eq=False, slots=True)
class Submission:
    """One call of a producer: all of its rows are taken, or none.

    ``rows`` is what the encoder takes as one part; ``weight`` its share of the queue, at least ``count``.
    ``filtered``: rows of the call that are not among them, for the receipt.
    """

    encoder: Encoder
    lane: int
    rows: Any
    count: int
    weight: int
    filtered: int = 0
    future: Future[Receipt] = field(default_factory=Future)
