"""The store of a region: rows and their account, committed together."""

from pipeline.store.account import ACCOUNT_SCHEMA, RawPartition, Source, StatsRecord, StoreState, runs_of
from pipeline.store.decode import Curated
from pipeline.store.ports import Inflow, NoMetrics, StorePlan, StorePorts
from pipeline.store.writer import StoreWriter

__all__ = [
    "ACCOUNT_SCHEMA",
    "Curated",
    "Inflow",
    "NoMetrics",
    "RawPartition",
    "Source",
    "StatsRecord",
    "StorePlan",
    "StorePorts",
    "StoreState",
    "StoreWriter",
    "runs_of",
]
