"""The processor: raw topics of a region to its curated topics, through its policy."""

from pipeline.processor.leg import Decided, Landed, Leg
from pipeline.processor.processor import Ports, Processor
from pipeline.processor.repeats import find_repeats
from pipeline.processor.state import RawPartition, StateLog

__all__ = ["Decided", "Landed", "Leg", "Ports", "Processor", "RawPartition", "StateLog", "find_repeats"]
