"""Operators for any field: drop, keep, null, constant."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipeline.policy.operators.signature import Context, Operator, Parameters, always, is_flat, what_it_took
from pipeline.policy.tags import EVERY


class ConstantParameters(Parameters):
    """``value`` stands in every row, also where the field was null."""

    value: str | bool | int | float


def _keep(columns: Sequence[pa.Array], parameters: Parameters, context: Context) -> pa.Array:
    return columns[0]


def _null(columns: Sequence[pa.Array], parameters: Parameters, context: Context) -> pa.Array:
    return pa.nulls(len(columns[0]), columns[0].type)


def _constant(columns: Sequence[pa.Array], parameters: ConstantParameters, context: Context) -> pa.Array:
    return pa.repeat(pa.scalar(parameters.value, _constant_type(parameters)[0]), len(columns[0]))


def _constant_type(parameters: ConstantParameters) -> tuple[pa.DataType, str]:
    kinds = {
        str: (pa.string(), "string"),
        bool: (pa.bool_(), "boolean"),
        int: (pa.int64(), "long"),
        float: (pa.float64(), "double"),
    }
    return kinds[type(parameters.value)]


GENERAL = (
    Operator(
        name="drop",
        meaning="The field does not leave: no column of it exists at the destination.",
        takes=frozenset({EVERY}),
        gives=always(),
        gives_words="nothing: the field is gone",
        accepts=lambda column, parameters: True,
        expects="any column",
        run=None,
    ),
    Operator(
        name="keep",
        meaning="The value as it is.",
        takes=frozenset({EVERY}),
        gives=what_it_took,
        gives_words="what it took",
        accepts=is_flat,
        expects="a column that is not nested",
        run=_keep,
    ),
    Operator(
        name="null",
        meaning="The column stays, without any value: for readers that expect it.",
        takes=frozenset({EVERY}),
        gives=always("category"),
        gives_words="category",
        accepts=is_flat,
        expects="a column that is not nested",
        run=_null,
        nulls="possible",
        effect=lambda parameters: "always null",
    ),
    Operator(
        name="constant",
        meaning="One value in every row, also where there was none.",
        takes=frozenset({EVERY}),
        gives=always("category"),
        gives_words="category",
        accepts=is_flat,
        expects="a column that is not nested",
        run=_constant,
        parameters=ConstantParameters,
        result=_constant_type,
        nulls="never",
        effect=lambda parameters: f"always {parameters.value!r}",
    ),
)
