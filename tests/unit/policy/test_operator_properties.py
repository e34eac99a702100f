"""What each operator promises, for any input: its result is what its signature says, and tells no more.

Beside the definitions in ``test_policy_operators`` (what comes out of a value) stands here what cannot come
out: two inputs that an operator must not tell apart give one output. Examples are derived from the test, so
that every run tries the same ones; a failure prints the blob that replays it.
"""

from __future__ import annotations

import base64
import ipaddress
import struct
from datetime import UTC, date, datetime, timedelta

import h3ronpy
import h3ronpy.vector
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pipeline.policy import OPERATORS, compile_plan
from pipeline.policy.encryption import Encrypter, decrypt
from pipeline.policy.hierarchies import Hierarchy
from pipeline.policy.operators import Context
from pipeline.policy.pseudonyms import Epochs
from pipeline.policy.redaction import find
from pipeline.policy.terms import landing_terms
from tests.unit.policy.cases import NOW_US, TIMESTAMP, Keys, event, field, pack, to_batch
from tests.unit.policy.test_policy_operators import PENTAGON_BASE_CELLS, TIMES_US, pentagon, run

TRIED = settings(
    max_examples=60, deadline=None, derandomize=True, print_blob=True, suppress_health_check=list(HealthCheck)
)
PRECISE_KM2 = 0.9989  # Cal. Civ. Code 1798.140(w): a circle of 1,850 feet
JOBS = Hierarchy(values={"nurse": "care", "doctor": "care", "smith": "craft"}, other="-", source="a test")
DATE = {"type": "int", "logicalType": "date"}
YEAR_US = 366 * 86_400_000_000


# --- the signature, by one event with a field for every operator

# field → its Avro type and tag; operator with its parameters; what the result shall be: tags, type, nullable.
SIGNATURES = {
    "source": ("string", "identifier.device", "pseudonymise", {"purpose": "care"},
               {"pseudonym"}, pa.string(), False),
    "event_time": (TIMESTAMP, "time.precise", "truncate_time", {"to": "hour"},
                   {"time.coarse"}, pa.timestamp("us"), False),
    "person": (["null", "string"], "identifier.direct", "deterministic_encrypt", {"purpose": "care"},
               {"pseudonym"}, pa.string(), True),
    "secret": (["null", "string"], "special.health", "drop", {}, set(), None, None),
    "plain": (["null", "string"], "category", "keep", {}, {"category"}, pa.string(), True),
    "blank": ("string", "quasi", "null", {}, {"category"}, pa.string(), True),
    "fixed": (["null", "string"], "quasi", "constant", {"value": 7}, {"category"}, pa.int64(), False),
    "born": (["null", DATE], "quasi", "generalise_date", {"to": "year"}, {"quasi.coarse"}, pa.date32(), True),
    "amount": ("double", "measurement", "generalise_number", {"step": 10},
               {"measurement"}, pa.float64(), False),
    "high": (["null", "double"], "quasi", "top_code", {"maximum": 5}, {"quasi"}, pa.float64(), True),
    "low": (["null", "int"], "measurement", "bottom_code", {"minimum": 5}, {"measurement"}, pa.int32(), True),
    "badge": ("string", "identifier.direct", "mask", {"keep_first": 1, "keep_last": 2},
              {"quasi"}, pa.string(), False),
    "postcode": (["null", "string"], "quasi", "truncate", {"characters": 2}, {"quasi"}, pa.string(), True),
    "job": (["null", "string"], "quasi", "generalise_category", {"hierarchy": "jobs"},
            {"quasi.coarse"}, pa.string(), True),
    "address": ("string", "identifier.device", "truncate_ip", {}, {"quasi"}, pa.string(), True),
    "note": (["null", "string"], "text.free", "redact_text", {}, {"text.redacted"}, pa.string(), True),
}  # fmt: skip
PLACE = ("latitude", "longitude")
EVENT = event(
    "trial",
    (
        *(field(name, avro, tag) for name, (avro, tag, *_) in SIGNATURES.items()),
        *(field(name, ["null", "double"], "location.precise", role=name) for name in PLACE),
    ),
)
PACK = {
    "purposes.service": {"meaning": "answer", "basis": "a test"},
    "hierarchies": {"jobs": JOBS.model_dump()},
    "landing.events": {
        "trial": {
            "also_allowed": {"tags": ["quasi", "text.redacted"], "source": "a test"},
            "fields": {
                name: {"operator": operator, "with": parameters, "source": "a test"}
                for name, (_, _, operator, parameters, *_) in SIGNATURES.items()
            },
        }
    },
}

