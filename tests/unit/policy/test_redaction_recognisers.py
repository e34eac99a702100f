"""Recognisers that plug in: who finds something hides it, who is missing or talks nonsense stops all."""

from __future__ import annotations

import importlib.util
import math
import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from connectors.presidio import Presidio, PresidioOptions
from pipeline.errors import ConfigError
from pipeline.policy import OPERATORS, check_flow, compile_plan
from pipeline.policy.plan import Plan
from pipeline.policy.recognisers import Patterns, asked_for, plugged, redactor
from pipeline.policy.redaction import Span, find, redact
from pipeline.policy.terms import landing_terms
from tests.unit.policy.cases import TIMESTAMP, Keys, event, field, pack, to_batch
from tests.unit.policy.test_policy_operators import run

SECRET = "Zw1ebel"


class Salutations:
    """A small recogniser of names: what follows a salutation. Surer with a title than without."""

    _NAME = re.compile(r"\b(?:(Dr\.) |(?:Mr|Mrs|Frau|Herr|Sra)\.? )([^\W\d_]+(?: [A-ZÄÖÜ][^\W\d_]+)?)")

    def find(self, text):
        for match in self._NAME.finditer(text):
            yield Span(*match.span(2), "person", 0.9 if match[1] else 0.6)


class Says:
    """A recogniser that says these spans of every text."""

    def __init__(self, *spans):
        self.spans = [Span(*span) for span in spans]

    def find(self, text):
        return self.spans


def flow(recognisers=("patterns", "names"), **parameters):
    """An event with a note, in a pack that redacts it so."""
    rule = {
        "operator": "redact_text",
        "with": {"recognisers": list(recognisers), **parameters},
        "source": "a test",
    }
    of = event(
        "small",
        (
            field("source", "string", "identifier.device"),
            field("event_time", TIMESTAMP, "time.precise"),
            field("note", ["null", "string"], "text.free"),
        ),
    )
    changes = {
        ("landing", "rules", "text.free"): rule,
        ("landing", "allowed", "tags"): ["pseudonym", "time.coarse", "text.redacted", "transport"],
    }
    return check_flow(landing_terms(pack(changes)), of)


def noted(texts, of, recognisers):
    """What the plan of a flow makes of notes."""
    plan = Plan(plugged(of, recognisers), Keys())
    rows = [{"source": "press-1", "event_time": 0, "note": text} for text in texts]
    return plan.transform(to_batch(of.event.arrow, rows)).column("note").to_pylist()


TEXTS = ["Frau Schmidt, anna@mail.example, said so", "Dr. Silva: +49 30 901820", None, "nobody", "Mr Fox"]


def test_names_and_patterns_are_hidden_in_a_plan():
    assert noted(TEXTS, flow(), {"names": Salutations()}) == [
        "Frau [person], [email], said so", "Dr. [person]: [phone]", None, "nobody", "Mr [person]",
    ]  # fmt: skip


def test_a_recogniser_that_is_not_sure_enough_hides_nothing():
    assert noted(TEXTS, flow(score_min=0.8), {"names": Salutations()}) == [
        "Frau Schmidt, [email], said so", "Dr. [person]: [phone]", None, "nobody", "Mr Fox",
    ]  # fmt: skip


def test_a_pack_that_names_none_runs_with_the_patterns_and_without_the_others():
    of = flow(("patterns",))
    assert asked_for(of) == frozenset()
    assert plugged(of, {"names": Salutations()}) == of
    assert noted(TEXTS[:1], of, {}) == ["Frau Schmidt, [email], said so"]


def test_the_schema_says_who_looked():
    of = flow()
    (decision,) = (decision for decision in of.decisions if decision.output == "note")
    assert "what names found" in decision.operator.effect(decision.parameters)
    assert decision.result == {"text.redacted"}


def test_a_recogniser_that_is_missing_is_an_error_before_any_batch():
    with pytest.raises(ConfigError) as caught:
        plugged(flow(("patterns", "names", "stories")), {"names": Salutations()})
    assert "asks for the recogniser stories; there are names, patterns" in str(caught.value)
    assert "eu, small" in str(caught.value)


def test_a_plan_is_not_compiled_without_the_recogniser_that_its_pack_asks_for():
    of = flow()
    with pytest.raises(ConfigError, match="asks for the recogniser names; there are patterns"):
        compile_plan(of.terms, of.event, Keys(), now_us=0)
    plan = compile_plan(of.terms, of.event, Keys(), now_us=0, recognisers={"names": Salutations()})
    rows = [{"source": "press-1", "event_time": 0, "note": text} for text in TEXTS[:1]]
    curated = plan.apply(to_batch(of.event.arrow, rows)).batch
    assert curated.column("note").to_pylist() == ["Frau [person], [email], said so"]


