"""The edge: a durable spool that acknowledges, and a forwarder that empties it towards the region's Kafka."""

from pipeline.edge.blocks import Receipt
from pipeline.edge.client import EdgeClient
from pipeline.edge.committer import Spool
from pipeline.edge.forwarder import Forwarder, RegionWriter
from pipeline.edge.ledger import LaneLedger, Loss, LossLine, LossReason, without_copies
from pipeline.edge.metrics import EdgeMetrics, NoMetrics
from pipeline.edge.report import EdgeReport
from pipeline.edge.spool import read_ledger
from pipeline.edge.summary import Summariser

__all__ = [
    "EdgeClient",
    "EdgeMetrics",
    "EdgeReport",
    "Forwarder",
    "LaneLedger",
    "Loss",
    "LossLine",
    "LossReason",
    "NoMetrics",
    "Receipt",
    "RegionWriter",
    "Spool",
    "Summariser",
    "read_ledger",
    "without_copies",
]
