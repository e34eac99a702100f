"""Operators of the edge for places: snap_location.

At the edge an event keeps its schema, so a place cannot become a cell there; it moves to the middle of its
cell and stays two doubles. Coarsening it later to the same cells gives what coarsening the exact place would
have given: H3 finds the cell of a cell's centre again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.policy.cells import SMALLEST_CELL_KM2, resolution_for, to_cells
from pipeline.policy.operators.places import CellParameters
from pipeline.policy.operators.signature import Context, Operator, what_it_took

ROLES = ("latitude", "longitude")


def snap(latitude: pa.Array, longitude: pa.Array, parameters: CellParameters) -> list[pa.Array]:
    """Latitude and longitude of the centre of each row's cell; both null where either is. Degrees.

    Raises ValueError for a coordinate that is not on Earth.
    """
    import h3ronpy.vector  # here, so that an agent whose packs snap nothing has no memory for it

    resolution = resolution_for(parameters.cell_km2)
    if resolution is None:
        raise ValueError("no cell is that large")
    cells = to_cells(latitude, longitude, resolution)
    centres = pa.record_batch(h3ronpy.vector.cells_to_coordinates(cells.cast(pa.uint64())))
    return [centres.column("lat"), centres.column("lng")]


def _refuse(columns: Sequence[pa.Array], parameters: Any, context: Context) -> pa.Array:
    raise ValueError("not an operator of a leg")


def _effect(parameters: CellParameters) -> str:
    resolution = resolution_for(parameters.cell_km2) or 0
    smallest = f"the smallest is {SMALLEST_CELL_KM2[resolution]:.1f} km2"
    return f"centre of the H3 cell of resolution {resolution}; {smallest}"


EDGE_PLACES = (
    Operator(
        name="snap_location",
        meaning="At the edge alone: a place moves to the centre of its H3 cell, and stays degrees.",
        takes=frozenset({"location.precise"}),
        gives=what_it_took,  # the schema at the edge stays, and with it the tag: landing coarsens as ever
        gives_words="what it took: landing coarsens as ever",
        accepts=lambda column, parameters: False,  # of a leg: it gives two columns
        expects="double in degrees, at the edge alone",
        run=_refuse,
        parameters=CellParameters,
        roles=ROLES,
        effect=_effect,
    ),
)
