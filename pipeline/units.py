"""Conversions between units, as a declared table.

Comes in: the unit a file is written in and the unit a field is declared in. Goes out: the one linear step
between them. Every entry is ``base = value * factor + offset`` in exact fractions, so that a combination
is rounded once. Sources: the international yard and pound (1959), SI brochure 9th edition.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Conversion:
    """``value * factor + offset``."""

    factor: float
    offset: float

    @property
    def is_identity(self) -> bool:
        return self.factor == 1.0 and self.offset == 0.0


def _scale(factor: str, offset: str = "0") -> tuple[Fraction, Fraction]:
    return Fraction(factor), Fraction(offset)


# dimension -> unit -> (factor, offset) to the first unit of the dimension
UNITS: dict[str, dict[str, tuple[Fraction, Fraction]]] = {
    "temperature": {
        "Cel": _scale("1"),
        "K": _scale("1", "-273.15"),
        "F": (Fraction(5, 9), Fraction(-160, 9)),
        "R": (Fraction(5, 9), Fraction("-273.15")),
    },
    "speed": {
        "m/s": _scale("1"),
        "km/h": (Fraction(5, 18), Fraction(0)),
        "mph": _scale("0.44704"),
        "kn": (Fraction(1852, 3600), Fraction(0)),
    },
    "length": {
        "m": _scale("1"),
        "km": _scale("1000"),
        "cm": _scale("0.01"),
        "mm": _scale("0.001"),
        "ft": _scale("0.3048"),
        "mi": _scale("1609.344"),
    },
    "pressure": {
        "kPa": _scale("1"),
        "Pa": _scale("0.001"),
        "bar": _scale("100"),
        "psi": (Fraction("4.4482216152605") / Fraction("0.00064516") / 1000, Fraction(0)),
    },
    "energy": {"kWh": _scale("1"), "Wh": _scale("0.001"), "MJ": (Fraction(10, 36), Fraction(0))},
    "power": {"W": _scale("1"), "kW": _scale("1000"), "hp": _scale("745.69987158227022")},
    "voltage": {"V": _scale("1"), "mV": _scale("0.001"), "kV": _scale("1000")},
    "current": {"A": _scale("1"), "mA": _scale("0.001")},
    "duration": {
        "s": _scale("1"),
        "ms": _scale("0.001"),
        "us": _scale("0.000001"),
        "min": _scale("60"),
        "h": _scale("3600"),
    },
    "rotation": {
        "rpm": _scale("1"),
        "Hz": _scale("60"),
        "rad/s": (Fraction("9.549296585513721"), Fraction(0)),
    },
    "angle": {"deg": _scale("1"), "rad": _scale("57.29577951308232")},
    "fraction": {"1": _scale("1"), "%": _scale("0.01")},
    "volume": {"L": _scale("1"), "m3": _scale("1000"), "gal": _scale("3.785411784")},
    "mass": {"kg": _scale("1"), "g": _scale("0.001"), "lb": _scale("0.45359237")},
    "acceleration": {"m/s2": _scale("1"), "g0": _scale("9.80665")},
}

# Other spellings of the same unit, as files and schemas write them.
SPELLINGS = {
    "°C": "Cel", "degC": "Cel", "C": "Cel", "celsius": "Cel", "°F": "F", "degF": "F", "fahrenheit": "F",
    "kelvin": "K", "°R": "R", "degR": "R", "rankine": "R", "kmh": "km/h", "kph": "km/h", "mps": "m/s",
    "m_per_s": "m/s", "km_per_h": "km/h", "mi/h": "mph", "psia": "psi", "percent": "%", "ratio": "1",
    "degree": "deg", "degrees": "deg", "°": "deg", "l": "L", "litre": "L", "m³": "m3", "µs": "us",
    "[degF]": "F", "[degR]": "R", "[psi]": "psi", "[ft_i]": "ft", "[mi_i]": "mi", "[mi_i]/h": "mph",
    "[kn_i]": "kn", "[lb_av]": "lb", "[gal_us]": "gal", "[HP]": "hp",
    "1/min": "rpm", "m/s²": "m/s2", "m/s^2": "m/s2", "knot": "kn", "volt": "V",
}  # fmt: skip


def _find(unit: str) -> tuple[str, tuple[Fraction, Fraction]] | None:
    name = SPELLINGS.get(unit, unit)
    for dimension, units in UNITS.items():
        if name in units:
            return dimension, units[name]
    return None


def conversion(unit: str, target: str) -> Conversion:
    """The step from ``unit`` to ``target``; ConfigError when one is unknown or the dimensions differ."""
    if SPELLINGS.get(unit, unit) == SPELLINGS.get(target, target):
        return Conversion(1.0, 0.0)
    here, there = _find(unit), _find(target)
    if here is None or there is None:
        missing = unit if here is None else target
        known = ", ".join(sorted(name for units in UNITS.values() for name in units))
        raise ConfigError(f"no unit {missing!r}", operation="unit conversion", remedy=f"known: {known}")
    if here[0] != there[0]:
        raise ConfigError(f"{unit!r} is a {here[0]} and {target!r} a {there[0]}", operation="unit conversion")
    (factor, offset), (to_factor, to_offset) = here[1], there[1]
    return Conversion(float(factor / to_factor), float((offset - to_offset) / to_factor))
