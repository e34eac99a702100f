"""Noise: drawn by OpenDP, as much as epsilon says, with tags that do not promise more."""

from __future__ import annotations

import math

import numpy as np
import opendp.prelude as dp
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import ConfigError
from pipeline.policy import noise
from pipeline.policy.operators import OPERATORS, Context
from pipeline.policy.plan import compile_plan
from pipeline.policy.terms import landing_terms
from tests.unit.policy.cases import NOW_US, Keys, event, field, pack

NOTHING = Context("", None, None)
EPSILONS = st.floats(noise.EPSILON_MIN, noise.EPSILON_MAX)
NUMBERS = st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=20)
# The generator is OpenDP's and takes no seed, so each bound is 6 standard errors wide: one comparison fails
# by chance in 500 million runs, one of all in about a million.
SIGMAS = 6.0


def run(name, column, **parameters):
    operator = OPERATORS[name]
    return operator.run([column], operator.parameters.model_validate(parameters), NOTHING)


def sliced(values, kind, lead):
    return pa.array([*[values[0] if values else None] * lead, *values], kind)[lead:]


@settings(max_examples=50)
@given(
    NUMBERS,
    EPSILONS,
    st.integers(0, 3),
    st.sampled_from([pa.float64(), pa.float32(), pa.int32(), pa.int64()]),
)
def test_noise_gives_doubles_on_the_grid_and_leaves_nulls(numbers, epsilon, lead, kind):
    if pa.types.is_integer(kind):
        numbers = [None if number is None else int(number) for number in numbers]
    found = run("noise", sliced(numbers, kind, lead), epsilon=epsilon, lower=-256.0, upper=256.0)
    assert found.type == pa.float64()
    assert [value is None for value in found.to_pylist()] == [number is None for number in numbers]
    steps = (np.asarray(found.drop_null()) + 256.0) / (512.0 / noise.GRID_STEPS)
    assert np.array_equal(steps, np.rint(steps)), "no low bits that could tell the value"


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0])
@pytest.mark.parametrize(("value", "clamped"), [(30.0, 30.0), (-1e9, 0.0), (1e300, 100.0)])
def test_noise_is_laplace_of_the_declared_scale_around_the_clamped_value(value, clamped, epsilon):
    count, scale = 20_000, 100.0 / epsilon
    drawn = (
        np.asarray(run("noise", pa.array([value] * count), epsilon=epsilon, lower=0.0, upper=100.0)) - clamped
    )
    standard_error = scale / math.sqrt(count)  # of the median, and of the mean of the absolute values
    assert abs(np.median(drawn)) < SIGMAS * standard_error
    assert abs(np.abs(drawn).mean() - scale) < SIGMAS * standard_error
    beyond = np.mean(np.abs(drawn) > 2 * scale)
    assert abs(beyond - math.exp(-2)) < SIGMAS * math.sqrt(math.exp(-2) / count)


@given(EPSILONS)
def test_opendp_itself_says_that_the_scale_keeps_epsilon(epsilon):
    measurement = noise._laplace(epsilon)
    assert epsilon * (1 - 1e-6) < measurement.map(noise.GRID_STEPS) <= epsilon


@given(st.integers(2, 256), EPSILONS)
def test_opendp_itself_says_that_the_answers_keep_epsilon(categories, epsilon):
    probability = noise.truthful(categories, epsilon)
    labels = [str(number) for number in range(categories)]
    spent = dp.m.make_randomized_response(labels, prob=probability).map(1)
    assert epsilon * (1 - 1e-4) < spent <= epsilon


@pytest.mark.parametrize("categories", [2, 3, 5, 20])
@pytest.mark.parametrize("epsilon", [0.05, 1.0, 4.0])
def test_answers_are_distributed_as_the_mechanism_says(categories, epsilon):
    count, truth = 60_000, categories - 1
    answers = noise.respond(np.full(count, truth), categories, epsilon)
    told = noise.truthful(categories, epsilon)
    expected = np.full(categories, (1 - told) / (categories - 1))
    expected[truth] = told
    found = np.bincount(answers, minlength=categories) / count
    assert len(found) == categories
    assert np.all(np.abs(found - expected) < SIGMAS * np.sqrt(expected * (1 - expected) / count))


def test_answers_of_neighbouring_rows_are_independent():
    count = 80_000
    answers = noise.respond(np.zeros(count, dtype=np.int64), 2, 1.0).astype(float)
    answers -= answers.mean()
    for lag in (1, 2, 7, 8):
        correlation = (answers[lag:] * answers[:-lag]).mean() / answers.var()
        assert abs(correlation) < SIGMAS / math.sqrt(count)


@settings(max_examples=50)
@given(
    st.lists(st.one_of(st.none(), st.sampled_from(["idle", "busy", "off", "never declared"])), max_size=20),
    st.integers(0, 3),
)
def test_an_answer_is_one_of_the_declared_values_whatever_was_asked(values, lead):
    declared = ["idle", "busy", "off"]
    found = run("randomised_response", sliced(values, pa.string(), lead), epsilon=1.0, values=declared)
    assert found.type == pa.string()
    for value, answer in zip(values, found.to_pylist(), strict=True):
        assert (answer is None) == (value is None)
        assert answer is None or answer in declared


