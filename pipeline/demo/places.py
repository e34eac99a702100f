"""Where the simulated devices are: cities per region, and streets to drive on.

A city is its centre and a grid of streets around it, turned by an angle. Positions are metres along and
across those streets; ``to_degrees`` puts them on the globe (an equirectangular plane: good for the few
kilometres of a city). Radii keep the grid on the land side of coasts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.errors import ConfigError

METRES_PER_DEGREE = 111_195.0  # of latitude, mean sphere of 6,371 km


@dataclass(frozen=True)
class City:
    """A grid of streets; ``block_m`` is the length of a block, ``utc_h`` its winter time."""

    name: str
    jurisdiction: str
    latitude: float
    longitude: float
    block_m: float
    angle_deg: float
    radius_m: float
    utc_h: int


CITIES: dict[str, tuple[City, ...]] = {
    "eu": (
        City("Berlin", "DE", 52.517, 13.389, 140, 8, 6000, 1),
        City("Hamburg", "DE", 53.571, 10.010, 120, 24, 3000, 1),
        City("Paris", "FR", 48.857, 2.351, 110, 31, 4500, 1),
        City("Lyon", "FR", 45.760, 4.860, 120, 12, 3000, 1),
        City("Utrecht", "NL", 52.090, 5.110, 90, 40, 2500, 1),
        City("Madrid", "ES", 40.425, -3.690, 130, 3, 5000, 1),
    ),
    "us-ca": (
        City("San Francisco", "US-CA", 37.757, -122.440, 150, 9, 3200, -8),
        City("San Jose", "US-CA", 37.335, -121.890, 170, 32, 6000, -8),
        City("Los Angeles", "US-CA", 34.050, -118.280, 200, 36, 7000, -8),
        City("Sacramento", "US-CA", 38.560, -121.470, 130, 18, 5000, -8),
    ),
    "br": (
        City("São Paulo", "BR-SP", -23.555, -46.640, 130, 21, 7000, -3),
        City("Campinas", "BR-SP", -22.905, -47.060, 120, 14, 4000, -3),
        City("Rio de Janeiro", "BR-RJ", -22.890, -43.280, 120, 27, 3000, -3),
        City("Belo Horizonte", "BR-MG", -19.925, -43.940, 110, 43, 4000, -3),
        City("Aracaju", "BR-SE", -10.925, -37.075, 100, 5, 2000, -3),
    ),
}


class Places:
    """The cities of a region as columns; devices refer to them by index."""

    def __init__(self, region: str) -> None:
        if region not in CITIES:
            known = ", ".join(sorted(CITIES))
            raise ConfigError(
                f"no places known in region {region!r}", operation="demo fleet", remedy=f"use {known}"
            )
        cities = CITIES[region]
        self.jurisdiction = np.array([c.jurisdiction for c in cities], dtype=object)
        self.latitude = np.array([c.latitude for c in cities])
        self.longitude = np.array([c.longitude for c in cities])
        self.block_m = np.array([c.block_m for c in cities])
        self.angle_rad = np.radians([c.angle_deg for c in cities])
        self.radius_m = np.array([c.radius_m for c in cities])
        self.utc_h = np.array([c.utc_h for c in cities], dtype=float)

    def __len__(self) -> int:
        return len(self.latitude)

    def to_degrees(
        self, city: np.ndarray, along: np.ndarray, across: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(latitude, longitude) of grid positions in metres along the city's first and second streets."""
        cos, sin = np.cos(self.angle_rad[city]), np.sin(self.angle_rad[city])
        east, north = along * cos - across * sin, along * sin + across * cos
        latitude = self.latitude[city] + north / METRES_PER_DEGREE
        width = METRES_PER_DEGREE * np.cos(np.radians(self.latitude[city]))
        return latitude, self.longitude[city] + east / width


def hour_of_day(now_us: int, utc_h: np.ndarray) -> np.ndarray:
    """Local hours since midnight, with fraction."""
    return (now_us / 3.6e9 + utc_h) % 24.0
