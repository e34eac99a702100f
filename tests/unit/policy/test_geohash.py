"""Geohash cells: the published text, an area that holds at every latitude, and a tiling of the Earth."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.policy import geohash
from pipeline.policy.cells import CELL_KM2_FLOOR, PRECISE_AREA_KM2
from pipeline.policy.operators import OPERATORS, Context

NOTHING = Context("", None, None)
# Published: Wikipedia "Geohash" (the first three), the READMEs of pygeohash and ngeohash, geohash.org.
VECTORS = [
    (57.64911, 10.40744, "u4pruydqqvj"),
    (42.605, -5.603, "ezs42"),
    (48.669, -4.329, "gbsuv"),
    (42.6, -5.6, "ezs42e44yx96"),
    (37.8324, 112.5584, "ww8p1r4t8"),
    (-25.382708, -49.265506, "6gkzwgjzn820"),
    (0.0, 0.0, "s00000000"),
]
AREAS = st.one_of(st.floats(CELL_KM2_FLOOR, 2_000_000), st.sampled_from([1.0, 20.0, 24.0, 800.0, 25_000.0]))
EDGE = [-90.0, 90.0, 0.0, -0.0, 89.9999999, -89.9999999, 88.0, 85.0]
LATITUDES = st.one_of(st.floats(-90, 90), st.sampled_from(EDGE))
LONGITUDES = st.one_of(st.floats(-180, 180), st.sampled_from([-180.0, 180.0, 179.9999999, 0.0]))
PLACES = st.tuples(st.one_of(st.none(), LATITUDES), st.one_of(st.none(), LONGITUDES))


def run(name, columns, **parameters):
    operator = OPERATORS[name]
    return operator.run(columns, operator.parameters.model_validate(parameters), NOTHING)


def coarsened(places, cell_km2, lead=0):
    columns = [
        pa.array([*[1.0] * lead, *(place[i] for place in places)], pa.float64())[lead:] for i in (0, 1)
    ]
    return run("coarsen_location", columns, cell_km2=cell_km2, grid="geohash")


def box(cell):
    """South, north, west, east of a geohash, by halving as its definition says."""
    sides = {"longitude": [-180.0, 180.0], "latitude": [-90.0, 90.0]}
    bits = [int(bit) for character in cell for bit in f"{geohash.ALPHABET.index(character):05b}"]
    for number, bit in enumerate(bits):
        side = sides["longitude" if number % 2 == 0 else "latitude"]
        side[1 - bit] = sum(side) / 2
    return *sides["latitude"], *sides["longitude"]


def area_km2(cell):
    """Of a box on WGS 84: the integral of M N cos(latitude), by Gauss and Legendre, not by the formula."""
    south, north, west, east = np.radians(box(cell))
    a, e2 = 6378.137, 0.00669437999014
    nodes, weights = np.polynomial.legendre.leggauss(24)
    latitudes = (north - south) / 2 * nodes + (north + south) / 2
    density = a**2 * (1 - e2) * np.cos(latitudes) / (1 - e2 * np.sin(latitudes) ** 2) ** 2
    return float((east - west) * (north - south) / 2 * (weights @ density))


@pytest.mark.parametrize(("latitude", "longitude", "published"), VECTORS)
def test_the_text_is_the_published_one(latitude, longitude, published):
    (found,) = coarsened([(latitude, longitude)], 1.0).to_pylist()
    assert found == published[:5]


@given(LATITUDES, LONGITUDES)
def test_the_text_is_that_of_halving_bit_by_bit(latitude, longitude):
    (cell,) = coarsened([(latitude, longitude)], 1.0).to_pylist()
    south, north, west, east = box(cell)
    assert south <= latitude < north or (latitude == north == 90)
    assert west <= longitude < east or (longitude == east == 180)


@given(st.lists(PLACES, max_size=20), AREAS, st.integers(0, 3))
def test_every_cell_has_the_area_wherever_it_is(places, cell_km2, lead):
    found = coarsened(places, cell_km2, lead)
    assert found.type == pa.string()
    found.validate(full=True)
    assert [cell is None for cell in found.to_pylist()] == [None in place for place in places]
    for cell in {cell for cell in found.to_pylist() if cell is not None}:
        assert area_km2(cell) >= cell_km2 > 0
        assert area_km2(cell) > PRECISE_AREA_KM2


@settings(max_examples=30)
@given(AREAS)
def test_the_cells_tile_the_earth_so_a_text_says_no_more_than_its_cell(cell_km2):
    """A short text must not mean "one of its parts that are too small": no cell that comes out lies in
    another that comes out, and together they are the Earth."""
    rows = geohash.lengths(cell_km2)
    latitudes = -90 + (np.arange(len(rows)) + 0.5) * 180 / len(rows)
    cells = set(geohash.to_geohashes(latitudes, np.zeros(len(rows)), cell_km2).to_pylist())
    assert not any(cell[:length] in cells for cell in cells for length in range(1, len(cell)))
    covered = sum(box(cell)[1] - box(cell)[0] for cell in cells)
    assert math.isclose(covered, 180.0)


def test_the_areas_are_those_of_the_ellipsoid():
    for characters in range(1, 7):
        areas = geohash.cells_km2(characters)
        columns = 1 << (5 * characters - 5 * characters // 2)
        assert math.isclose(areas.sum() * columns, 510_065_621.724, rel_tol=1e-9)  # of WGS 84
    assert math.isclose(geohash.cells_km2(5)[0], area_km2("00000"), rel_tol=1e-6)
    assert geohash.cells_km2(6).max() < PRECISE_AREA_KM2, "six characters are precise everywhere"


def test_five_characters_at_a_pole_would_be_precise_and_do_not_come_out():
    assert area_km2("zzzzz") < PRECISE_AREA_KM2 < area_km2("zzzz")
    assert coarsened([(90.0, 180.0), (-90.0, -180.0), (0.0, 180.0)], 1.0).to_pylist() == [
        "zzzz",
        "0000",
        "xbpbp",
    ]


@pytest.mark.parametrize(
    ("latitude", "longitude"), [(math.nan, 0.0), (0.0, math.nan), (0.0, math.inf), (90.001, 0.0), (0, -180.5)]
)
def test_a_place_that_is_not_on_earth_stops_the_operator(latitude, longitude):
    with pytest.raises(ValueError, match="coordinate"):
        coarsened([(1.0, 1.0), (latitude, longitude)], 1.0)


@given(st.lists(st.tuples(LATITUDES, LONGITUDES), min_size=1, max_size=20), AREAS, AREAS)
def test_coarsening_a_cell_is_coarsening_its_place_and_never_sharpens(places, first_km2, then_km2):
    cells = coarsened(places, first_km2)
    again = run("coarsen_cell", [cells], cell_km2=then_km2)
    for before, after in zip(cells.to_pylist(), again.to_pylist(), strict=True):
        assert before.startswith(after)
        assert area_km2(after) >= max(first_km2, then_km2)
    assert again.equals(coarsened(places, max(first_km2, then_km2)))


@given(st.text(geohash.ALPHABET, min_size=1, max_size=12), AREAS)
def test_any_geohash_becomes_one_that_is_large_enough(cell, cell_km2):
    (found,) = run("coarsen_cell", [pa.array([cell])], cell_km2=cell_km2).to_pylist()
    assert cell.startswith(found)
    assert area_km2(found) >= cell_km2


@pytest.mark.parametrize("text", ["", "a", "u4pruA", "U4PRU", "u4pru ", "u4pruydqqvj00", "Berlin"])
def test_a_text_that_is_no_geohash_stops_the_operator(text):
    with pytest.raises(ValueError, match="not a geohash"):
        run("coarsen_cell", [pa.array(["u4pru", text])], cell_km2=1.0)


def test_a_null_cell_stays_null():
    assert run("coarsen_cell", [pa.array(["u4pru", None])], cell_km2=100.0).to_pylist() == ["u4pr", None]


def test_an_unknown_grid_and_a_cell_beyond_all_grids_are_refused():
    model = OPERATORS["coarsen_location"].parameters
    for bad in ({"cell_km2": 1.0, "grid": "s2"}, {"cell_km2": 3e6, "grid": "geohash"}):
        with pytest.raises(ValidationError):
            model.model_validate(bad)
    with pytest.raises(ValueError, match="no cell is that large"):
        geohash.lengths(1e7)
