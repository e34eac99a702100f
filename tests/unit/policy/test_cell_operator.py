"""coarsen_cell on H3: parents that are large enough, never sharper than what came."""

from __future__ import annotations

import h3ronpy
import h3ronpy.vector
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.policy import cells
from pipeline.policy.operators import OPERATORS, Context

NOTHING = Context("", None, None)
BASES = (4, 14, 24, 38, 49, 58, 63, 72, 83, 97, 107, 117)
LATITUDES = st.one_of(st.floats(-90, 90), st.sampled_from([-90.0, 90.0, 0.0]))
LONGITUDES = st.one_of(st.floats(-180, 180), st.sampled_from([-180.0, 180.0, 0.0]))
AREAS = st.one_of(st.floats(cells.CELL_KM2_FLOOR, 2_000_000), st.sampled_from([1.0, 18.0, 128.0, 900.0]))


def coarsened(column, cell_km2):
    operator = OPERATORS["coarsen_cell"]
    return operator.run([column], operator.parameters.model_validate({"cell_km2": cell_km2}), NOTHING)


def cell_at(latitude, longitude, resolution):
    found = h3ronpy.vector.coordinates_to_cells(np.array([latitude]), np.array([longitude]), resolution)
    return int(np.asarray(pa.array(found))[0])


def resolution_of(cell):
    return cell >> 52 & 15


def inside(cell, other):
    """Whether ``other`` is the cell or an ancestor of it, by the digits of the index."""
    kept = resolution_of(other)
    shift = 3 * (15 - kept)
    same_base_and_digits = (cell & ((1 << 52) - 1)) >> shift == (other & ((1 << 52) - 1)) >> shift
    return kept <= resolution_of(cell) and same_base_and_digits


CELLS = st.builds(cell_at, LATITUDES, LONGITUDES, st.integers(0, 15))


@given(st.lists(st.one_of(st.none(), CELLS), max_size=20), AREAS, st.integers(0, 3))
def test_a_cell_becomes_the_one_around_it_that_is_large_enough(indices, cell_km2, lead):
    column = pa.array([*[indices[0] if indices else None] * lead, *indices], pa.int64())[lead:]
    found = coarsened(column, cell_km2)
    assert found.type == pa.int64()
    target = cells.resolution_for(cell_km2)
    for before, after in zip(indices, found.to_pylist(), strict=True):
        assert (before is None) == (after is None)
        if after is not None:
            assert inside(before, after)
            assert resolution_of(after) == min(target, resolution_of(before)), "never sharper"
    known = [cell for cell in found.to_pylist() if cell is not None]
    if known:
        areas = np.asarray(pa.array(h3ronpy.cells_area_km2(pa.array(known, pa.uint64()))))
        assert areas.min() * cells.ELLIPSOID_FACTOR >= cell_km2


@given(st.lists(st.tuples(LATITUDES, LONGITUDES), min_size=1, max_size=10), AREAS, AREAS)
def test_coarsening_twice_is_the_coarser_of_both(places, first_km2, then_km2):
    located = OPERATORS["coarsen_location"]
    columns = [pa.array([place[i] for place in places]) for i in (0, 1)]
    first = located.run(columns, located.parameters.model_validate({"cell_km2": first_km2}), NOTHING)
    once = coarsened(first, max(first_km2, then_km2))
    assert coarsened(first, then_km2).equals(once)
    assert coarsened(once, first_km2).equals(once)


@pytest.mark.parametrize("resolution", range(1, 5))
def test_what_a_parent_says_of_a_place_is_no_less_than_its_guarantee(resolution):
    """Children stick out of their parent, so the place is in their union: it has the area too."""
    digits = (1 << 3 * (15 - resolution)) - 1
    pentagons = [(1 << 59) | (resolution << 52) | (base << 45) | digits for base in BASES]
    around = pa.array(h3ronpy.grid_disk(pa.array(pentagons, pa.uint64()), 2, flatten=True)).unique()
    for finer in range(resolution + 1, resolution + 3):
        parts = pa.array(h3ronpy.change_resolution(around, finer))
        whole = np.asarray(cells.to_parents(pa.array(np.asarray(parts).view(np.int64)), resolution))
        areas = np.asarray(pa.array(h3ronpy.cells_area_km2(parts)))
        _, number = np.unique(whole, return_inverse=True)
        smallest = np.bincount(number, weights=areas).min()
        assert smallest >= cells.SMALLEST_CELL_KM2[resolution]


@settings(max_examples=200)
@given(st.integers(-(2**63), 2**63 - 1))
def test_a_number_that_is_no_cell_stops_the_operator(number):
    good = cell_at(1.0, 1.0, 7)
    valid = bool(pa.array(h3ronpy.cells_valid(pa.array([number % 2**64], pa.uint64()), booleanarray=True))[0])
    if not valid:
        with pytest.raises(ValueError, match="not a cell"):
            coarsened(pa.array([good, number]), 1.0)


@pytest.mark.parametrize("number", [0, -1, 7, (1 << 59) | (7 << 52) | (127 << 45)])
def test_some_numbers_that_are_no_cell(number):
    with pytest.raises(ValueError, match="not a cell"):
        coarsened(pa.array([number], pa.int64()), 1.0)


def test_the_edges_of_the_globe_keep_their_own_cells():
    for place in ((90.0, 0.0), (-90.0, 0.0), (0.0, 180.0), (0.0, -180.0)):
        cell = cell_at(*place, 9)
        (found,) = coarsened(pa.array([cell]), 1.0).to_pylist()
        assert found == cell_at(*place, 7) or inside(cell, found)


def test_it_takes_cells_as_numbers_or_text_and_nothing_else():
    operator = OPERATORS["coarsen_cell"]
    parameters = operator.parameters.model_validate({"cell_km2": 1.0})
    kinds = (pa.int64(), pa.string(), pa.float64(), pa.int32())
    assert [operator.accepts(kind, parameters) for kind in kinds] == [True, True, False, False]