NEEDLE = st.integers(0, 10**9).map(lambda n: f"Qz{n:09d}jX")  # found again, wherever it leaks to
MAYBE = st.one_of(st.none(), NEEDLE)
NUMBER = st.floats(-1e6, 1e6)
DEGREES = st.integers(-(10**7), 10**7).map(lambda n: (n + 0.123456789) * 7e-6)  # bytes that nothing else has
ROWS = st.lists(
    st.fixed_dictionaries({
        "source": st.sampled_from(["press-1", "press-2", "ä", ""]),
        "event_time": st.integers(NOW_US - YEAR_US, NOW_US + YEAR_US),
        "person": st.one_of(st.none(), st.sampled_from(["press-1", "Anna"])),
        "secret": MAYBE, "plain": st.one_of(st.none(), st.text(max_size=4)), "blank": NEEDLE, "fixed": MAYBE,
        "born": st.one_of(st.none(), st.dates(date(1900, 1, 1), date(2020, 1, 1))),
        "amount": NUMBER, "high": st.one_of(st.none(), NUMBER),
        "low": st.one_of(st.none(), st.integers(-(2**31), 2**31 - 1)),
        "badge": NEEDLE, "postcode": MAYBE, "job": st.one_of(MAYBE, st.sampled_from(["nurse", "smith"])),
        "address": st.one_of(NEEDLE, st.ip_addresses().map(str)),
        "note": st.one_of(st.none(), NEEDLE.map(lambda n: f"write to {n}@mail.example")),
        "latitude": st.one_of(st.none(), DEGREES), "longitude": DEGREES,
    }),
    max_size=12,
)  # fmt: skip


def planned(changes=None, keys=None):
    """The plan of the trial event in the small pack."""
    terms = landing_terms(pack({**PACK, **(changes or {})}))
    return compile_plan(terms, EVENT, keys or Keys(), now_us=NOW_US)


PLAN = planned()


def test_every_operator_that_there_was_is_on_trial():
    on_trial = {operator for _, _, operator, *_ in SIGNATURES.values()} | {"coarsen_location"}
    assert len(on_trial) == 17
    assert on_trial <= set(OPERATORS)


def test_the_result_has_the_tags_the_type_and_the_nulls_of_the_signature_and_nothing_else():
    columns = {column["name"]: column for column in PLAN.schema["fields"]}
    expected = {name: signature[4:] for name, signature in SIGNATURES.items() if signature[4]}
    expected["location_cell"] = ({"location.coarse"}, pa.int64(), True)
    assert set(columns) == {*expected, "raw_partition", "raw_offset"}
    for name, (tags, kind, nullable) in expected.items():
        assert set(columns[name]["confluent:tags"]) == tags, name
        assert PLAN.arrow.field(name).type == kind, name
        assert PLAN.arrow.field(name).nullable == nullable, name
        assert isinstance(columns[name]["type"], list) == nullable, name


@TRIED
@given(ROWS)
def test_the_result_has_every_row_once_and_nulls_where_declared(rows):
    result = PLAN.transform(to_batch(EVENT.arrow, rows))
    assert result.schema == PLAN.arrow
    assert len(result) == len(rows)
    result.validate(full=True)
    for name, (_, _, operator, *_) in SIGNATURES.items():
        if operator == "drop":
            continue
        nulls = result.column(name).is_null().to_pylist()
        if operator == "null":
            assert all(nulls)
        elif operator == "constant":
            assert result.column(name).to_pylist() == [7] * len(rows)
        elif operator != "truncate_ip":
            assert nulls == [row[name] is None for row in rows], name
    assert result.column("location_cell").is_null().to_pylist() == [row["latitude"] is None for row in rows]


@TRIED
@given(ROWS)
def test_what_is_hidden_is_nowhere_in_the_bytes_of_the_result(rows):
    batch = to_batch(EVENT.arrow, rows)
    result = as_bytes(PLAN.transform(batch))
    for row in rows:
        for name in ("secret", "blank", "fixed", "badge", "postcode", "job", "address"):
            if row[name] and row[name].startswith("Qz"):
                assert row[name].encode() not in result, name
                assert row[name][2:-2].encode() not in result, name  # the part that differs between rows
        if row["note"]:
            assert row["note"].removeprefix("write to ").encode() not in result
        for name in PLACE:
            if row[name]:
                assert struct.pack("<d", row[name]) not in result, name
        if row["person"] == "Anna":
            assert b"Anna" not in result


