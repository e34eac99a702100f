"""DuckLake, the store of a region: one folder, one writer, any number of readers."""

from connectors.lake.reader import ReadLimits, ReadOnlyLake, open_reader
from connectors.lake.session import DuckLimits
from connectors.lake.writer import Committed, Lake, LakeOptions

__all__ = ["Committed", "DuckLimits", "Lake", "LakeOptions", "ReadLimits", "ReadOnlyLake", "open_reader"]
