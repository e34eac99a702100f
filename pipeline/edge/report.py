"""The edge's ledger on the control topic, for the balance of those who cannot read the spool.

Comes in: counters per lane. Goes out: one ``control.edge_ledger`` record per lane in the region's ``edges``
topic (compacted), keyed ``<spool>:<lane>``, and one ``control.edge_loss`` per line of the loss ledger, keyed
``<spool>:loss:<line>``. Counters are best effort, the spool's own ledger is the truth; a loss stays in the
spool until it is there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import pyarrow as pa

from pipeline.control_records import encode_control
from pipeline.edge.forwarder import RegionWriter
from pipeline.edge.ledger import LaneLedger, LossLine, lane_name
from pipeline.schemas import SchemaStore
from pipeline.topics import Topics

PARTITION = 0  # one is enough, and equal keys must share it


class EdgeReport:
    """Publishes as ``edge``, the agent's name; ``lanes`` are names by number."""

    def __init__(self, edge: str, lanes: Sequence[str], schemas: SchemaStore, topics: Topics) -> None:
        self._edge, self._lanes = edge, tuple(lanes)
        self._schemas, self._topics = schemas, topics

    async def publish(self, region: str, writer: RegionWriter, ledgers: Sequence[LaneLedger]) -> None:
        """Send all counters of the region; TransientError when the broker is away."""
        if not ledgers:
            return
        keys = pa.array([f"{counts.spool}:{counts.lane}".encode() for counts in ledgers], pa.binary())
        values = pa.array([self._encode(counts) for counts in ledgers], pa.binary())
        await writer.send(self._topics.edges(region), PARTITION, values, keys=keys)

    async def publish_losses(self, region: str, writer: RegionWriter, lines: Sequence[LossLine]) -> None:
        """Send lines of the loss ledger; TransientError when the broker is away."""
        keys = pa.array([f"{one.loss.spool}:loss:{one.line}".encode() for one in lines], pa.binary())
        values = pa.array([self._encode_loss(one) for one in lines], pa.binary())
        await writer.send(self._topics.edges(region), PARTITION, values, keys=keys)

    def _encode_loss(self, line: LossLine) -> bytes:
        loss = line.loss
        record = {
            "edge": self._edge,
            "spool": loss.spool,
            "line": line.line,
            "lane": loss.lane,
            "lane_name": lane_name(self._lanes, loss.lane),
            "event": loss.event,
            "first_sequence": loss.first_sequence,
            "last_sequence": loss.last_sequence,
            "count": loss.count,
            "bytes": loss.bytes,
            "reason": str(loss.reason),
            "first_received_time": loss.first_ms * 1000,
            "last_received_time": loss.last_ms * 1000,
            "lost_time": line.at_ms * 1000,
            "summaries": [
                {
                    "field": name,
                    "count": one.count,
                    "minimum": one.minimum,
                    "maximum": one.maximum,
                    "mean": one.mean,
                }
                for name, one in sorted(loss.summary.items())
            ],
        }
        return encode_control(self._schemas, "edge_loss", record)

    def _encode(self, counts: LaneLedger) -> bytes:
        record = {
            "edge": self._edge,
            "spool": counts.spool,
            "lane": counts.lane,
            "lane_name": lane_name(self._lanes, counts.lane),
            "accepted": counts.accepted,
            "forwarded": counts.forwarded,
            "evicted": counts.evicted,
            "pending": counts.pending,
            "updated_time": time.time_ns() // 1000,
        }
        return encode_control(self._schemas, "edge_ledger", record)