def as_bytes(batch):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return sink.getvalue().to_pybytes()


@TRIED
@given(ROWS, st.randoms(use_true_random=False), st.integers(0, 12))
def test_the_same_rows_give_the_same_result_again_apart_and_in_any_order(rows, random, cut):
    batch = to_batch(EVENT.arrow, rows)
    once = PLAN.transform(batch)
    assert PLAN.transform(batch).equals(once)
    assert planned().transform(batch).equals(once), "another process, with nothing remembered"
    cut = min(cut, len(rows))
    parts = [PLAN.transform(batch.slice(0, cut)), PLAN.transform(batch.slice(cut))]
    assert pa.Table.from_batches(parts).combine_chunks().equals(pa.Table.from_batches([once]))
    order = list(range(len(rows)))
    random.shuffle(order)
    taken = pa.array(order, pa.int64())
    assert PLAN.transform(batch.take(taken)).equals(once.take(taken))


# --- who is who: pseudonyms and encryption in a plan

SUBJECT_ROWS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "a ", ""]), st.integers(NOW_US, NOW_US + YEAR_US)),
    min_size=1, max_size=12,
)  # fmt: skip


def names(subjects, region="eu", purpose="care", kind="identifier.device", operator="pseudonymise"):
    """What a plan of this region calls the subjects of these (subject, time) pairs."""
    of = event("trial", (field("source", "string", kind), field("event_time", TIMESTAMP, "time.precise")))
    rule = {"operator": operator, "with": {"purpose": purpose}, "source": "a test"}
    changes = {("landing", "rules", "identifier"): rule, "region": region, **{"landing.events": {}}}
    terms = landing_terms(pack({**PACK, **changes}))
    rows = [{"source": subject, "event_time": time_us} for subject, time_us in subjects]
    plan = compile_plan(terms, of, Keys(), now_us=NOW_US)
    return plan.transform(to_batch(of.arrow, rows)).column("source").to_pylist()


