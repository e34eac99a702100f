"""H3 cells that are large enough everywhere on Earth.

Comes in: a smallest allowed area, coordinates or cells. Goes out: a resolution, or cell indices. Invariant:
the smallest cell of a chosen resolution is at least the area asked for, measured on the ellipsoid.
"""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa

# "Precise" in California is an area equal to or less than a circle of 1,850 feet radius: 0.99890 km2
# (Cal. Civ. Code 1798.140(w)); the strictest definition we know, so `location.coarse` means beyond it.
PRECISE_AREA_KM2 = math.pi * (1850 * 0.3048 / 1000) ** 2
CELL_KM2_FLOOR = 0.9989

# Smallest cell per resolution in km2 on H3's sphere, rounded down; found by measuring every cell of the
# resolutions 0 to 7 (98,825,162 in the last). It is one of the twelve pentagons each time. At 8 a pentagon
# has 0.37 km2: precise.
SMALLEST_CELL_KM2 = (
    2562182.162,
    328434.585,
    44930.898,
    6315.472,
    896.582,
    127.785,
    18.238,
    2.604,
)
# H3 takes geodetic degrees for spherical ones. On WGS 84 a cell is at worst (at the equator) smaller by
# M*N / R**2 = 6335.439 * 6378.137 / 6371.0072**2 = 0.99553.
ELLIPSOID_FACTOR = 0.9955


def guaranteed_km2(resolution: int) -> float:
    """Area that no cell of the resolution falls below, in km2; an IndexError beyond resolution 7."""
    return SMALLEST_CELL_KM2[resolution] * ELLIPSOID_FACTOR


def resolution_for(cell_km2: float) -> int | None:
    """The finest resolution whose every cell has at least ``cell_km2`` and is coarse by law, or None."""
    wanted = max(cell_km2, PRECISE_AREA_KM2)
    fitting = [r for r in range(len(SMALLEST_CELL_KM2)) if guaranteed_km2(r) > wanted]
    return max(fitting, default=None)


def demand_on_earth(latitude: pa.Array, longitude: pa.Array) -> None:
    """Raises ValueError for a coordinate in degrees that is not on Earth; null is none.

    H3 would wrap 1000 degrees around and answer, so a bad value must not get that far.
    """
    for values, limit in ((latitude, 90.0), (longitude, 180.0)):
        degrees = np.asarray(values.fill_null(0.0))
        if not np.all(np.abs(degrees) <= limit):  # false for what is not a number, too
            raise ValueError("a coordinate is out of range")


def to_cells(latitude: pa.Array, longitude: pa.Array, resolution: int) -> pa.Array:
    """Cell index per row as int64; null where either coordinate is null. Degrees.

    Raises ValueError for a coordinate that is not on Earth.
    """
    import h3ronpy.vector  # here and below: an agent whose packs know no places has no memory for it

    demand_on_earth(latitude, longitude)
    cells = pa.array(h3ronpy.vector.coordinates_to_cells(latitude, longitude, resolution))
    if cells.null_count:  # an H3 index has its highest bit clear, so int64 holds it
        return cells.cast(pa.int64())
    return pa.array(np.asarray(cells).view(np.int64))


def to_parents(cells: pa.Array, resolution: int) -> pa.Array:
    """Each cell's parent of that resolution, int64; a cell that is coarser already stays, null stays null.

    Raises ValueError for an index that is no cell. A parent does not hold its descendants exactly, so what it
    says of a place is "in one of these descendants". They have at least the area that the parent's resolution
    guarantees: measured for all cells down to resolution 4 and around the pentagons of 5 and 6, the smallest
    such area is the pentagon's in each, 0.2 to 0.003 % above the table's.
    """
    import h3ronpy

    known = np.asarray(cells.drop_null())
    indices = pa.array(known.view(np.uint64))
    if not np.all(np.asarray(pa.array(h3ronpy.cells_valid(indices, booleanarray=True)))):
        raise ValueError("not a cell")
    finer = np.asarray(pa.array(h3ronpy.cells_resolution(indices))) > resolution
    parents = np.array(known)
    shrunk = h3ronpy.change_resolution(indices.filter(pa.array(finer)), resolution)
    parents[finer] = np.asarray(pa.array(shrunk)).view(np.int64)
    if not cells.null_count:
        return pa.array(parents)
    whole = np.zeros(len(cells), dtype=np.int64)
    there = np.asarray(cells.is_valid())
    whole[there] = parents
    return pa.array(whole, mask=~there)
