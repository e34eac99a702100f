"""Operators: what may be done to a value, each with a signature that the type check reads.

One table, one module per family: general, identifiers, places, times, numbers, text, draws. The table for
readers is in ``docs/policies.md``, made from this one by :mod:`pipeline.policy.describe`.
"""

from pipeline.policy.operators.draws import DRAWS
from pipeline.policy.operators.edge_places import EDGE_PLACES
from pipeline.policy.operators.general import GENERAL
from pipeline.policy.operators.identifiers import IDENTIFIERS
from pipeline.policy.operators.numbers import NUMBERS, floor_to_step
from pipeline.policy.operators.places import PLACES
from pipeline.policy.operators.signature import (
    Context,
    KeyedParameters,
    Operator,
    Parameters,
    TokenParameters,
)
from pipeline.policy.operators.text import TEXT, CategoryParameters
from pipeline.policy.operators.times import TIMES

__all__ = [
    "OPERATORS",
    "CategoryParameters",
    "Context",
    "KeyedParameters",
    "Operator",
    "Parameters",
    "TokenParameters",
    "floor_to_step",
]

OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (*GENERAL, *IDENTIFIERS, *PLACES, *TIMES, *NUMBERS, *TEXT, *DRAWS, *EDGE_PLACES)
}