@pytest.mark.parametrize("operator", ["pseudonymise", "deterministic_encrypt"])
@TRIED
@given(SUBJECT_ROWS)
def test_a_name_stands_for_one_subject_in_one_epoch_and_for_nothing_else(operator, rows):
    months = [datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m") for _, time_us in rows]
    of = {}
    for (subject, _), month, name in zip(rows, months, names(rows, operator=operator), strict=True):
        assert of.setdefault(name, (subject, month)) == (subject, month), "one name, two subjects or epochs"
    assert len(of) == len({(subject, month) for (subject, _), month in zip(rows, months, strict=True)})


@pytest.mark.parametrize("operator", ["pseudonymise", "deterministic_encrypt"])
@TRIED
@given(SUBJECT_ROWS)
def test_regions_purposes_and_domains_have_no_name_in_common(operator, rows):
    worlds = [
        set(names(rows, region, purpose, kind, operator))
        for region in ("eu", "br")
        for purpose in ("care", "service")
        for kind in ("identifier.device", "identifier.direct")
    ]
    assert len(set().union(*worlds)) == sum(map(len, worlds))


@TRIED
@given(st.text(max_size=40), st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_what_is_encrypted_comes_back_with_its_key_and_with_no_other(subject, key, other):
    assume(key != other)

    class One:
        def key(self, region, purpose, epoch):
            return key

    epochs = Epochs(pa.array([NOW_US], pa.timestamp("us")), "month")
    context = Context("identifier.direct", epochs, None, Encrypter(One(), "eu", "month"))
    (text,) = run("deterministic_encrypt", [pa.array([subject])], context, purpose="care").to_pylist()
    assert decrypt(text, key, "identifier.direct") == subject
    for wrong in ((other, "identifier.direct"), (key, "identifier.device")):
        with pytest.raises(ValueError, match="not made with this key"):
            decrypt(text, *wrong)
    if len(subject.encode()) >= 4:
        assert subject.encode() not in base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


# --- text: what stays, and nothing of the rest

PART = st.text(max_size=12)


@TRIED
@given(PART, PART, PART, PART, st.integers(0, 8), st.integers(0, 8), st.integers(4, 9))
def test_a_mask_tells_no_more_than_its_two_ends(begin, one, other, end, first, last, hidden_min):
    begin, end = begin[:first], end[len(end) - min(last, len(end)) :]
    assume(len(begin) == first and len(end) == last)
    values = [begin + middle + end for middle in (one, other) if len(middle) >= hidden_min]
    short = [begin + one[: max(0, hidden_min - 1)] + end, "", other[: hidden_min - 1]]
    parameters = {"keep_first": first, "keep_last": last, "hidden_min": hidden_min}
    masked = run("mask", [pa.array([*values, *short], pa.string())], **parameters).to_pylist()
    assert len(set(masked[: len(values)])) <= 1, "the middle shows"
    assert all(len(text) == first + last + 4 for text in masked[: len(values)]), "the length shows"
    if first + last + hidden_min > len(short[0]):
        assert masked[len(values)] == "****"


@TRIED
@given(PART, PART, PART, st.integers(1, 8), st.integers(1, 6))
def test_a_cut_text_is_a_proper_beginning_and_tells_nothing_of_its_end(
    begin, one, other, characters, cut_min
):
    values = [begin + one, begin + other]
    parameters = {"characters": characters, "cut_min": cut_min}
    short = run("truncate", [pa.array(values)], **parameters).to_pylist()
    for value, left in zip(values, short, strict=True):
        assert value.startswith(left)
        assert len(left) < len(value) or value == ""
        assert len(left) <= min(characters, max(0, len(value) - cut_min))
    if len(begin) >= characters and min(len(one), len(other)) >= cut_min:
        assert short[0] == short[1]


@TRIED
@given(st.lists(st.one_of(st.sampled_from(sorted(JOBS.values)), st.text(max_size=8)), max_size=10))
def test_a_category_leaves_only_as_one_of_the_declared_groups(values):
    context = Context("", None, None, hierarchies={"jobs": JOBS})
    found = run("generalise_category", [pa.array(values, pa.string())], context, hierarchy="jobs").to_pylist()
    assert set(found) <= {*JOBS.values.values(), JOBS.other}
    for value, group in zip(values, found, strict=True):
        assert group == JOBS.other or JOBS.values[value] == group


@TRIED
@given(st.data(), st.integers(8, 24), st.integers(16, 48))
def test_addresses_of_one_network_leave_as_one_text(data, ipv4_bits, ipv6_bits):
    for version, width, bits in ((4, 32, ipv4_bits), (6, 128, ipv6_bits)):
        one = int(data.draw(st.ip_addresses(v=version)))
        other = one ^ data.draw(st.integers(0, 2 ** (width - bits) - 1))
        near = one ^ 1 << (width - bits)
        kind = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
        assume(all(getattr(kind(n), "ipv4_mapped", None) is None for n in (one, other, near)))
        column = pa.array([str(kind(n)) for n in (one, other, near)])
        found = run("truncate_ip", [column], ipv4_bits=ipv4_bits, ipv6_bits=ipv6_bits).to_pylist()
        assert found[0] == found[1] != found[2]
        network = ipaddress.ip_network(found[0])  # raises where a bit of the host is left
        assert network.prefixlen == bits


FOUND = st.one_of(
    NEEDLE.map(lambda n: f"{n}@mail.example.org"),
    st.sampled_from(["DE89 3704 0044 0532 0130 00", "4111 1111 1111 1111", "B-AB 1234", "7ABC123"]),
    st.integers(10**8, 10**9 - 1).map(lambda n: f"+49 30 {n}"),
    st.integers(200, 899).map(lambda n: f"{n}-86-6702" if n != 666 else "665-86-6702"),
    st.ip_addresses(v=4).map(str),
)


@TRIED
@given(
    st.lists(FOUND, max_size=4), st.lists(st.sampled_from(["call", "or", "Ärger mit", "!", ""]), max_size=4)
)
def test_what_was_found_in_a_text_is_gone_and_the_words_between_stay(values, words):
    text = ", ".join(part for pair in zip(words, values, strict=False) for part in pair)
    (redacted,) = run("redact_text", [pa.array([text])]).to_pylist()
    assert find(redacted) == []
    for value in values[: len(words)]:
        assert value not in redacted
    assert all(word in redacted for word in words[: len(values)])


# --- numbers and times: one output for all that lies together


@TRIED
@given(st.sampled_from([0.1, 0.25, 1.0, 3.0, 1000.0]), st.integers(-(10**5), 10**5),
       st.floats(0, 0.99), st.floats(0, 0.99))  # fmt: skip
def test_numbers_of_one_step_leave_as_one_number(step, steps, one, other):
    column = pa.array([(steps + one) * step, (steps + other) * step, (steps + 1.5) * step])
    found = run("generalise_number", [column], step=step).to_pylist()
    assert found[0] == found[1] < found[2]
    if step >= 1:
        whole = pa.array([round((steps + x) * step - 0.5) for x in (one, other)], pa.int64())
        found = run("generalise_number", [whole], step=step).to_pylist()
        assert all(n % step == 0 for n in found)


@TRIED
@given(st.lists(NUMBER, min_size=2, max_size=10), NUMBER, st.floats(1e-6, 1e9), st.floats(1e-6, 1e9))
def test_what_lies_beyond_a_bound_is_told_from_nothing_else_there_and_the_order_stays(
    values, bound, one, other
):
    for name, parameter, sign in (("top_code", "maximum", 1), ("bottom_code", "minimum", -1)):
        beyond = run(name, [pa.array([bound + sign * one, bound + sign * other])], **{parameter: bound})
        assert beyond.to_pylist() == [bound, bound]
        coded = run(name, [pa.array(sorted(values))], **{parameter: bound}).to_pylist()
        assert coded == sorted(coded)
        assert all(sign * value <= sign * bound for value in coded)


UNITS_US = {"second": 10**6, "minute": 60 * 10**6, "hour": 3600 * 10**6, "day": 86400 * 10**6}


@TRIED
@given(TIMES_US, st.sampled_from(sorted(UNITS_US)), st.floats(0, 0.999999), st.floats(0, 0.999999))
def test_moments_of_one_unit_leave_as_one_moment_that_is_not_later(time_us, unit, one, other):
    start = time_us // UNITS_US[unit] * UNITS_US[unit]
    inside = [start + int(share * UNITS_US[unit]) for share in (one, other)]
    column = pa.array([*inside, start - 1], pa.int64()).cast(pa.timestamp("us"))
    found = run("truncate_time", [column], to=unit)
    times = found.cast(pa.int64()).to_pylist()
    assert times[0] == times[1] == start > times[2]
    assert run("truncate_time", [found], to=unit).equals(found)


@TRIED
@given(st.dates(date(1900, 1, 1), date(2200, 1, 1)), st.sampled_from(["week", "month", "quarter", "year"]),
       st.integers(0, 365))  # fmt: skip
def test_days_of_one_unit_leave_as_one_day_that_is_not_later(day, unit, later):
    other = day + timedelta(days=later)
    same = {
        "week": day.isocalendar()[:2] == other.isocalendar()[:2],
        "month": (day.year, day.month) == (other.year, other.month),
        "quarter": (day.year, (day.month - 1) // 3) == (other.year, (other.month - 1) // 3),
        "year": day.year == other.year,
    }[unit]
    for kind in (pa.date32(), pa.timestamp("us")):
        column = pa.array([day, other], pa.date32()).cast(kind)
        found = run("generalise_date", [column], to=unit)
        assert (found[0] == found[1]) == same
        assert all(f <= d for f, d in zip(found.to_pylist(), column.to_pylist(), strict=True))
        assert run("generalise_date", [found], to=unit).equals(found)


# --- what does not depend on the value at all


@TRIED
@given(st.lists(st.tuples(MAYBE, MAYBE), max_size=8))
def test_a_constant_and_a_null_are_the_same_whatever_they_replace(pairs):
    one, other = (pa.array([pair[i] for pair in pairs], pa.string()) for i in (0, 1))
    assert run("null", [one]).equals(run("null", [other]))
    assert run("constant", [one], value="x").equals(run("constant", [other], value="x"))


@TRIED
@given(ROWS, ROWS)
def test_what_is_dropped_changes_nothing_that_leaves(rows, others):
    swapped = [{**row, "secret": other["secret"]} for row, other in zip(rows, others, strict=False)] + rows[
        len(others) :
    ]
    assert PLAN.transform(to_batch(EVENT.arrow, rows)).equals(PLAN.transform(to_batch(EVENT.arrow, swapped)))


# --- places: the area a cell really has, anywhere on the globe

CENTRES = pa.record_batch(
    h3ronpy.vector.cells_to_coordinates(
        pa.array([pentagon(7, base) for base in PENTAGON_BASE_CELLS], pa.uint64())
    )
)
LATITUDE = st.one_of(st.floats(-90, 90), st.sampled_from([-90.0, -89.999, 0.0, 89.999, 90.0]))
LONGITUDE = st.one_of(st.floats(-180, 180), st.sampled_from([-180.0, -179.9999, 0.0, 179.9999, 180.0]))
NEAR = st.floats(-0.05, 0.05)
PENTAGONS = st.builds(
    lambda i, north, east: (CENTRES.column(0)[i].as_py() + north, CENTRES.column(1)[i].as_py() + east),
    st.integers(0, len(CENTRES) - 1), NEAR, NEAR,
)  # fmt: skip
PLACES = st.lists(st.one_of(st.tuples(LATITUDE, LONGITUDE), PENTAGONS), min_size=1, max_size=12)


@TRIED
@given(PLACES, st.floats(PRECISE_KM2, 1000), st.floats(1, 100))
def test_a_cell_has_the_area_asked_for_anywhere_on_earth_and_a_coarser_one_more(places, cell_km2, times):
    columns = [pa.array([place[i] for place in places], pa.float64()) for i in (0, 1)]
    cells = run("coarsen_location", columns, cell_km2=cell_km2)
    areas = true_areas_km2(cells)
    assert areas.min() >= max(cell_km2, PRECISE_KM2)
    coarser = run("coarsen_location", columns, cell_km2=cell_km2 * times)
    assert true_areas_km2(coarser).min() >= cell_km2 * times
    finest, coarsest = (h3ronpy.cells_resolution(cell.cast(pa.uint64())) for cell in (cells, coarser))
    assert max(coarsest.to_pylist()) <= min(finest.to_pylist()), "coarsening sharpened"


@TRIED
@given(PLACES)
def test_places_of_one_cell_leave_as_one_number(places):
    columns = [pa.array([place[i] for place in places], pa.float64()) for i in (0, 1)]
    cells = run("coarsen_location", columns, cell_km2=PRECISE_KM2)
    middle = pa.record_batch(h3ronpy.vector.cells_to_coordinates(cells.cast(pa.uint64())))
    again = run("coarsen_location", [middle.column(0), middle.column(1)], cell_km2=PRECISE_KM2)
    assert again.equals(cells)


def true_areas_km2(cells):
    """Areas on the WGS 84 ellipsoid, by Girard's excess of each cell's ring on the sphere of equal area."""
    polygons = h3ronpy.vector.cells_to_wkb_polygons(cells.cast(pa.uint64()).unique())
    return np.array([ring_area_km2(wkb.as_py()) for wkb in pa.array(polygons)])


def ring_area_km2(wkb):
    (points,) = struct.unpack_from("<I", wkb, 9)
    longitude, latitude = np.radians(np.frombuffer(wkb, "<f8", 2 * points, 13).reshape(points, 2).T)
    e2, radius_km = 0.00669437999014, 6371.007180918475
    e = np.sqrt(e2)

    def q(sine):
        return (1 - e2) * (sine / (1 - e2 * sine**2) + np.arctanh(e * sine) / e)

    authalic = np.arcsin(np.clip(q(np.sin(latitude)) / q(1.0), -1, 1))
    on_sphere = np.stack([np.cos(authalic) * np.cos(longitude), np.cos(authalic) * np.sin(longitude),
                          np.sin(authalic)], axis=1)[:-1]  # fmt: skip
    centre = on_sphere.mean(axis=0)
    centre /= np.linalg.norm(centre)
    total = 0.0
    for a, b in zip(on_sphere, np.roll(on_sphere, -1, axis=0), strict=True):  # van Oosterom and Strackee 1983
        total += 2 * np.arctan2(np.dot(centre, np.cross(a, b)), 1 + centre @ a + a @ b + b @ centre)
    return abs(total) * radius_km**2


def test_the_areas_of_all_coarsest_cells_are_the_earth():
    """The measure itself: 122 cells of resolution 0 cover 510,065,622 km2, that of the ellipsoid."""
    roots = pa.array(h3ronpy.vector.coordinates_to_cells(np.array([0.0]), np.array([0.0]), 0))
    roots = pa.array(h3ronpy.grid_disk(roots, 20, flatten=True)).unique()
    fine = pa.array(h3ronpy.change_resolution(roots, 2))
    assert true_areas_km2(fine.cast(pa.int64())).sum() == pytest.approx(510_065_622, rel=1e-4)
