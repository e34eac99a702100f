"""The processor: one region's topics to curated topics, its own or another region's, through a policy."""

from pipeline.processor.border import BorderLeg, acceptable
from pipeline.processor.consents import ConsentFeed, choice_record
from pipeline.processor.landing import LandingLeg
from pipeline.processor.leg import Decided, Landed, Leg
from pipeline.processor.processor import Ports, Processor
from pipeline.processor.repeats import find_repeats
from pipeline.processor.state import RawPartition, StateLog

__all__ = [
    "BorderLeg",
    "ConsentFeed",
    "Decided",
    "Landed",
    "LandingLeg",
    "Leg",
    "Ports",
    "Processor",
    "RawPartition",
    "StateLog",
    "acceptable",
    "choice_record",
    "find_repeats",
]
