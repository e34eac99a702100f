"""Deterministic encryption: one text per subject and epoch, back only with the key, altered never."""

from __future__ import annotations

import base64

import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.policy import compile_plan
from pipeline.policy.encryption import Encrypter, decrypt
from pipeline.policy.keys import hkdf_sha256
from pipeline.policy.pseudonyms import Epochs, epoch_index, epoch_name
from tests.unit.policy.cases import NOW_US, Keys, event, microseconds, small_batch, terms
from tests.unit.policy.test_policy_operators import KINDS, SUBJECTS, TIMES_US, sliced

DEVICE = "identifier.device"
RULE = {"operator": "deterministic_encrypt", "with": {"purpose": "care"}, "source": "a test"}


def encrypted(subject, time_us=0, *, region="eu", purpose="care", domain=DEVICE):
    epochs = Epochs(pa.array([time_us], pa.timestamp("us")), "month")
    made = Encrypter(Keys(), region, "month")
    return made.column(pa.array([subject]), purpose, domain, epochs)[0].as_py()


def test_the_cipher_is_that_of_rfc_5297():
    """Appendix A.1."""
    key = bytes.fromhex("fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    associated = bytes.fromhex("101112131415161718191a1b1c1d1e1f2021222324252627")
    sealed = AESSIV(key).encrypt(bytes.fromhex("112233445566778899aabbccddee"), [associated])
    assert sealed.hex() == "85632d07c6e8f37f950acd320a2ecc9340c02b9690c4dc04daef7f6afe5c"


def test_a_text_can_be_made_by_hand():
    key = hkdf_sha256(
        Keys().key("eu", "care", "1970-01"), b"", b"edge-to-core-pipeline/deterministic-encryption/v1\0", 64
    )
    sealed = AESSIV(key).encrypt(b"press-1\x80" + bytes(8), [b"identifier.device"])
    assert encrypted("press-1") == base64.urlsafe_b64encode(sealed).decode().rstrip("=")


@given(st.lists(st.tuples(SUBJECTS, TIMES_US), max_size=20), KINDS, st.integers(0, 3))
def test_the_key_holder_gets_every_identifier_back_over_any_epochs(rows, kind, lead):
    times = sliced([time for _, time in rows], pa.int64(), lead).cast(pa.timestamp("us"))
    subjects = sliced([subject for subject, _ in rows], pa.string(), lead)
    texts = Encrypter(Keys(), "eu", kind).column(subjects, "care", DEVICE, Epochs(times, kind)).to_pylist()
    for (subject, time), text in zip(rows, texts, strict=True):
        if subject is None:
            assert text is None
            continue
        epoch = epoch_name(int(epoch_index(pa.array([time]).to_numpy(), kind)[0]), kind)
        assert decrypt(text, Keys().key("eu", "care", epoch), DEVICE) == subject


@given(st.text(), TIMES_US)
def test_one_subject_has_one_text_and_another_under_any_other_name_of_the_key(subject, time_us):
    found = [
        encrypted(subject, time_us, region=region, purpose=purpose, domain=domain)
        for region in ("eu", "br") for purpose in ("care", "service") for domain in (DEVICE, "other")
    ]  # fmt: skip
    assert len(set(found)) == 8
    assert encrypted(subject, time_us) == found[0]


@given(st.text(max_size=20), st.data())
def test_an_altered_text_gives_nothing_back(subject, data):
    text = encrypted(subject)
    sealed = bytearray(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    bent = base64.urlsafe_b64encode(bytes(sealed)).decode()
    with pytest.raises(ValueError, match="not made with this key for this domain, or altered"):
        decrypt(bent, Keys().key("eu", "care", "1970-01"), DEVICE)


@pytest.mark.parametrize(
    ("region", "purpose", "epoch", "domain"),
    [("br", "care", "1970-01", DEVICE), ("eu", "service", "1970-01", DEVICE),
     ("eu", "care", "1970-02", DEVICE), ("eu", "care", "1970-01", "identifier.direct")],
)  # fmt: skip
def test_another_key_or_domain_gives_nothing_back(region, purpose, epoch, domain):
    with pytest.raises(ValueError, match="not made with this key"):
        decrypt(encrypted("press-1"), Keys().key(region, purpose, epoch), domain)


def test_the_text_tells_the_length_only_in_steps_of_sixteen():
    assert {len(encrypted("x" * n)) for n in range(16)} == {len(encrypted(""))}
    assert len(encrypted("x" * 16)) > len(encrypted("x" * 15))


def test_a_plan_encrypts_and_stops_without_a_key():
    changes = {("landing", "rules", "identifier"): RULE}
    plan = compile_plan(terms(changes), event(), Keys(), now_us=NOW_US)
    (row,) = plan.apply(small_batch([{"source": "press-1"}])).batch.to_pylist()
    assert row["source"] == encrypted("press-1", NOW_US)
    columns = {column["name"]: column for column in plan.schema["fields"]}
    assert columns["source"]["confluent:tags"] == ["pseudonym"]
    assert "reversible" in columns["source"]["doc"]
    with pytest.raises(ConfigError, match="no key here"):
        compile_plan(terms(changes), event(), Keys(frozenset({"2026-01"})), now_us=NOW_US)
    late = small_batch([{"event_time": microseconds("2026-02-01T00:00:00Z")}])
    stopped = compile_plan(terms(changes), event(), Keys(frozenset({"2026-02"})), now_us=NOW_US)
    with pytest.raises(ConfigError, match="no key here"):
        stopped.apply(late)
