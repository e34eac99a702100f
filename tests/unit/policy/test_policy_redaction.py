"""Redaction: what it finds, what it leaves, how well it does on labelled text, and that no text stalls it."""

from __future__ import annotations

import json
import time
from collections import Counter
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.operators import OPERATORS
from pipeline.policy.redaction import KINDS, find, redact
from tests.shared_data import shared_data
from tests.unit.policy.test_policy_operators import run

LABELS = {
    "email": "EMAIL_ADDRESS", "iban": "IBAN_CODE", "card": "CREDIT_CARD", "ip": "IP_ADDRESS", "ssn": "US_SSN",
    "phone": "PHONE_NUMBER",
}  # fmt: skip
RIGHT_MIN = {"phone": 0.85}  # share of what was found that carries the same label; 0.98 for the others


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("write to anna.b+shop@mail.example.org, please", "write to [email], please"),
        ("<o'neil@example.ie>;x@y.example", "<[email]>;[email]"),
        ("DE89 3704 0044 0532 0130 00 is mine", "[iban] is mine"),
        ("gb82west12345698765432", "[iban]"),
        ("ab12 DE89370400440532013000", "ab12 [iban]"),
        ("card 4111 1111 1111 1111 12/27", "card [card] 12/27"),
        ("378282246310005", "[card]"),
        ("call +49 (0)30 901820 today", "call [phone] today"),
        ("0171/1234567 or 555-867-5309 x12", "[phone] or [phone]"),
        (
            "parked: B-AB 1234, AA-123-BB, BRA2E19 and 7ABC123",
            "parked: [plate], [plate], [plate] and [plate]",
        ),
        ("0171\u200b2345\u200b678", "[phone]"),
        ("٠١٧١ ٢٣٤٥٦٧٨", "[phone]"),
        ("a@b.example, +1-984-182-0190", "[email], [phone]"),
        (
            "from 203.0.113.77, then [2001:db8::1] and ::ffff:203.0.113.77.",
            "from [ip], then [[ip]] and [ip].",
        ),
        ("ssn 123-45-6789", "ssn [ssn]"),
    ],
)
def test_what_leads_to_a_person_is_replaced_by_its_kind(text, redacted):
    assert redact(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "on 2026-03-31 and 31.03.2026, in 1990-1995",
        "error P0301 at 87 km/h, 3.5 bar, 12:30:45",
        "me @ home",
        "part ab12 cde in row 12",
        "lives at 28919 136 Elm Street, Apt. 117 5720",
        "ZIP 75534-030, 3610-114",
        "std::vector, a :: b, 1.2.3, 256.1.1.1, aa:bb:cc:dd:ee:ff",
        "",
        "\0",
    ],
)
def test_what_only_looks_alike_stays(text):
    assert redact(text) == text


def test_a_number_with_a_wrong_digit_is_no_iban_and_no_card():
    assert "iban" not in {span.kind for span in find("DE88 3704 0044 0532 0130 00")}
    assert [span.kind for span in find("4111111111111112")] == []


@pytest.mark.parametrize(
    "number",
    [
        "+49 30 901820", "030 901820", "0171 2345678", "01 42 68 53 00", "+33 1 42 68 53 00",
        "020 7946 0958", "07700 900123", "+44 7700 900123", "91 123 45 67", "612 345 678", "612345678",
        "06 12345678", "+31 20 794 0958", "0478 12 34 56", "02 1234 5678", "22 123 45 67",
        "+48 22 123 45 67", "08-123 456 78", "070-123 45 67", "22 33 44 55", "412 34 567", "9123 4567",
        "+65 6123 4567", "(11) 98765-4321", "98765-4321", "98765 4321", "3456-7890", "+55 11 98765-4321",
        "555-0123", "(212) 555-0123", "212.555.0123", "2125550123", "+1 212 555 0123", "98765 43210",
        "+91 98765 43210", "03-1234-5678", "138 0013 8000", "210 1234567", "99 123456", "512 3456",
        "5123 4567", "022 1234567", "+420 601 123 456", "601 123 456", "+30 210 123 4567",
        "+351 912 345 678",
    ],
)  # fmt: skip
def test_a_telephone_number_is_found_as_people_of_many_countries_write_it(number):
    assert redact(f"call {number} today") == "call [phone] today"


