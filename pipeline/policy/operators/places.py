"""Operators for places: coarsen_location."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from pydantic import field_validator

from pipeline.policy.cells import CELL_KM2_FLOOR, SMALLEST_CELL_KM2, guaranteed_km2, resolution_for, to_cells
from pipeline.policy.operators.signature import Context, Operator, Parameters, always


class CellParameters(Parameters):
    """``cell_km2``: no cell may be smaller than this, in square kilometres."""

    cell_km2: float

    @field_validator("cell_km2")
    @classmethod
    def _coarse(cls, cell_km2: float) -> float:
        if not cell_km2 >= CELL_KM2_FLOOR:
            raise ValueError(
                f"{cell_km2} km2 is below {CELL_KM2_FLOOR} km2, and an area up to that is a precise location "
                "(Cal. Civ. Code 1798.140(w)); raise it"
            )
        if resolution_for(cell_km2) is None:
            raise ValueError(f"no cell is that large; at most {guaranteed_km2(0):.0f} km2, or drop the field")
        return cell_km2


def _coarsen_location(columns: Sequence[pa.Array], parameters: CellParameters, context: Context) -> pa.Array:
    resolution = resolution_for(parameters.cell_km2)
    if resolution is None:
        raise ValueError("no cell is that large")
    return to_cells(columns[0], columns[1], resolution)


def _cell_effect(parameters: CellParameters) -> str:
    resolution = resolution_for(parameters.cell_km2) or 0
    return f"H3 cell of resolution {resolution}; the smallest is {SMALLEST_CELL_KM2[resolution]:.1f} km2"


PLACES = (
    Operator(
        name="coarsen_location",
        meaning=f"Latitude and longitude become one H3 cell; cell_km2 is at least {CELL_KM2_FLOOR}.",
        takes=frozenset({"location.precise"}),
        gives=always("location.coarse"),
        gives_words="location.coarse",
        accepts=lambda column, parameters: pa.types.is_float64(column),
        expects="double, in degrees",
        run=_coarsen_location,
        parameters=CellParameters,
        result=lambda parameters: (pa.int64(), "long"),
        roles=("latitude", "longitude"),
        output="location_cell",
        effect=_cell_effect,
    ),
)
