"""Keys: derivation by the standard's vectors, roots in wrapped files that only their owner can read."""

from __future__ import annotations

import base64
import hmac
import json
import os
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.policy import FileKeyStore, create_keys
from pipeline.policy.derivation import epoch_key
from pipeline.policy.keys import hkdf_sha256
from pipeline.policy.root_files import RootName, write_root
from pipeline.policy.wrapping import LocalWrapping, PassphraseWrapping, Wrapping
from tests.shared_data import shared_data

WRAPPING = LocalWrapping(bytes(32))
ROOT, PASSPHRASE = bytes(range(32)), "six random words of a dice list"
RFC_5869 = [  # appendix A.1 to A.3: secret, salt, info, length, output
    (
        "0b" * 22, "000102030405060708090a0b0c", "f0f1f2f3f4f5f6f7f8f9", 42,
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    (
        bytes(range(0x50)).hex(), bytes(range(0x60, 0xB0)).hex(), bytes(range(0xB0, 0x100)).hex(), 82,
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
        "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
    (
        "0b" * 22, "", "", 42,
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("secret", "salt", "info", "length", "output"), RFC_5869)
def test_hkdf_gives_what_rfc_5869_prints(secret, salt, info, length, output):
    found = hkdf_sha256(bytes.fromhex(secret), bytes.fromhex(salt), bytes.fromhex(info), length)
    assert found.hex() == output


def test_hkdf_agrees_with_every_wycheproof_vector():
    vectors = json.loads(shared_data("vectors", "wycheproof", "hkdf_sha256_test.json").read_text())
    tried = 0
    for test in (test for group in vectors["testGroups"] for test in group["tests"]):
        inputs = [bytes.fromhex(test[name]) for name in ("ikm", "salt", "info")]
        tried += 1
        if test["result"] == "valid":
            assert hkdf_sha256(*inputs, test["size"]).hex() == test["okm"], test["tcId"]
        else:
            with pytest.raises(ValueError, match="8160"):
                hkdf_sha256(*inputs, test["size"])
    assert tried == vectors["numberOfTests"]


def test_hmac_agrees_with_every_wycheproof_vector():
    vectors = json.loads(shared_data("vectors", "wycheproof", "hmac_sha256_test.json").read_text())
    for group in vectors["testGroups"]:
        for test in group["tests"]:
            tag = hmac.digest(bytes.fromhex(test["key"]), bytes.fromhex(test["msg"]), "sha256")
            right = tag[: group["tagSize"] // 8].hex() == test["tag"]
            assert right == (test["result"] == "valid"), test["tcId"]


def test_a_key_is_stable_and_its_own_for_each_region_purpose_and_epoch(tmp_path: Path):
    create_keys(tmp_path, "eu", ["care", "service"], WRAPPING)
    create_keys(tmp_path, "br", ["care"], WRAPPING)
    names = [("eu", "care", "2026-01"), ("eu", "care", "2026-02"), ("eu", "service", "2026-01")]
    names.append(("br", "care", "2026-01"))
    keys = [FileKeyStore(tmp_path, WRAPPING).key(*name) for name in names]
    assert keys == [FileKeyStore(tmp_path, WRAPPING).key(*name) for name in names]
    assert len(set(keys)) == len(names)
    assert {len(key) for key in keys} == {32}


@pytest.mark.parametrize("wrapping", [WRAPPING, PassphraseWrapping(PASSPHRASE)], ids=repr)
def test_what_is_on_disk_is_not_the_root(tmp_path: Path, wrapping: Wrapping):
    write_root(tmp_path, RootName("eu", "care"), ROOT, wrapping)
    (path,) = tmp_path.iterdir()
    line = path.read_text()
    assert line.startswith(f"root-key v1 {wrapping.name} - ")
    assert line.count("\n") == 1
    assert ROOT.hex() not in line
    for part in line.split()[-1].split(":"):
        assert ROOT[:4] not in base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    found = FileKeyStore(tmp_path, wrapping).key("eu", "care", "2026-01")
    assert found == epoch_key(ROOT, "eu", "care", "2026-01")


@pytest.mark.parametrize("name", ["br.care.key", "eu.service.key", "eu.care.2027-q1.key"])
def test_a_root_moved_to_another_name_does_not_open(tmp_path: Path, name: str):
    (path,) = create_keys(tmp_path, "eu", ["care"], WRAPPING)
    path.rename(tmp_path / name)
    region, purpose = name.split(".")[:2]
    with pytest.raises(ConfigError, match=r"does not open.*another name"):
        FileKeyStore(tmp_path, WRAPPING).key(region, purpose, "2027-q1")


def test_a_root_with_any_one_character_altered_does_not_open(tmp_path: Path):
    (path,) = create_keys(tmp_path, "eu", ["care"], WRAPPING)
    line = path.read_text().strip()
    assert FileKeyStore(tmp_path, WRAPPING).key("eu", "care", "2026-01")
    for place in range(len(line)):
        path.write_text(line[:place] + ("A" if line[place] != "A" else "B") + line[place + 1 :])
        with pytest.raises(ConfigError):
            FileKeyStore(tmp_path, WRAPPING).key("eu", "care", "2026-01")


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (LocalWrapping(b"\1" * 32), "under another master key"),
        (PassphraseWrapping("not the one of these roots"), "wrapped by local, while .* says passphrase"),
    ],
)
def test_a_root_under_another_wrapping_is_refused(tmp_path: Path, other: Wrapping, problem: str):
    create_keys(tmp_path, "eu", ["care"], WRAPPING)
    with pytest.raises(ConfigError, match=problem):
        FileKeyStore(tmp_path, other).key("eu", "care", "2026-01")
    with pytest.raises(ConfigError, match=problem):  # nor does a second purpose get a key beside it
        create_keys(tmp_path, "eu", ["care", "service"], other)
    assert [path.name for path in tmp_path.iterdir()] == ["eu.care.key"]


def test_another_passphrase_does_not_open_a_root(tmp_path: Path):
    create_keys(tmp_path, "eu", ["care"], PassphraseWrapping(PASSPHRASE))
    with pytest.raises(ConfigError, match="does not open"):
        FileKeyStore(tmp_path, PassphraseWrapping("seven random words of the list")).key("eu", "care", "1")


def test_a_root_in_clear_is_refused_with_what_to_do(tmp_path: Path):
    path = tmp_path / "eu.care.key"
    path.write_text(ROOT.hex())
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"a root in clear.*pipeline keys import") as caught:
        FileKeyStore(tmp_path, WRAPPING).key("eu", "care", "2026-01")
    assert ROOT.hex() not in str(caught.value)


def test_a_root_is_read_once_and_its_file_looked_at_always(tmp_path: Path):
    """A folder that goes away while a stage runs stops it: it may hold a later generation by now."""
    folder = tmp_path / "keys"
    create_keys(folder, "eu", ["care"], WRAPPING)
    keys = FileKeyStore(folder, WRAPPING)
    first = keys.key("eu", "care", "2026-01")
    folder.rename(tmp_path / "gone")
    with pytest.raises(ConfigError, match="no key here"):
        keys.key("eu", "care", "2026-02")
    (tmp_path / "gone").rename(folder)
    assert keys.key("eu", "care", "2026-01") == first


def test_creating_again_leaves_every_root_as_it_was(tmp_path: Path):
    first = create_keys(tmp_path / "keys", "eu", ["care"], WRAPPING)
    before = first[0].read_bytes()
    second = create_keys(tmp_path / "keys", "eu", ["care", "service"], WRAPPING)
    assert [path.name for path in second] == ["eu.service.key"]
    assert first[0].read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == ["eu.care.key", "eu.service.key"]


def test_a_new_root_is_readable_by_its_owner_alone(tmp_path: Path):
    before = os.umask(0)
    try:
        (path,) = create_keys(tmp_path / "keys", "eu", ["care"], WRAPPING)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610])
