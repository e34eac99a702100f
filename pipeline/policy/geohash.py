"""Geohash cells that are large enough at every latitude.

Comes in: a smallest allowed area, and coordinates or cells. Goes out: geohash text of one to five characters.
Invariant: the cells that can come out for one area tile the Earth, and each has at least that area on the
WGS 84 ellipsoid; so what a cell says of a place is "somewhere in here" and no more.

A geohash of n characters is a box of fixed degrees, so it shrinks towards the poles: with five characters it
has 23.8 km2 at the equator and 0.009 km2 at a pole. Hence the length is chosen per row. A cell is divided
only where *all* its parts are large enough: were each row judged by its own box alone, a short text would say
"one of the parts that are too small", which is less than the cell it names.

Bits: longitude first, then in turns, an edge belongs to the cell on its upper side, 90 degrees north and 180
degrees east to the last cell; five bits a character. (G. Niemeyer, geohash.org, 2008.)
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ALPHABET = "0123456789bcdefghjkmnpqrstuvwxyz"
FINEST = 5  # characters; at 6 the largest cell, at the equator, has 0.74 km2: precise by law
LONGEST = 12  # characters of a geohash that is taken for one
_LATITUDE_BITS, _LONGITUDE_BITS = 12, 13  # of the finest
_EQUATOR_KM, _POLE_KM = 6378.137, 6356.752314245  # semi-axes of WGS 84
_MARGIN = 1e-6  # far above the rounding of the smallest areas (2e-8 of a cell at a pole)

_SPREAD = np.zeros(1 << _LONGITUDE_BITS, dtype=np.uint32)  # a number's bits with a gap after each
for _bit in range(_LONGITUDE_BITS):
    _SPREAD |= ((np.arange(len(_SPREAD), dtype=np.uint32) >> _bit) & 1) << (2 * _bit)
_CHARACTERS = np.frombuffer(ALPHABET.encode(), dtype=np.uint8)
_SHIFTS = np.arange(5 * (FINEST - 1), -1, -5, dtype=np.uint32)


def _edges(limit: float, count: int) -> np.ndarray:
    """``count`` steps from -limit to limit; exact, since 90 and 180 divided by a power of two are."""
    return np.asarray(np.arange(count + 1) * (2 * limit / count) - limit)


def cells_km2(characters: int) -> np.ndarray:
    """Area of the cells of that length, one number per row of latitude from south to north, in km2."""
    rows = 1 << (5 * characters // 2)
    sine = np.sin(np.radians(_edges(90.0, rows)))
    eccentricity = np.sqrt(1 - (_POLE_KM / _EQUATOR_KM) ** 2)
    # Area of the ellipsoid from the equator to a latitude, per radian of longitude (Snyder 1987, eq. 3-12).
    zone = sine / (1 - (eccentricity * sine) ** 2) + np.arctanh(eccentricity * sine) / eccentricity
    columns = 1 << (5 * characters - 5 * characters // 2)
    return np.asarray(np.diff(zone) * _POLE_KM**2 / 2 * 2 * np.pi / columns)


LARGEST_KM2 = float(cells_km2(1).min())  # what even a cell at a pole has


@lru_cache(maxsize=64)
def lengths(cell_km2: float) -> np.ndarray:
    """Characters for each of the 4096 rows of latitude of the finest cells, from south to north.

    ValueError when ``cell_km2`` is more than the smallest cell of one character has.
    """
    if not cell_km2 <= LARGEST_KM2:
        raise ValueError("no cell is that large")
    rows = 1 << _LATITUDE_BITS
    divided = np.ones(rows, dtype=bool)
    found = np.zeros(rows, dtype=np.int8)
    for characters in range(1, FINEST + 1):
        parents = 1 << (5 * (characters - 1) // 2)
        smallest_part = cells_km2(characters).reshape(parents, -1).min(axis=1)
        divided &= np.repeat(smallest_part * (1 - _MARGIN) >= cell_km2, rows // parents) | (characters == 1)
        found += divided
    return found


def to_geohashes(latitude: np.ndarray, longitude: np.ndarray, cell_km2: float) -> pa.Array:
    """The cell of each place, as text; degrees, within ±90 and ±180 (the caller has looked)."""
    row = _index(latitude, 90.0, 1 << _LATITUDE_BITS)
    code = _SPREAD[_index(longitude, 180.0, 1 << _LONGITUDE_BITS)] | _SPREAD[row] << np.uint32(1)
    characters = _CHARACTERS[(code[:, np.newaxis] >> _SHIFTS) & np.uint32(31)]
    length = lengths(cell_km2)[row]
    ends = np.concatenate(([0], np.cumsum(length, dtype=np.int32))).astype(np.int32)
    text = characters[np.arange(FINEST) < length[:, np.newaxis]]
    return pa.StringArray.from_buffers(len(row), pa.py_buffer(ends), pa.py_buffer(text))


def coarsen_geohashes(cells: pa.Array, cell_km2: float) -> pa.Array:
    """Each cell shortened until it has the area; one that has it stays; null stays null.

    Raises ValueError for a text that is no geohash.
    """
    coded = cells.dictionary_encode()
    shortened = [_shortened(cell, cell_km2) for cell in coded.dictionary.to_pylist()]
    return pc.take(pa.array(shortened, pa.string()), coded.indices)


def _shortened(cell: str, cell_km2: float) -> str:
    if not 1 <= len(cell) <= LONGEST or not set(cell) <= set(ALPHABET):
        raise ValueError("not a geohash")
    row = _first_row(cell[:FINEST])
    return cell[: lengths(cell_km2)[row]]


def _first_row(cell: str) -> int:
    """The southernmost row of the finest cells inside a cell; all of them have the same length, or are
    longer than it."""
    bits = "".join(f"{ALPHABET.index(character):05b}" for character in cell)
    return int((bits[1::2]).ljust(_LATITUDE_BITS, "0"), 2)


def _index(degrees: np.ndarray, limit: float, count: int) -> np.ndarray:
    """The step each value lies in, compared with the edges themselves: no rounding near them."""
    return np.minimum(np.searchsorted(_edges(limit, count), degrees, side="right") - 1, count - 1)
