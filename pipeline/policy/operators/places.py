"""Operators for places: coarsen_location, coarsen_cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import field_validator

from pipeline.policy.cells import (
    CELL_KM2_FLOOR,
    PRECISE_AREA_KM2,
    SMALLEST_CELL_KM2,
    demand_on_earth,
    guaranteed_km2,
    resolution_for,
    to_cells,
    to_parents,
)
from pipeline.policy.geohash import coarsen_geohashes, to_geohashes
from pipeline.policy.operators.signature import Context, Operator, Parameters, always

Grid = Literal["h3", "geohash"]


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
        if resolution_for(cell_km2) is None:  # H3's largest guarantee is below geohash's
            raise ValueError(f"no cell is that large; at most {guaranteed_km2(0):.0f} km2, or drop the field")
        return cell_km2

    @property
    def beyond_precise_km2(self) -> float:
        """The area asked for, and in any case more than what is precise by law."""
        return max(self.cell_km2, float(np.nextafter(PRECISE_AREA_KM2, 1.0)))


class LocationParameters(CellParameters):
    """``cell_km2``: no cell may be smaller than this, in square kilometres. ``grid``: ``h3`` (hexagons of
    nearly one size, a number) or ``geohash`` (boxes, text of one to five characters by latitude)."""

    grid: Grid = "h3"


def _coarsen_location(
    columns: Sequence[pa.Array], parameters: LocationParameters, context: Context
) -> pa.Array:
    latitude, longitude = columns
    if parameters.grid == "h3":
        return to_cells(latitude, longitude, _resolution(parameters))
    demand_on_earth(latitude, longitude)
    degrees = [np.asarray(column.fill_null(0.0)) for column in columns]
    cells = to_geohashes(degrees[0], degrees[1], parameters.beyond_precise_km2)
    if latitude.null_count or longitude.null_count:
        return pc.if_else(pc.and_(latitude.is_valid(), longitude.is_valid()), cells, None)
    return cells


def _coarsen_cell(columns: Sequence[pa.Array], parameters: CellParameters, context: Context) -> pa.Array:
    if pa.types.is_string(columns[0].type):
        return coarsen_geohashes(columns[0], parameters.beyond_precise_km2)
    return to_parents(columns[0], _resolution(parameters))


def _resolution(parameters: CellParameters) -> int:
    resolution = resolution_for(parameters.cell_km2)
    if resolution is None:
        raise ValueError("no cell is that large")
    return resolution


def _location_type(parameters: LocationParameters) -> tuple[pa.DataType, str]:
    return (pa.int64(), "long") if parameters.grid == "h3" else (pa.string(), "string")


def _location_effect(parameters: LocationParameters) -> str:
    if parameters.grid == "geohash":
        return f"geohash cell, shorter towards the poles; none below {parameters.cell_km2:g} km2"
    resolution = resolution_for(parameters.cell_km2) or 0
    return f"H3 cell of resolution {resolution}; the smallest is {SMALLEST_CELL_KM2[resolution]:.1f} km2"


PLACES = (
    Operator(
        name="coarsen_location",
        meaning=(
            f"Latitude and longitude become one cell; cell_km2 is at least {CELL_KM2_FLOOR}, "
            "at every latitude."
        ),
        takes=frozenset({"location.precise"}),
        gives=always("location.coarse"),
        gives_words="location.coarse",
        accepts=lambda column, parameters: pa.types.is_float64(column),
        expects="double, in degrees",
        run=_coarsen_location,
        parameters=LocationParameters,
        result=_location_type,
        roles=("latitude", "longitude"),
        output="location_cell",
        effect=_location_effect,
    ),
    Operator(
        name="coarsen_cell",
        meaning=(
            "A cell becomes the larger one around it; one that is large enough stays. What is no cell stops "
            "the stage."
        ),
        takes=frozenset({"location.coarse"}),
        gives=always("location.coarse"),
        gives_words="location.coarse",
        accepts=lambda column, parameters: column in (pa.int64(), pa.string()),
        expects="an H3 cell as long, or a geohash as text",
        run=_coarsen_cell,
        parameters=CellParameters,
        effect=lambda parameters: f"a cell of at least {parameters.cell_km2:g} km2",
    ),
)