def test_a_value_that_is_not_declared_answers_with_any_alike():
    count, declared = 30_000, ["a", "b", "c"]
    found = run("randomised_response", pa.array(["x"] * count), epsilon=8.0, values=declared).to_pylist()
    for value in declared:
        assert abs(found.count(value) / count - 1 / 3) < SIGMAS * math.sqrt(2 / 9 / count)


@given(st.lists(st.one_of(st.none(), st.booleans()), max_size=20), st.integers(0, 3))
def test_booleans_need_no_values(values, lead):
    found = run("randomised_response", sliced(values, pa.bool_(), lead), epsilon=1.0)
    assert found.type == pa.bool_()
    assert [value is None for value in found.to_pylist()] == [value is None for value in values]


def test_booleans_are_told_truly_as_often_as_epsilon_says():
    count = 40_000
    for truth in (True, False):
        found = np.asarray(run("randomised_response", pa.array([truth] * count), epsilon=1.0))
        told = math.e / (math.e + 1)
        assert abs(np.mean(found == truth) - told) < SIGMAS * math.sqrt(told * (1 - told) / count)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_finite_number_stops_the_operator(value):
    with pytest.raises(ValueError, match="not a finite number"):
        run("noise", pa.array([1.0, value]), epsilon=1.0, lower=0.0, upper=1.0)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("noise", {"epsilon": 1.0}),
        ("noise", {"epsilon": 0.0, "lower": 0.0, "upper": 1.0}),
        ("noise", {"epsilon": 8.1, "lower": 0.0, "upper": 1.0}),
        ("noise", {"epsilon": math.nan, "lower": 0.0, "upper": 1.0}),
        ("noise", {"epsilon": 1.0, "lower": 1.0, "upper": 1.0}),
        ("noise", {"epsilon": 1.0, "lower": -1.7e308, "upper": 1.7e308}),
        ("noise", {"epsilon": 1.0, "lower": 0.0, "upper": math.inf}),
        ("randomised_response", {"epsilon": 0.001}),
        ("randomised_response", {"epsilon": 1.0, "values": ["a"]}),
        ("randomised_response", {"epsilon": 1.0, "values": ["a", "a"]}),
    ],
)
def test_parameters_that_promise_nothing_are_refused(name, parameters):
    with pytest.raises(ValidationError):
        OPERATORS[name].parameters.model_validate(parameters)


def test_only_these_draw_and_every_draw_is_another():
    assert {name for name, operator in OPERATORS.items() if not operator.deterministic} == {
        "noise",
        "randomised_response",
    }
    column = pa.array([1.0] * 50)
    draws = {tuple(run("noise", column, epsilon=1.0, lower=0.0, upper=2.0).to_pylist()) for _ in range(3)}
    assert len(draws) == 3


@pytest.mark.parametrize("name", ["noise", "randomised_response"])
def test_a_noised_trait_is_a_tag_of_its_own_and_other_tags_stay(name):
    operator = OPERATORS[name]
    sample = {"epsilon": 1.0} | ({"lower": 0.0, "upper": 1.0} if name == "noise" else {})
    parameters = operator.parameters.model_validate(sample)
    for taken, given_tags in (
        ({"quasi"}, {"quasi.noised"}),
        ({"quasi.coarse"}, {"quasi.noised"}),
        ({"measurement"}, {"measurement"}),
        ({"category", "quasi"}, {"category", "quasi.noised"}),
    ):
        assert operator.gives(parameters, frozenset(taken)) == given_tags


def test_a_plan_lets_a_noised_trait_out_only_where_it_is_allowed():
    trait = event(fields=[field("age", "int", "quasi"), field("source", "string", "identifier.device")])
    rule = {
        "operator": "noise",
        "with": {"epsilon": 1.0, "lower": 0.0, "upper": 100.0},
        "source": "a test",
    }
    changes = {
        ("landing", "rules", "quasi"): rule,
        ("landing", "rules", "identifier"): {"operator": "drop", "source": "a test"},
    }
    with pytest.raises(ConfigError, match=r"leaves quasi\.noised"):
        compile_plan(landing_terms(pack(changes)), trait, Keys(), now_us=NOW_US)
    allowed = pack(changes).landing.allowed.tags
    changes[("landing", "allowed", "tags")] = [*allowed, "quasi.noised"]
    plan = compile_plan(landing_terms(pack(changes)), trait, Keys(), now_us=NOW_US)
    rows = pa.RecordBatch.from_pydict({"age": [40] * 10, "source": ["a"] * 10}, schema=trait.arrow)
    batch = plan.apply(rows).batch
    assert batch.schema.field("age").type == pa.float64()
    assert set(batch.schema.names) == {"age"}
