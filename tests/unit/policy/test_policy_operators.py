"""Operators: each agrees with its definition, row by row, for any input and any slice of it."""

from __future__ import annotations

import hmac
import math
import struct
from datetime import UTC, datetime, timedelta

import h3ronpy
import h3ronpy.vector
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.policy import cells, pseudonyms
from pipeline.policy.encryption import Encrypter
from pipeline.policy.hierarchies import Hierarchy
from pipeline.policy.operators import OPERATORS, Context, floor_to_step
from pipeline.policy.operators.edge_places import EDGE_PLACES
from pipeline.policy.pseudonyms import Epochs, Pseudonymiser, epoch_index, epoch_name
from pipeline.policy.tokens import ExampleVault, Tokeniser
from tests.unit.policy.cases import Keys, microseconds

NOTHING = Context("", None, None)
PENTAGON_BASE_CELLS = (4, 14, 24, 38, 49, 58, 63, 72, 83, 97, 107, 117)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIMES_US = st.integers(microseconds("1900-01-01T00:00:00Z"), microseconds("2200-01-01T00:00:00Z"))


def run(name, columns, context=NOTHING, **parameters):
    operator = OPERATORS[name]
    return operator.run(columns, operator.parameters.model_validate(parameters), context)


def sliced(values, kind, lead):
    """The values as an array that does not start where its buffers do."""
    padding = [values[0] if values else None] * lead
    return pa.array([*padding, *values], kind)[lead:]


def pentagon(resolution, base):
    """Index of a pentagon: mode 1, the resolution, the base cell, digits 0 down to it and 7 below."""
    digits = (1 << 3 * (15 - resolution)) - 1
    return (1 << 59) | (resolution << 52) | (base << 45) | digits


def areas_km2(indices):
    return np.asarray(pa.array(h3ronpy.cells_area_km2(pa.array(indices, pa.uint64()))))


# --- location


def test_the_table_of_smallest_cells_holds_for_every_cell_of_the_coarse_resolutions():
    roots = pa.array(
        h3ronpy.vector.coordinates_to_cells(*np.random.default_rng(3).uniform(-90, 90, (2, 1)), 0)
    )
    roots = pa.array(h3ronpy.grid_disk(roots, 20, flatten=True)).unique()
    assert len(roots) == 122
    for resolution in range(4):
        every = roots if resolution == 0 else pa.array(h3ronpy.change_resolution(roots, resolution))
        assert len(every) == 2 + 120 * 7**resolution
        smallest = areas_km2(every).min()
        assert cells.SMALLEST_CELL_KM2[resolution] <= smallest < 1.001 * cells.SMALLEST_CELL_KM2[resolution]


@pytest.mark.parametrize("resolution", range(len(cells.SMALLEST_CELL_KM2)))
def test_the_smallest_cells_are_the_pentagons_and_their_area_is_the_tables(resolution):
    pentagons = [pentagon(resolution, base) for base in PENTAGON_BASE_CELLS]
    around = pa.array(h3ronpy.grid_disk(pa.array(pentagons, pa.uint64()), 2, flatten=True))
    smallest = areas_km2(pentagons).min()
    assert smallest == areas_km2(around).min()
    assert cells.SMALLEST_CELL_KM2[resolution] <= smallest < 1.001 * cells.SMALLEST_CELL_KM2[resolution]


def test_the_next_finer_pentagon_would_be_precise():
    assert areas_km2([pentagon(8, base) for base in PENTAGON_BASE_CELLS]).max() < cells.PRECISE_AREA_KM2


def test_the_ellipsoid_never_shrinks_a_cell_by_more_than_the_factor():
    a, e2, radius = 6378.137, 0.00669437999014, 6371.007180918475
    sine2 = np.sin(np.radians(np.linspace(0, 90, 1001))) ** 2
    ratio = a**2 * (1 - e2) / (1 - e2 * sine2) ** 2 / radius**2  # M * N / R**2
    assert cells.ELLIPSOID_FACTOR <= ratio.min() < cells.ELLIPSOID_FACTOR + 1e-3


def test_the_floor_is_the_circle_of_1850_feet():
    assert math.isclose(cells.PRECISE_AREA_KM2, math.pi * 0.56388**2)
    assert round(cells.PRECISE_AREA_KM2, 4) == cells.CELL_KM2_FLOOR


@given(st.floats(cells.CELL_KM2_FLOOR, 2_000_000))
def test_a_resolution_is_the_finest_that_keeps_every_cell_large_enough(cell_km2):
    resolution = cells.resolution_for(cell_km2)
    wanted = max(cell_km2, cells.PRECISE_AREA_KM2)
    assert cells.guaranteed_km2(resolution) > wanted
    assert resolution == 7 or cells.guaranteed_km2(resolution + 1) <= wanted


