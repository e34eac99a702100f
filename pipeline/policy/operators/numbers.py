"""Operators for quantities: generalise_number, top_code, bottom_code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.policy.operators.signature import Context, Operator, Parameters, what_it_took

_STEP_TOLERANCE = 1e-9  # in steps: 0.3 / 0.1 is 2.9999999999999996 and belongs to the step that starts at 0.3
_ROUNDING = 4 * np.finfo(np.float64).eps  # and what the division itself may be off by


class StepParameters(Parameters):
    """``step``: width of a step in the field's unit; a value becomes the lower end of its step."""

    step: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class TopParameters(Parameters):
    """``maximum``: what lies above becomes this, in the field's unit."""

    maximum: Annotated[float, Field(allow_inf_nan=False)]


class BottomParameters(Parameters):
    """``minimum``: what lies below becomes this, in the field's unit."""

    minimum: Annotated[float, Field(allow_inf_nan=False)]


def _generalise_number(columns: Sequence[pa.Array], parameters: StepParameters, context: Context) -> pa.Array:
    column = columns[0]
    filled = column.fill_null(0)
    if pa.types.is_integer(column.type):
        whole = np.asarray(filled.cast(pa.int64()))
        below = np.mod(whole, int(parameters.step))
        lower = pc.subtract_checked(pa.array(whole), pa.array(below)).cast(column.type)
    else:
        lower = pa.array(_lower_end(np.asarray(filled.cast(pa.float64())), parameters.step)).cast(column.type)
    return pc.if_else(pc.is_valid(column), lower, None) if column.null_count else lower


def floor_to_step(value: float, step: float) -> float:
    """The lower end of the step a number lies in: what generalise_number makes of it."""
    return float(_lower_end(np.asarray(value, dtype=np.float64), step))


def _lower_end(values: np.ndarray, step: float) -> np.ndarray:
    steps = values / step
    return np.floor(steps + _STEP_TOLERANCE + np.abs(steps) * _ROUNDING) * step


def _top_code(columns: Sequence[pa.Array], parameters: TopParameters, context: Context) -> pa.Array:
    column = columns[0]
    bound = pa.scalar(parameters.maximum).cast(column.type)
    return pc.if_else(pc.greater(column, bound), bound, column)


def _bottom_code(columns: Sequence[pa.Array], parameters: BottomParameters, context: Context) -> pa.Array:
    column = columns[0]
    bound = pa.scalar(parameters.minimum).cast(column.type)
    return pc.if_else(pc.less(column, bound), bound, column)


def _holds(column: pa.DataType, bound: float) -> bool:
    """Whether the column's type has this very number (of floats: one near it)."""
    if not pa.types.is_integer(column):
        return bool(pa.types.is_floating(column))
    half = 2.0 ** (column.bit_width - 1)
    return float(bound).is_integer() and -half <= bound < half


def _same_number(column: pa.DataType, parameters: StepParameters) -> bool:
    whole = pa.types.is_integer(column) and float(parameters.step).is_integer()
    return whole or pa.types.is_floating(column)


NUMBERS = (
    Operator(
        name="generalise_number",
        meaning="The lower end of a number's step: a step hides a value, only a crowd hides a person.",
        takes=frozenset({"quasi", "measurement"}),
        gives=what_it_took,
        gives_words="what it took",
        accepts=_same_number,
        expects="a number (and a whole step for whole numbers)",
        run=_generalise_number,
        parameters=StepParameters,
        bound=lambda parameters, value: floor_to_step(value, parameters.step),
        effect=lambda parameters: f"lower end of a step of {parameters.step:g}",
    ),
    Operator(
        name="top_code",
        meaning="Values above the maximum become the maximum: hides the rare high ones.",
        takes=frozenset({"quasi", "measurement"}),
        gives=what_it_took,
        gives_words="what it took",
        accepts=lambda column, parameters: _holds(column, parameters.maximum),
        expects="a number (and a whole maximum for whole numbers)",
        run=_top_code,
        parameters=TopParameters,
        bound=lambda parameters, value: min(value, parameters.maximum),
        effect=lambda parameters: f"at most {parameters.maximum:g}",
    ),
    Operator(
        name="bottom_code",
        meaning="Values below the minimum become the minimum: hides the rare low ones.",
        takes=frozenset({"quasi", "measurement"}),
        gives=what_it_took,
        gives_words="what it took",
        accepts=lambda column, parameters: _holds(column, parameters.minimum),
        expects="a number (and a whole minimum for whole numbers)",
        run=_bottom_code,
        parameters=BottomParameters,
        bound=lambda parameters, value: max(value, parameters.minimum),
        effect=lambda parameters: f"at least {parameters.minimum:g}",
    ),
)
