"""The search finds what it looks for, wherever it begins: a blind search would prove anything."""

from __future__ import annotations

import hashlib
import struct

import pytest

from pipeline.schemas import SchemaStore
from tests.canaries import Cage, Searcher
from tests.store_world import SCHEMAS


@pytest.fixture(scope="module")
def cage() -> Cage:
    made = Cage(11)
    for event in SchemaStore.load(SCHEMAS).events.values():
        made.row("eu", event, [field.name for field in event.fields], {})
    return made


def test_every_form_is_found_at_every_offset(cage):
    searcher = Searcher(cage.canaries)
    for canary in cage.canaries:
        for number, form in enumerate(canary.forms):
            for shift in (0, 1, 5, 7, 8, 13):
                found = searcher.find("there", b"\x01" * shift + form + b"tail")
                assert (canary.name, number) in {(one.canary, one.form) for one in found}


def test_nothing_is_found_in_other_bytes(cage):
    assert Searcher(cage.canaries).find("there", b"nothing to see here, " * 500) == []
    assert Searcher(cage.canaries).find("there", b"") == []
    assert Searcher(cage.canaries).find("there", b"short") == []


def test_hashes_and_numbers_count(cage):
    made = Cage(3)
    secret = made.text("eu", "none", "none")
    searcher = Searcher(made.canaries)
    for name in ("md5", "sha1", "sha256"):
        assert searcher.find("log", b"id=" + hashlib.new(name, secret.encode()).hexdigest().encode())
    latitudes = [c for c in cage.canaries if c.field == "latitude"]
    assert len(struct.unpack("<d", latitudes[0].forms[0])) == 1