LATITUDES = st.one_of(st.floats(-90, 90), st.sampled_from([-90.0, 90.0, 0.0, -0.0]))
LONGITUDES = st.one_of(st.floats(-180, 180), st.sampled_from([-180.0, 180.0, 0.0]))
PENTAGON_CENTRES = [
    tuple(column[0].as_py() for column in pa.record_batch(h3ronpy.vector.cells_to_coordinates(
        pa.array([pentagon(7, base)], pa.uint64()))).columns)
    for base in PENTAGON_BASE_CELLS
]  # fmt: skip
PLACES = st.one_of(
    st.tuples(LATITUDES, LONGITUDES),
    st.sampled_from(PENTAGON_CENTRES),
    st.tuples(st.none(), LONGITUDES),
    st.tuples(LATITUDES, st.none()),
)


@given(st.lists(PLACES, max_size=20), st.floats(cells.CELL_KM2_FLOOR, 1000), st.integers(0, 3))
def test_a_place_becomes_a_cell_that_is_large_enough_anywhere_on_earth(places, cell_km2, lead):
    columns = [sliced([place[i] for place in places], pa.float64(), lead) for i in (0, 1)]
    found = run("coarsen_location", columns, cell_km2=cell_km2)
    assert found.type == pa.int64()
    assert [cell is None for cell in found.to_pylist()] == [None in place for place in places]
    known = [cell for cell in found.to_pylist() if cell is not None]
    if known:
        assert areas_km2(known).min() * cells.ELLIPSOID_FACTOR >= cell_km2
        assert set(h3ronpy.cells_resolution(pa.array(known, pa.uint64())).to_pylist()) == {
            cells.resolution_for(cell_km2)
        }


@given(LATITUDES, LONGITUDES)
def test_neither_coordinate_can_be_read_in_the_cell(latitude, longitude):
    (cell,) = run("coarsen_location", [pa.array([latitude]), pa.array([longitude])], cell_km2=1.0).to_pylist()
    assert struct.pack("<q", cell) not in (struct.pack("<d", latitude), struct.pack("<d", longitude))
    below = 3 * (15 - 7)
    assert cell & ((1 << below) - 1) == (1 << below) - 1, "no digit below the resolution"


@pytest.mark.parametrize(
    ("latitude", "longitude"), [(math.nan, 0.0), (0.0, math.inf), (90.001, 0.0), (0.0, -180.5), (1000.0, 5.0)]
)
def test_a_place_that_is_not_on_earth_stops_the_operator(latitude, longitude):
    columns = [pa.array([1.0, latitude]), pa.array([1.0, longitude])]
    with pytest.raises(ValueError, match=r"coordinate|latitude"):
        run("coarsen_location", columns, cell_km2=1.0)


@pytest.mark.parametrize("cell_km2", [0.0, -1.0, 0.99, 0.9988, math.nan, 1e9, math.inf])
def test_a_cell_below_the_legal_floor_or_beyond_the_largest_is_refused(cell_km2):
    with pytest.raises(ValidationError, match=r"below 0\.9989 km2|no cell is that large"):
        OPERATORS["coarsen_location"].parameters.model_validate({"cell_km2": cell_km2})


# --- pseudonyms


def defined(subject, time_us, kind, keys, *, region="eu", purpose="care", domain="identifier.device"):
    """The definition, for one row."""
    moment = EPOCH + timedelta(microseconds=time_us)
    part = f"{moment.month:02d}" if kind == "month" else f"q{(moment.month + 2) // 3}"
    key = keys.key(region, purpose, f"{moment.year:04d}-{part}")
    return hmac.digest(key, domain.encode() + b"\0" + subject.encode(), "sha256").hex()[:32]


SUBJECTS = st.one_of(st.none(), st.sampled_from(["a", "b", "ä", ""]), st.text(max_size=8))
KINDS = st.sampled_from(["month", "quarter"])


@given(st.lists(st.tuples(SUBJECTS, TIMES_US), max_size=30), KINDS, st.integers(0, 3))
def test_pseudonyms_agree_with_their_definition_over_any_epochs(rows, kind, lead):
    keys = Keys()
    times = sliced([time for _, time in rows], pa.int64(), lead).cast(pa.timestamp("us"))
    subjects = sliced([subject for subject, _ in rows], pa.string(), lead)
    made = Pseudonymiser(keys, "eu", kind).column(subjects, "care", "identifier.device", Epochs(times, kind))
    assert made.to_pylist() == [None if s is None else defined(s, t, kind, keys) for s, t in rows]
    assert made.type == pa.string()


