"""The primitives in use, against public vectors and against their standards written out.

HMAC-SHA-256 and HKDF-SHA-256 meet all of Wycheproof's vectors in ``test_policy_keys``. Here: AES-GCM (wraps
root keys) meets Wycheproof's too; AES-SIV (encrypts identifiers), for which that folder has none, meets the
examples of RFC 5297 and the RFC's own steps made of CMAC and CTR; HKDF and HMAC meet their RFCs' steps.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import cmac, hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.policy.encryption import Encrypter
from pipeline.policy.keys import hkdf_sha256
from pipeline.policy.pseudonyms import PSEUDONYM_BYTES, Pseudonymiser
from tests.shared_data import shared_data
from tests.unit.policy.cases import Keys

TRIED = settings(max_examples=60, deadline=None, derandomize=True, print_blob=True)
NONCE_BITS_MIN, NONCE_BITS_MAX = 64, 1024  # what the library takes; wrapping uses 96


# --- AES-GCM


def test_aes_gcm_agrees_with_every_wycheproof_vector():
    vectors = json.loads(shared_data("vectors", "wycheproof", "aes_gcm_test.json").read_text())
    tried = refused = as_wrapped = 0
    for group in vectors["testGroups"]:
        assert group["tagSize"] == 128
        for test in group["tests"]:
            key, iv, aad, msg, ct, tag = (
                bytes.fromhex(test[name]) for name in ("key", "iv", "aad", "msg", "ct", "tag")
            )
            tried += 1
            if not NONCE_BITS_MIN <= group["ivSize"] <= NONCE_BITS_MAX:
                refused += 1
                with pytest.raises(ValueError, match=r"[Nn]once"):
                    AESGCM(key).encrypt(iv, msg, aad)
            elif test["result"] == "valid":
                assert AESGCM(key).encrypt(iv, msg, aad) == ct + tag, test["tcId"]
                assert AESGCM(key).decrypt(iv, ct + tag, aad) == msg, test["tcId"]
                as_wrapped += len(key) == 32 and len(iv) == 12
            else:
                with pytest.raises(InvalidTag):
                    AESGCM(key).decrypt(iv, ct + tag, aad)
    assert tried == vectors["numberOfTests"]
    assert as_wrapped >= 30, "few with the key and the nonce that wrapping uses"
    assert refused < tried / 8


# --- AES-SIV

RFC_5297 = [  # appendix A.1 and A.2: key, associated data and nonce, plain, sealed
    (
        "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
        ["101112131415161718191a1b1c1d1e1f2021222324252627"],
        "112233445566778899aabbccddee",
        "85632d07c6e8f37f950acd320a2ecc9340c02b9690c4dc04daef7f6afe5c",
    ),
    (
        "7f7e7d7c7b7a79787776757473727170404142434445464748494a4b4c4d4e4f",
        [
            "00112233445566778899aabbccddeeffdeaddadadeaddadaffeeddccbbaa99887766554433221100",
            "102030405060708090a0",
            "09f911029d74e35bd84156c5635688c0",
        ],
        "7468697320697320736f6d6520706c61696e7465787420746f20656e6372797074207573696e67205349562d414553",
        "7bdb6e3b432667eb06f4d14bff2fbd0fcb900f2fddbe404326601965c889bf17dba77ceb094fa663b7a3f748ba8af829ea64ad544a272e9c485b62a3fd5c0d",
    ),
]


@pytest.mark.parametrize(("key", "associated", "plain", "sealed"), RFC_5297)
def test_aes_siv_and_the_steps_below_give_what_rfc_5297_prints(key, associated, plain, sealed):
    key, plain, sealed = map(bytes.fromhex, (key, plain, sealed))
    parts = [bytes.fromhex(part) for part in associated]
    assert AESSIV(key).encrypt(plain, parts) == sealed
    assert AESSIV(key).decrypt(sealed, parts) == plain
    assert siv_by_its_steps(key, parts, plain) == sealed


@TRIED
@given(st.binary(min_size=64, max_size=64), st.lists(st.binary(max_size=40), max_size=3),
       st.binary(min_size=1, max_size=100))  # fmt: skip
def test_aes_siv_agrees_with_the_steps_of_its_standard_under_two_256_bit_keys(key, associated, plain):
    assert AESSIV(key).encrypt(plain, associated) == siv_by_its_steps(key, associated, plain)


@TRIED
@given(st.binary(min_size=32, max_size=32), st.text(max_size=40))
def test_an_identifier_is_sealed_by_these_steps(key, subject):
    label = b"edge-to-core-pipeline/deterministic-encryption/v1\0"
    derived = HKDF(hashes.SHA256(), 64, None, label).derive(key)
    padded = subject.encode() + b"\x80"
    padded += bytes(-len(padded) % 16)
    sealed = siv_by_its_steps(derived, [b"identifier.direct"], padded)
    text = Encrypter(Keys(), "eu", "month").namer(key, "identifier.direct")(subject)
    assert base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) == sealed


@TRIED
@given(st.binary(min_size=64, max_size=64), st.binary(min_size=1, max_size=60), st.data())
def test_one_bit_anywhere_opens_nothing(key, plain, data):
    sealed = bytearray(AESSIV(key).encrypt(plain, [b"d"]))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(InvalidTag):
        AESSIV(key).decrypt(bytes(sealed), [b"d"])


def siv_by_its_steps(key, associated, plain):
    """RFC 5297, 2.4 (S2V) and 2.6 (encryption), from AES-CMAC and AES-CTR."""
    mac_key, cipher_key = key[: len(key) // 2], key[len(key) // 2 :]

    def mac(message):
        made = cmac.CMAC(algorithms.AES(mac_key))
        made.update(message)
        return made.finalize()

    d = mac(bytes(16))
    for part in associated:
        d = xor(doubled(d), mac(part))
    if len(plain) >= 16:
        siv = mac(plain[:-16] + xor(plain[-16:], d))
    else:
        siv = mac(xor(doubled(d), plain + b"\x80" + bytes(15 - len(plain))))
    counter = bytearray(siv)
    counter[8] &= 0x7F
    counter[12] &= 0x7F
    encryptor = Cipher(algorithms.AES(cipher_key), modes.CTR(bytes(counter))).encryptor()
    return siv + encryptor.update(plain) + encryptor.finalize()


def doubled(block):
    """Times x in GF(2^128): one bit to the left, and the polynomial where one falls off."""
    number = int.from_bytes(block, "big") << 1
    return (number & (1 << 128) - 1 ^ (0x87 if number >> 128 else 0)).to_bytes(16, "big")


def xor(one, other):
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


# --- HKDF and HMAC, as used


@TRIED
@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=80), st.integers(1, 8160))
def test_hkdf_is_extract_and_expand_of_rfc_5869(secret, salt, info, length):
    extracted = hmac.digest(salt or bytes(32), secret, "sha256")
    expanded, block = b"", b""
    while len(expanded) < length:
        block = hmac.digest(extracted, block + info + bytes([len(expanded) // 32 + 1]), "sha256")
        expanded += block
    assert hkdf_sha256(secret, salt, info, length) == expanded[:length]


@pytest.mark.parametrize("length", [0, -1, 8161])
def test_hkdf_refuses_what_it_cannot_give(length):
    with pytest.raises(ValueError, match="1 to 8160"):
        hkdf_sha256(b"s", b"", b"", length)


@TRIED
@given(st.binary(min_size=32, max_size=100), st.text(max_size=60))
def test_a_pseudonym_is_the_beginning_of_the_hmac_of_rfc_2104(key, subject):
    block = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
    inner = hashlib.sha256(xor(block, b"\x36" * 64) + b"identifier.device\0" + subject.encode()).digest()
    outer = hashlib.sha256(xor(block, b"\x5c" * 64) + inner).digest()
    name = Pseudonymiser(Keys(), "eu", "month").namer(key, "identifier.device")(subject)
    assert bytes.fromhex(name) == outer[:16]
    assert PSEUDONYM_BYTES == 16
    assert hmac.digest(key, b"identifier.device\0" + subject.encode(), "sha256") == outer
