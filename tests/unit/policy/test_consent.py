"""What people said is honoured, by purpose, and a name for consent joins with nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import ConfigError
from pipeline.policy import FileKeyStore, create_keys
from pipeline.policy.consent import MISSING, OBJECTED, Choice, ConsentBook, ConsentNames
from pipeline.policy.pseudonyms import Pseudonymiser
from pipeline.policy.wrapping import LocalWrapping


@dataclass(frozen=True)
class Rule:
    purpose: str = "maintenance"
    subject: str = "driver"
    mode: str = "opt-in"


WRAPPING = LocalWrapping(bytes(32))
OPT_IN, OPT_OUT = Rule(), Rule(mode="opt-out")


@pytest.fixture
def names(tmp_path: Path) -> ConsentNames:
    create_keys(tmp_path / "keys", "eu", ["maintenance", "training"], WRAPPING)
    return ConsentNames(FileKeyStore(tmp_path / "keys", WRAPPING), "eu")


def unwanted(book: ConsentBook, rule: Rule, subjects: list[str | None]) -> dict[str, list[int]]:
    found = book.unwanted(rule, pa.array(subjects, pa.string()))
    return {reason: rows.tolist() for reason, rows in found.items()}


def say(book: ConsentBook, names: ConsentNames, subject: str, choice: Choice | None, purpose="maintenance"):
    book.learn(purpose, names.of(purpose, [subject])[0], choice)


def test_opt_in_needs_a_standing_grant(names):
    book = ConsentBook(names)
    assert unwanted(book, OPT_IN, ["a", "b", None]) == {MISSING: [0, 1, 2]}
    say(book, names, "a", Choice.GRANTED)
    assert unwanted(book, OPT_IN, ["a", "b", "a", None]) == {MISSING: [1, 3]}
    say(book, names, "a", Choice.WITHDRAWN)
    assert unwanted(book, OPT_IN, ["a"]) == {MISSING: [0]}
    say(book, names, "b", Choice.OBJECTED)
    assert unwanted(book, OPT_IN, ["b"]) == {MISSING: [0]}


def test_opt_out_needs_a_word_against_it(names):
    book = ConsentBook(names)
    assert unwanted(book, OPT_OUT, ["a", None]) == {}
    say(book, names, "a", Choice.OBJECTED)
    assert unwanted(book, OPT_OUT, ["b", "a", None, "a"]) == {OBJECTED: [1, 3]}
    say(book, names, "a", Choice.GRANTED)
    assert unwanted(book, OPT_OUT, ["a"]) == {}
    say(book, names, "a", Choice.WITHDRAWN)
    assert unwanted(book, OPT_OUT, ["a"]) == {OBJECTED: [0]}


def test_one_purpose_says_nothing_of_another(names):
    book = ConsentBook(names)
    say(book, names, "a", Choice.GRANTED, "training")
    assert unwanted(book, OPT_IN, ["a"]) == {MISSING: [0]}
    assert unwanted(book, Rule("training"), ["a"]) == {}


def test_forgotten_is_as_never_said(names):
    book = ConsentBook(names)
    say(book, names, "a", Choice.GRANTED)
    say(book, names, "a", None)
    say(book, names, "b", None)
    assert len(book) == 0
    assert unwanted(book, OPT_IN, ["a", "b"]) == {MISSING: [0, 1]}


def test_no_rows(names):
    assert unwanted(ConsentBook(names), OPT_IN, []) == {}


def test_a_consent_name_is_no_pseudonym(names, tmp_path: Path):
    keys = FileKeyStore(tmp_path / "keys", WRAPPING)
    pseudonyms = Pseudonymiser(keys, "eu", "quarter")
    consent = names.of("maintenance", ["a"])
    for domain in ("identifier.device", "identifier.direct", "consent"):
        for epoch in ("2026-q1", "2026-q4", "2026-03"):
            assert pseudonyms.names_of(["a"], "maintenance", domain, epoch) != consent
    assert names.of("training", ["a"]) != consent


def test_without_a_key_nothing_is_decided(tmp_path: Path):
    book = ConsentBook(ConsentNames(FileKeyStore(tmp_path, WRAPPING), "eu"))
    with pytest.raises(ConfigError, match="no key here"):
        book.unwanted(OPT_OUT, pa.array(["a"]))