@given(st.text(), TIMES_US, TIMES_US, KINDS)
def test_one_subject_has_one_pseudonym_inside_an_epoch_and_another_outside(subject, first, second, kind):
    made = Pseudonymiser(Keys(), "eu", kind)
    found = [
        made.column(pa.array([subject]), "care", "d", Epochs(pa.array([t], pa.timestamp("us")), kind))[
            0
        ].as_py()
        for t in (first, second)
    ]
    same_epoch = len(set(epoch_index(np.array([first, second]), kind).tolist())) == 1
    assert (found[0] == found[1]) == same_epoch


@given(st.text(), TIMES_US)
def test_regions_purposes_and_domains_share_no_pseudonym(subject, time_us):
    epochs = Epochs(pa.array([time_us], pa.timestamp("us")), "month")
    found = {
        made.column(pa.array([subject]), purpose, domain, epochs)[0].as_py()
        for made in (Pseudonymiser(Keys(), "eu", "month"), Pseudonymiser(Keys(), "br", "month"))
        for purpose in ("care", "service")
        for domain in ("identifier.device", "identifier.direct")
    }
    assert len(found) == 8


def test_a_domain_and_a_subject_cannot_be_shifted_into_each_other():
    epochs = Epochs(pa.array([0], pa.timestamp("us")), "month")
    made = Pseudonymiser(Keys(), "eu", "month")
    one = made.column(pa.array(["bc"]), "care", "a", epochs)
    two = made.column(pa.array(["c"]), "care", "ab", epochs)
    assert one != two


def test_the_memory_for_pseudonyms_is_bounded_and_forgetting_changes_nothing(monkeypatch):
    monkeypatch.setattr(pseudonyms, "_CACHE_ENTRIES_MAX", 10)
    keys = Keys()
    made = Pseudonymiser(keys, "eu", "month")
    epochs = Epochs(pa.array([0], pa.timestamp("us")), "month")
    for start in range(0, 60, 7):
        subjects = [f"s{i}" for i in range(start, start + 9)]
        found = made.column(pa.array(subjects), "care", "d", epochs).to_pylist()
        assert found == [defined(s, 0, "month", keys, domain="d") for s in subjects]
        assert sum(map(len, made._tables.values())) == made._held <= 10


@pytest.mark.parametrize(
    ("text", "month", "quarter"),
    [
        ("1969-12-31T23:59:59.999999+00:00", "1969-12", "1969-q4"),
        ("1970-01-01T00:00:00+00:00", "1970-01", "1970-q1"),
        ("2026-03-31T23:59:59.999999+00:00", "2026-03", "2026-q1"),
        ("2026-04-01T00:00:00+00:00", "2026-04", "2026-q2"),
        ("2024-02-29T12:00:00+00:00", "2024-02", "2024-q1"),
    ],
)
def test_an_epoch_begins_at_midnight_utc_of_its_first_day(text, month, quarter):
    times = np.array([microseconds(text)])
    assert epoch_name(int(epoch_index(times, "month")[0]), "month") == month
    assert epoch_name(int(epoch_index(times, "quarter")[0]), "quarter") == quarter


# --- time and numbers


@given(
    st.lists(st.one_of(st.none(), TIMES_US), max_size=20),
    st.sampled_from(["second", "minute", "hour", "day"]),
    st.integers(0, 3),
)
def test_a_time_is_rounded_down_to_its_unit(times, unit, lead):
    cleared = {"second": {"microsecond": 0}}
    cleared["minute"] = {**cleared["second"], "second": 0}
    cleared["hour"] = {**cleared["minute"], "minute": 0}
    cleared["day"] = {**cleared["hour"], "hour": 0}
    column = sliced(times, pa.int64(), lead).cast(pa.timestamp("us"))
    found = run("truncate_time", [column], to=unit)
    assert found.type == pa.timestamp("us")
    assert found.cast(pa.int64()).to_pylist() == [
        None
        if time is None
        else (
            ((EPOCH + timedelta(microseconds=time)).replace(**cleared[unit]) - EPOCH)
            // timedelta(microseconds=1)
        )
        for time in times
    ]


@pytest.mark.parametrize(
    ("unit", "gives"), [("second", "time.precise"), ("minute", "time.precise"), ("hour", "time.coarse")]
)
def test_a_time_is_coarse_from_an_hour_on(unit, gives):
    operator = OPERATORS["truncate_time"]
    parameters = operator.parameters.model_validate({"to": unit})
    assert operator.gives(parameters, frozenset({"time.precise"})) == {gives}


STEPS = st.sampled_from([0.001, 0.1, 0.25, 1.0, 3.0, 10.0, 1000.0])


@given(st.lists(st.one_of(st.none(), st.floats(-1e9, 1e9)), max_size=20), STEPS, st.integers(0, 3))
def test_a_number_becomes_the_lower_end_of_its_step(numbers, step, lead):
    found = run("generalise_number", [sliced(numbers, pa.float64(), lead)], step=step).to_pylist()
    slack = 1e-6 * step + 1e-15 * 1e9
    for number, lower in zip(numbers, found, strict=True):
        assert (lower is None) == (number is None)
        if lower is not None:
            assert lower - slack <= number < lower + step + slack
            assert math.isclose(lower / step, round(lower / step), abs_tol=1e-6)
            assert floor_to_step(lower, step) == lower