def test_names_remain_which_is_why_the_result_is_not_harmless():
    assert redact("Anna Schmidt lives in Elm Street") == "Anna Schmidt lives in Elm Street"
    operator = OPERATORS["redact_text"]
    assert operator.takes == {"text.free"}
    assert operator.gives(None, frozenset({"text.free"})) == {"text.redacted"}


@given(st.text(st.sampled_from("aB1290 @.:-+()x\0\nÄ٣"), max_size=80))
def test_spans_are_in_order_disjoint_and_gone_from_the_result(text):
    spans = find(text)
    assert all(0 <= a.start < a.end <= b.start for a, b in pairwise(spans))
    assert all(span.kind in KINDS and 0 <= span.start < span.end <= len(text) for span in spans)
    rebuilt, done = "", 0
    for span in spans:
        rebuilt += text[done : span.start] + f"[{span.kind}]"
        done = span.end
    assert redact(text) == rebuilt + text[done:]


def test_a_column_keeps_its_rows_and_its_nulls():
    column = pa.array(["x", "a@b.example", None, "a@b.example"])[1:]
    assert run("redact_text", [column]).to_pylist() == ["[email]", None, "[email]"]


@pytest.mark.parametrize(
    "unit",
    [
        *"a1(+@\0",
        "1 ",
        "1-",
        "a@",
        "a@a.",
        "a.",
        "A1",
        "AB12 ",
        "DE12",
        "a:",
        "1.",
        "::",
        "1:a.",
        "9 8",
        "19-",
        ".@a",
        "x1",
    ],
)
def test_no_text_stalls_it(unit):
    """Ten times the text, about ten times the work; a quadratic search would take a hundred times."""
    took = []
    for length in (10_000, 100_000):
        text = (unit * length)[:length]
        best = min(_seconds(text) for _ in range(2))
        took.append(best)
    assert took[1] < 40 * took[0] + 0.05


def _seconds(text):
    start = time.perf_counter()
    redact(text)
    return time.perf_counter() - start


def test_measured_on_labelled_texts(capsys):
    """Recall: labelled characters all hidden, whatever the kind. Precision: what was hidden carries a label
    of the same kind, or of any kind: a social security number found as a telephone number is rightly gone."""
    rows = json.loads(shared_data("presidio", "synth_dataset_v2.json").read_text(encoding="utf-8"))
    labelled, hidden, found, right, personal = (Counter() for _ in range(5))
    for row in rows:
        spans = find(row["full_text"])
        labels = [(s["start_position"], s["end_position"], s["entity_type"]) for s in row["spans"]]
        for start, end, label in labels:
            covered = sum(max(0, min(end, span.end) - max(start, span.start)) for span in spans)
            labelled[label] += 1
            hidden[label] += covered == end - start
        for span in spans:
            under = {label for start, end, label in labels if start < span.end and span.start < end}
            found[span.kind] += 1
            right[span.kind] += LABELS.get(span.kind) in under
            personal[span.kind] += bool(under)
    with capsys.disabled():
        print(f"\nredact_text on {len(rows)} texts:")
        for kind, label in LABELS.items():
            print(
                f"  {kind:6} recall {hidden[label]}/{labelled[label]}, found {found[kind]}, "
                f"of the same kind {right[kind]}, on any label {personal[kind]}"
            )
        print(f"  plate  found {found['plate']}, none is labelled: see test_redaction_plates")
    for kind, label in LABELS.items():
        assert hidden[label] == labelled[label] > 0, kind
        assert personal[kind] >= 0.98 * found[kind], kind
        assert right[kind] >= RIGHT_MIN.get(kind, 0.98) * found[kind], kind
    assert found["plate"] == 0
