"""Operators on text, dates and bounds: each agrees with its definition, and nothing passes in despair."""

from __future__ import annotations

import ipaddress
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import ConfigError
from pipeline.lint import lint
from pipeline.policy import check_flow, compile_plan
from pipeline.policy.derive import curated_schema
from pipeline.policy.faults import pack_faults
from pipeline.policy.hierarchies import Hierarchy
from pipeline.policy.operators import OPERATORS, Context
from tests.unit.policy.cases import NOW_US, SMALL_FIELDS, Keys, event, field, pack, small_batch, terms
from tests.unit.policy.test_policy_operators import EPOCH, TIMES_US, run, sliced

TEXTS = st.lists(st.one_of(st.none(), st.text(max_size=12)), max_size=20)
LEAD = st.integers(0, 3)


def refused(name, **parameters):
    """The message of pydantic."""
    with pytest.raises(ValidationError) as caught:
        OPERATORS[name].parameters.model_validate(parameters)
    return str(caught.value)


# --- mask and truncate


@given(TEXTS, st.integers(0, 8), st.integers(0, 8), st.integers(4, 9), LEAD)
def test_a_mask_shows_both_ends_or_nothing(texts, first, last, hidden_min, lead):
    column = sliced(texts, pa.string(), lead)
    found = run("mask", [column], keep_first=first, keep_last=last, hidden_min=hidden_min, character="#")
    for text, masked in zip(texts, found.to_pylist(), strict=True):
        if text is None:
            assert masked is None
        elif len(text) - first - last < hidden_min:
            assert masked == "####"
        else:
            assert masked == text[:first] + "####" + text[len(text) - last :]


def test_a_mask_does_not_tell_the_length_of_what_it_hides():
    found = run("mask", [pa.array(["DE-1234567890", "DE-12345678901234"])], keep_first=2)
    assert found.to_pylist() == ["DE****", "DE****"]


@given(TEXTS, st.integers(1, 16), st.integers(1, 6), LEAD)
def test_truncation_always_takes_something_away(texts, characters, cut_min, lead):
    column = sliced(texts, pa.string(), lead)
    found = run("truncate", [column], characters=characters, cut_min=cut_min).to_pylist()
    for text, short in zip(texts, found, strict=True):
        if text is None:
            assert short is None
            continue
        assert text.startswith(short)
        assert len(short) <= characters
        assert len(short) <= max(0, len(text) - cut_min)
        assert len(short) == min(characters, max(0, len(text) - cut_min))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mask", {"keep_first": 9}),
        ("mask", {"hidden_min": 3}),
        ("mask", {"character": ""}),
        ("mask", {"character": "**"}),
        ("truncate", {"characters": 0}),
        ("truncate", {"characters": 17}),
        ("truncate", {"characters": 3, "cut_min": 0}),
        ("truncate_ip", {"ipv4_bits": 25}),
        ("truncate_ip", {"ipv6_bits": 49}),
        ("truncate_ip", {"ipv4_bits": 0}),
    ],
)
def test_parameters_that_would_hide_nothing_are_refused(name, parameters):
    assert "validation error" in refused(name, **parameters)


@pytest.mark.parametrize("name", ["mask", "truncate", "truncate_ip"])
def test_a_part_of_an_identifier_is_still_a_quasi_identifier(name):
    operator = OPERATORS[name]
    sample = {"truncate": {"characters": 3}}.get(name, {})
    parameters = operator.parameters.model_validate(sample)
    assert operator.gives(parameters, frozenset({"identifier.direct"})) == {"quasi"}
    assert "text.free" not in operator.takes


# --- addresses


def network_of(text):
    """The definition, by the library's own arithmetic on networks."""
    address = ipaddress.ip_address(text)
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        address = mapped
    bits = 24 if address.version == 4 else 48
    plain = str(address).partition("%")[0]
    return str(ipaddress.ip_network(f"{plain}/{bits}", strict=False))


ADDRESSES = st.one_of(
    st.ip_addresses().map(str),
    st.ip_addresses(v=4).map(lambda a: f"::ffff:{a}"),
    st.ip_addresses(v=6).map(lambda a: f"{a}%eth0"),
)


@given(st.lists(st.one_of(st.none(), ADDRESSES), max_size=20), LEAD)
def test_an_address_becomes_its_network(addresses, lead):
    found = run("truncate_ip", [sliced(addresses, pa.string(), lead)]).to_pylist()
    assert found == [None if a is None else network_of(a) for a in addresses]


def test_addresses_by_hand():
    texts = ["203.0.113.77", "2001:db8:1234:5678::1", "::ffff:203.0.113.77", " 10.1.2.3 ", "fe80::1%eth0"]
    assert run("truncate_ip", [pa.array(texts)]).to_pylist() == [
        "203.0.113.0/24", "2001:db8:1234::/48", "203.0.113.0/24", "10.1.2.0/24", "fe80::/48",
    ]  # fmt: skip
    assert run("truncate_ip", [pa.array(texts[:2])], ipv4_bits=16, ipv6_bits=32).to_pylist() == [
        "203.0.0.0/16", "2001:db8::/32",
    ]  # fmt: skip