@given(
    st.lists(st.one_of(st.none(), st.integers(-(2**62), 2**62)), max_size=20),
    st.sampled_from([1, 3, 10, 1000]),
    st.integers(0, 3),
)
def test_a_whole_number_stays_whole_and_exact(numbers, step, lead):
    found = run("generalise_number", [sliced(numbers, pa.int64(), lead)], step=float(step))
    assert found.type == pa.int64()
    assert found.to_pylist() == [None if n is None else n // step * step for n in numbers]


@pytest.mark.parametrize("kind", [pa.int32(), pa.int64()])
def test_a_whole_number_at_the_end_of_its_type_stops_and_does_not_wrap(kind):
    with pytest.raises(pa.ArrowInvalid):
        run("generalise_number", [pa.array([-(2 ** (kind.bit_width - 1))], kind)], step=1000.0)


def test_a_number_on_a_boundary_belongs_to_the_step_that_starts_there():
    found = run("generalise_number", [pa.array([0.3, 0.7, 0.6000000000000001])], step=0.1).to_pylist()
    assert found == pytest.approx([0.3, 0.7, 0.6])


@pytest.mark.parametrize("step", [0.0, -1.0, math.nan, math.inf])
def test_a_step_without_width_is_refused(step):
    with pytest.raises(ValidationError):
        OPERATORS["generalise_number"].parameters.model_validate({"step": step})


@pytest.mark.parametrize("value", ["masked", 7, 1.5, True])
def test_a_constant_stands_in_every_row(value):
    found = run("constant", [pa.array(["a", None, "b"])], value=value)
    assert found.to_pylist() == [value] * 3
    assert type(found[0].as_py()) is type(value)


# --- all


@settings(max_examples=20)
@given(st.integers(0, 5))
def test_every_operator_gives_a_column_as_long_as_its_input(length):
    inputs = {
        "coarsen_location": ([pa.array([1.0] * length, pa.float64())] * 2, {"cell_km2": 1.0}),
        "tokenise": ([pa.array(["x"] * length, pa.string())], {"purpose": "care"}),
        "noise": ([pa.array([1.0] * length, pa.float64())], {"epsilon": 1.0, "lower": 0.0, "upper": 2.0}),
        "randomised_response": ([pa.array([True] * length, pa.bool_())], {"epsilon": 1.0}),
        "coarsen_cell": ([pa.array([0x87283472BFFFFFF] * length, pa.int64())], {"cell_km2": 20.0}),
        "truncate_time": ([pa.array([1] * length, pa.timestamp("us"))], {"to": "day"}),
        "generalise_number": ([pa.array([1.0] * length, pa.float64())], {"step": 1}),
        "constant": ([pa.array([None] * length, pa.string())], {"value": "x"}),
        "generalise_date": ([pa.array([1] * length, pa.timestamp("us"))], {"to": "week"}),
        "top_code": ([pa.array([1.0] * length, pa.float64())], {"maximum": 1}),
        "bottom_code": ([pa.array([1.0] * length, pa.float64())], {"minimum": 1}),
        "null": ([pa.array(["x"] * length, pa.string())], {}),
        "mask": ([pa.array(["x"] * length, pa.string())], {}),
        "truncate": ([pa.array(["x"] * length, pa.string())], {"characters": 2}),
        "redact_text": ([pa.array(["x"] * length, pa.string())], {}),
        "truncate_ip": ([pa.array(["x"] * length, pa.string())], {}),
        "generalise_category": ([pa.array(["x"] * length, pa.string())], {"hierarchy": "h"}),
        "keep": ([pa.array(["x"] * length, pa.string())], {}),
        "deterministic_encrypt": ([pa.array(["x"] * length, pa.string())], {"purpose": "care"}),
        "pseudonymise": ([pa.array(["x"] * length, pa.string())], {"purpose": "care"}),
    }
    of_the_edge = {operator.name for operator in EDGE_PLACES}  # it gives two columns, never on a leg
    assert set(inputs) == {name for name, operator in OPERATORS.items() if operator.run} - of_the_edge
    epochs = Epochs(pa.array([0] * length, pa.timestamp("us")), "month")
    tables = {"h": Hierarchy(values={"x": "y"}, other="z", source="a test")}
    keys = Pseudonymiser(Keys(), "eu", "month"), Encrypter(Keys(), "eu", "month")
    tokens = Tokeniser(Keys(), "eu", ExampleVault())
    context = Context("d", epochs, *keys, tables, tokens)
    for name, (columns, parameters) in inputs.items():
        assert len(run(name, columns, context, **parameters)) == length
