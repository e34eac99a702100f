"""Operators that draw at random: noise, randomised_response.

They are the only ones that are not deterministic: a batch that is delivered again is drawn again, and each
delivery that somebody can read costs another epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from pipeline.policy.noise import EPSILON_MAX, EPSILON_MIN, add_laplace, respond
from pipeline.policy.operators.signature import Context, Operator, Parameters, Tags, is_text

Epsilon = Annotated[float, Field(ge=EPSILON_MIN, le=EPSILON_MAX)]
Bound = Annotated[float, Field(allow_inf_nan=False)]


class NoiseParameters(Parameters):
    """``epsilon``: privacy loss per value and draw. ``lower``, ``upper``: what lies beyond is moved there, in
    the field's unit; take them from what the field is, never from the data."""

    epsilon: Epsilon
    lower: Bound
    upper: Bound

    @model_validator(mode="after")
    def _wide(self) -> Self:
        if not self.lower < self.upper or not math.isfinite(self.upper - self.lower):
            raise ValueError("upper must be above lower, by a finite number")
        return self


class ResponseParameters(Parameters):
    """``epsilon``: privacy loss per value and draw. ``values``: the possible answers of a text field, two or
    more; none for a boolean."""

    epsilon: Epsilon
    values: Annotated[tuple[str, ...], Field(max_length=256)] = ()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(self.values) == 1 or len(set(self.values)) != len(self.values):
            raise ValueError("values must be two or more, each once")
        return self


def _noise(columns: Sequence[pa.Array], parameters: NoiseParameters, context: Context) -> pa.Array:
    known = np.asarray(columns[0].drop_null().cast(pa.float64(), safe=False))
    noisy = add_laplace(known, parameters.lower, parameters.upper, parameters.epsilon)
    return _with_nulls_of(columns[0], noisy)


def _randomised_response(
    columns: Sequence[pa.Array], parameters: ResponseParameters, context: Context
) -> pa.Array:
    known = columns[0].drop_null()
    if not parameters.values:
        answers = respond(np.asarray(known.cast(pa.int8())).astype(np.int64), 2, parameters.epsilon)
        return _with_nulls_of(columns[0], answers.astype(bool))
    values = pa.array(parameters.values, pa.string())
    codes = np.asarray(pc.index_in(known, value_set=values).fill_null(-1)).astype(np.int64)
    answers = respond(codes, len(values), parameters.epsilon)
    return values.take(_with_nulls_of(columns[0], answers))


def _with_nulls_of(column: pa.Array, known: np.ndarray) -> pa.Array:
    """The values in the rows where the column has one, null elsewhere."""
    if not column.null_count:
        return pa.array(known)
    there = np.asarray(column.is_valid())
    whole = np.zeros(len(column), dtype=known.dtype)
    whole[there] = known
    return pa.array(whole, mask=~there)


def _noised(parameters: Parameters, taken: Tags) -> Tags:
    """A trait with noise is another thing than the trait; a quantity or a conclusion stays what it is."""
    return frozenset("quasi.noised" if tag.split(".")[0] == "quasi" else tag for tag in taken)


def _answerable(column: pa.DataType, parameters: ResponseParameters) -> bool:
    return is_text(column, parameters) if parameters.values else bool(pa.types.is_boolean(column))


def _response_type(parameters: ResponseParameters) -> tuple[pa.DataType, str]:
    return (pa.string(), "string") if parameters.values else (pa.bool_(), "boolean")


DRAWS = (
    Operator(
        name="noise",
        meaning=(
            "Clamped to the bounds, then Laplace noise of scale (upper - lower) / epsilon, drawn anew per "
            "value and delivery."
        ),
        takes=frozenset({"measurement", "quasi"}),
        gives=_noised,
        gives_words="quasi.noised of quasi, else what it took",
        accepts=lambda column, parameters: pa.types.is_integer(column) or pa.types.is_floating(column),
        expects="a number",
        run=_noise,
        parameters=NoiseParameters,
        result=lambda parameters: (pa.float64(), "double"),
        deterministic=False,
        effect=lambda p: f"Laplace noise, epsilon {p.epsilon:g} per value within {p.lower:g} … {p.upper:g}",
    ),
    Operator(
        name="randomised_response",
        meaning=(
            "The true answer, or with a known probability any other one; drawn anew per value and delivery."
        ),
        takes=frozenset({"category", "inference", "quasi"}),
        gives=_noised,
        gives_words="quasi.noised of quasi, else what it took",
        accepts=_answerable,
        expects="boolean; text, with `values`",
        run=_randomised_response,
        parameters=ResponseParameters,
        result=_response_type,
        deterministic=False,
        effect=lambda p: f"randomised response, epsilon {p.epsilon:g} per value",
    ),
)