def test_a_root_that_others_can_reach_is_refused(tmp_path: Path, mode: int):
    (path,) = create_keys(tmp_path, "eu", ["care"], WRAPPING)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"expected mode 0600 or less, found {mode:04o}.*chmod 600"):
        FileKeyStore(tmp_path, WRAPPING).key("eu", "care", "2026-01")


def test_a_folder_that_others_can_write_is_refused(tmp_path: Path):
    folder = tmp_path / "keys"
    create_keys(folder, "eu", ["care"], WRAPPING)
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="folder has mode 0777"):
        FileKeyStore(folder, WRAPPING).key("eu", "care", "2026-01")


def test_a_missing_root_is_refused_and_not_made(tmp_path: Path):
    with pytest.raises(ConfigError, match="no key here"):
        FileKeyStore(tmp_path, WRAPPING).key("eu", "care", "2026-01")
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_place_of_a_root_is_refused(tmp_path: Path):
    (path,) = create_keys(tmp_path / "elsewhere", "eu", ["care"], WRAPPING)
    (tmp_path / "eu.care.key").symlink_to(path)
    with pytest.raises(ConfigError, match="cannot open"):
        FileKeyStore(tmp_path, WRAPPING).key("eu", "care", "2026-01")


@pytest.mark.parametrize(
    "text", ["", "00" * 31, "root-key v1 local -", "root-key v2 local - x:y", "00" * 32 + " and more"]
)
def test_a_malformed_root_is_refused_without_showing_it(tmp_path: Path, text: str):
    (path,) = create_keys(tmp_path, "eu", ["care"], WRAPPING)
    path.write_text(text)
    with pytest.raises(ConfigError, match="expected one line: root-key v1") as caught:
        FileKeyStore(tmp_path, WRAPPING).key("eu", "care", "2026-01")
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize("name", ["", "../up", "a/b", "UPPER", "a.b"])
def test_a_name_that_would_leave_the_folder_is_refused(tmp_path: Path, name: str):
    with pytest.raises(ConfigError, match="purpose is not a name"):
        create_keys(tmp_path, "eu", [name], WRAPPING)
    with pytest.raises(ConfigError, match="region is not a name"):
        FileKeyStore(tmp_path, WRAPPING).key(name, "care", "2026-01")


@pytest.mark.parametrize("text", ["", ":", "x:y", "0123456789abcdef:AA", "0123456789abcdef:ä"])
def test_a_malformed_text_is_refused_by_every_wrapping(text: str):
    for wrapping in (WRAPPING, PassphraseWrapping(PASSPHRASE)):
        with pytest.raises(ConfigError):
            wrapping.unwrap(text, b"")


def test_a_short_passphrase_is_refused_without_showing_it():
    with pytest.raises(ConfigError, match="16 characters or more") as caught:
        PassphraseWrapping("hunter2")
    assert "hunter2" not in str(caught.value)


def test_neither_store_nor_wrapping_show_what_they_hold(tmp_path: Path):
    master, passphrase = bytes(range(100, 132)), PASSPHRASE
    for wrapping in (LocalWrapping(master), PassphraseWrapping(passphrase)):
        folder = tmp_path / wrapping.name
        folder.mkdir()
        write_root(folder, RootName("eu", "care"), ROOT, wrapping)
        keys = FileKeyStore(folder, wrapping)
        keys.key("eu", "care", "2026-01")
        shown = repr(keys) + repr(wrapping) + str(wrapping)
        for secret in (ROOT.hex(), master.hex(), passphrase):
            assert secret not in shown