def test_without_the_plug_nothing_passes():
    of = flow()
    plan = Plan(of, Keys())
    batch = to_batch(of.event.arrow, [{"source": "press-1", "event_time": 0, "note": SECRET}])
    with pytest.raises(ConfigError, match="redact_text on note: failed") as caught:
        plan.transform(batch)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "span",
    [(0, 99, "person", 1.0), (-1, 3, "person", 1.0), (3, 3, "person", 1.0), (0, 3, SECRET, 1.0),
     (0, 3, "", 1.0), (0, 3, "two words", 1.0)],
)  # fmt: skip
def test_a_recogniser_that_says_something_impossible_stops_the_batch(span):
    with pytest.raises(ConfigError, match="redact_text on note: failed") as caught:
        noted([f"{SECRET} was here"], flow(), {"names": Says(span)})
    assert SECRET not in str(caught.value)


def test_a_score_that_is_no_number_hides():
    assert redactor([Says((0, 2, "person", math.nan))], 0.5)("abcd") == "[person]cd"


def test_where_two_found_the_same_all_of_it_goes_under_the_name_of_the_first():
    text = "write to anna@mail.example now"
    wider = Says((9, 30, "address", 0.9))  # from inside the text up to its end
    assert redactor([Patterns(), wider], 0.5)(text) == "write to [email]"
    assert redactor([wider, Patterns()], 0.5)(text) == "write to [address]"


SPANS = st.lists(st.tuples(st.integers(0, 29), st.integers(1, 12), st.sampled_from("abc"), st.floats(0, 1)))


@settings(max_examples=100, derandomize=True, print_blob=True, deadline=None)
@given(st.lists(SPANS, max_size=3), st.floats(0, 1))
def test_a_character_that_any_of_them_found_is_hidden_and_no_other(found, score_min):
    text = "".join(chr(0x4E00 + i) for i in range(30))  # thirty different signs, none in a kind
    said = [[(s, min(30, s + n), kind, score) for s, n, kind, score in spans] for spans in found]
    redacted = redactor([Says(*spans) for spans in said], score_min)(text)
    hidden = {i for spans in said for s, e, _, score in spans if score >= score_min for i in range(s, e)}
    assert [sign for sign in redacted if sign in text] == [
        sign for i, sign in enumerate(text) if i not in hidden
    ]


def test_the_patterns_are_a_recogniser_like_the_others():
    text = "call +49 30 901820, B-AB 1234"
    assert list(Patterns().find(text)) == find(text)
    assert redactor([Patterns()], 1.0)(text) == redact(text) == "call [phone], [plate]"


# --- what a pack may ask for


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"recognisers": ["names"]}, "patterns has to be among them"),
        ({"recognisers": []}, "patterns has to be among them"),
        ({"recognisers": ["patterns", "patterns"]}, "one is named twice"),
        ({"recognisers": ["patterns", "No Name"]}, "should match pattern"),
        ({"score_min": 1.1}, "less than or equal to 1"),
        ({"score_min": math.nan}, "score_min"),
    ],
)
def test_what_would_redact_less_than_the_tag_says_is_refused(parameters, told):
    with pytest.raises(ValidationError, match=told):
        OPERATORS["redact_text"].parameters.model_validate(parameters)


def test_the_operator_alone_does_not_pretend():
    with pytest.raises(ValueError, match="none is plugged in"):
        run("redact_text", [pa.array(["x"])], recognisers=["patterns", "presidio"])


# --- Presidio, the optional one


@pytest.mark.parametrize("installed", [importlib.util.find_spec("presidio_analyzer") is not None])
def test_presidio_finds_names_or_says_which_command_installs_it(installed, tmp_path):
    """Which of the two is tried stands in the name. The model is made, so that none is fetched."""
    if not installed:
        with pytest.raises(ConfigError) as caught:
            Presidio()
        assert "presidio_analyzer is not installed" in str(caught.value)
        assert "pip install 'edge-to-core-pipeline[presidio]'" in str(caught.value)
        return
    import spacy

    model = spacy.blank("en")
    rules = [{"label": "PERSON", "pattern": "Anna Schmidt"}, {"label": "GPE", "pattern": "Lisbon"}]
    model.add_pipe("entity_ruler").add_patterns(rules)
    folder = str(tmp_path / "model")
    model.to_disk(folder)
    text = "Anna Schmidt (anna@example.org, card 4111 1111 1111 1111) moved to Lisbon."
    presidio = Presidio(PresidioOptions(model=folder))
    assert noted([text], flow(("patterns", "presidio")), {"presidio": presidio}) == [
        "[person] ([email], card [card]) moved to [location]."
    ]
    with pytest.raises(ConfigError, match="no entity SHOE in en"):
        Presidio(PresidioOptions(model=folder, entities=("SHOE",)))
    with pytest.raises(ConfigError, match="the spaCy model no_such_model is not installed"):
        Presidio(PresidioOptions(model="no_such_model"))