@given(st.lists(st.text(max_size=20), max_size=10))
def test_what_is_no_address_neither_stops_the_stage_nor_passes(texts):
    for text, found in zip(texts, run("truncate_ip", [pa.array(texts, pa.string())]), strict=True):
        try:
            ipaddress.ip_address(text.strip())
        except ValueError:
            assert found.as_py() is None


# --- categories

TABLE = Hierarchy(
    values={"P0300": "ignition", "P0301": "ignition", "P0420": "exhaust"}, other="other", source="a test"
)


@given(st.lists(st.one_of(st.none(), st.sampled_from(["P0300", "P0301", "P0420", "p0300", ""])), max_size=20))
def test_a_value_becomes_its_group_and_an_unknown_one_the_declared_other(values):
    context = Context("", None, None, hierarchies={"faults": TABLE})
    found = run("generalise_category", [pa.array(values, pa.string())], context, hierarchy="faults")
    groups = {None: None, "P0300": "ignition", "P0301": "ignition", "P0420": "exhaust"}
    assert found.to_pylist() == [groups.get(value, "other") for value in values]


def test_a_table_that_hides_nothing_is_refused():
    with pytest.raises(ValidationError, match="2 values make 2 groups: nothing is hidden; join some"):
        Hierarchy(values={"a": "x", "b": "y"}, other="z", source="a test")


@pytest.mark.parametrize(
    ("tag", "gives"), [("quasi", "quasi.coarse"), ("category", "category"), ("inference", "inference")]
)
def test_a_group_of_a_persons_trait_stays_a_trait(tag, gives):
    operator = OPERATORS["generalise_category"]
    assert operator.gives(None, frozenset({tag})) == {gives}


# --- dates


def first_day(day: date, to: str) -> date:
    """The definition."""
    if to == "week":
        return day - timedelta(days=day.weekday())
    month = {"month": day.month, "quarter": (day.month - 1) // 3 * 3 + 1, "year": 1}[to]
    return day.replace(month=month, day=1)


UNITS = st.sampled_from(["week", "month", "quarter", "year"])


@given(st.lists(st.one_of(st.none(), TIMES_US), max_size=20), UNITS, LEAD)
def test_a_moment_becomes_the_first_day_of_its_unit(times, to, lead):
    column = sliced(times, pa.int64(), lead).cast(pa.timestamp("us"))
    found = run("generalise_date", [column], to=to)
    assert found.type == column.type
    for time, whole in zip(times, found.cast(pa.int64()).to_pylist(), strict=True):
        if time is None:
            assert whole is None
        else:
            day = first_day((EPOCH + timedelta(microseconds=time)).date(), to)
            midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
            assert whole == (midnight - EPOCH) // timedelta(microseconds=1)


@given(st.lists(st.one_of(st.none(), st.dates(date(1900, 1, 1), date(2200, 1, 1))), max_size=20), UNITS, LEAD)
def test_a_date_becomes_the_first_day_of_its_unit(days, to, lead):
    found = run("generalise_date", [sliced(days, pa.date32(), lead)], to=to)
    assert found.type == pa.date32()
    assert found.to_pylist() == [None if day is None else first_day(day, to) for day in days]


@pytest.mark.parametrize("to", ["week", "month", "quarter", "year"])
@pytest.mark.parametrize(
    "column",
    [
        pa.array([-(2**63)], pa.timestamp("us")),
        pa.array([-(2**63) + 1], pa.timestamp("us")),
        pa.array([-(2**31)], pa.int32()).cast(pa.date32()),
    ],
)
def test_a_moment_beyond_the_calendar_stops_and_does_not_wrap(column, to):
    with pytest.raises((ValueError, pa.ArrowInvalid)):
        run("generalise_date", [column], to=to)


@pytest.mark.parametrize(
    ("to", "tag", "gives"),
    [
        ("week", "time.precise", "time.coarse"),
        ("year", "time.coarse", "time.coarse"),
        ("month", "quasi", "quasi"),
        ("year", "quasi", "quasi.coarse"),
    ],
)
def test_a_birthday_is_coarse_from_a_year_on(to, tag, gives):
    operator = OPERATORS["generalise_date"]
    assert operator.gives(operator.parameters.model_validate({"to": to}), frozenset({tag})) == {gives}


# --- bounds and null

NUMBERS = st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=20)


@given(NUMBERS, st.floats(-1e6, 1e6), LEAD)
def test_rare_ends_are_cut_off(numbers, bound, lead):
    column = sliced(numbers, pa.float64(), lead)
    top = run("top_code", [column], maximum=bound).to_pylist()
    bottom = run("bottom_code", [column], minimum=bound).to_pylist()
    assert top == [None if n is None else min(n, bound) for n in numbers]
    assert bottom == [None if n is None else max(n, bound) for n in numbers]


@pytest.mark.parametrize("kind", [pa.int32(), pa.int64(), pa.float32()])
def test_a_bound_keeps_the_columns_type(kind):
    column = pa.array([1, None, 95], kind)
    assert run("top_code", [column], maximum=90.0).equals(pa.array([1, None, 90], kind))
    assert run("bottom_code", [column], minimum=5.0).equals(pa.array([5, None, 95], kind))


def test_a_bound_that_a_whole_number_cannot_be_is_refused_before_any_batch():
    for operator, parameter in (("top_code", "maximum"), ("bottom_code", "minimum")):
        accepts = OPERATORS[operator].accepts
        for bound in (0.5, 2.0**31):
            parameters = OPERATORS[operator].parameters.model_validate({parameter: bound})
            assert not accepts(pa.int32(), parameters)
            assert accepts(pa.float64(), parameters)
        assert "finite" in refused(operator, **{parameter: float("nan")})


@given(TEXTS)
def test_null_leaves_a_column_without_values(texts):
    found = run("null", [pa.array(texts, pa.string())])
    assert found.type == pa.string()
    assert found.null_count == len(texts)


# --- in a pack

RULES = {
    "badge": ("mask", {"keep_last": 2}),
    "postcode": ("truncate", {"characters": 2}),
    "address": ("truncate_ip", {}),
    "occupation": ("generalise_category", {"hierarchy": "work"}),
    "born": ("generalise_date", {"to": "year"}),
    "load": ("top_code", {"maximum": 90.0}),
    "count": ("bottom_code", {"minimum": 0.0}),
    "phase": ("null", {}),
}
FIELDS = (
    *SMALL_FIELDS,
    field("badge", "string", "identifier.direct"),
    field("postcode", "string", "quasi"),
    field("address", "string", "identifier.device"),
    field("occupation", "string", "quasi"),
    field("born", {"type": "int", "logicalType": "date"}, "quasi"),
)
CHANGES = {
    "hierarchies": {"work": {"values": {"nurse": "care", "doctor": "care"}, "other": "-", "source": "x"}},
    "landing.events": {
        "small": {
            "also_allowed": {"tags": ["quasi"], "source": "a test"},
            "fields": {
                name: {"operator": operator, "with": parameters, "source": "a test"}
                for name, (operator, parameters) in RULES.items()
            },
        }
    },
}
ROW = {"badge": "D-4711-22", "postcode": "10115", "address": "203.0.113.77", "occupation": "nurse",
       "born": date(1980, 5, 6), "load": 100.0, "count": -5}  # fmt: skip


def test_a_plan_runs_them_and_its_schema_says_what_they_leave():
    of = event(fields=FIELDS)
    plan = compile_plan(terms(CHANGES), of, Keys(), now_us=NOW_US)
    (row,) = plan.apply(small_batch([ROW], of)).batch.select(list(RULES)).to_pylist()
    assert row == {
        "badge": "****22", "postcode": "10", "address": "203.0.113.0/24", "occupation": "care",
        "born": date(1980, 1, 1), "load": 90.0, "count": 0, "phase": None,
    }  # fmt: skip
    columns = {column["name"]: column for column in plan.schema["fields"]}
    assert {name: columns[name]["confluent:tags"] for name in ("badge", "occupation", "born", "phase")} == {
        "badge": ["quasi"], "occupation": ["quasi.coarse"], "born": ["quasi.coarse"], "phase": ["category"],
    }  # fmt: skip
    assert columns["address"]["type"] == ["null", "string"]
    assert columns["phase"]["type"][0] == "null"
    assert (columns["load"]["maximum"], columns["count"]["minimum"]) == (90.0, 0)


def test_their_curated_schema_passes_the_linter():
    assert lint(curated_schema(check_flow(terms(CHANGES), event(fields=FIELDS)))) == []


def test_a_region_that_may_hold_only_coarse_traits_refuses_the_others():
    allowed = {("landing", "events", "small", "also_allowed", "tags"): ["quasi.coarse"]}
    with pytest.raises(ConfigError) as caught:
        check_flow(terms({**CHANGES, **allowed}), event(fields=FIELDS))
    for name in ("badge", "postcode", "address"):
        assert f"{name}: " in str(caught.value)
    assert "occupation: " not in str(caught.value)


def test_a_hierarchy_that_the_pack_does_not_have_is_a_fault():
    faults = list(pack_faults(pack({**CHANGES, "hierarchies": {}}), {"small": event(fields=FIELDS)}))
    assert any(
        "hierarchy 'work' is not one of the pack's: it has none; declare its table" in str(f) for f in faults
    )
