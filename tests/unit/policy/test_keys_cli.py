"""The key commands, what wraps a configuration's roots, and who may reach a file with a secret."""

from __future__ import annotations

import json
import os
import stat
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.keyring import Keyring
from pipeline.policy.derivation import epoch_key
from pipeline.policy.secret_files import fault, read_secret, write_secret
from pipeline.policy.wrapping import LocalWrapping, PassphraseWrapping, create_master

PASSPHRASE = "six random words of a dice list"


class Place:
    """A state folder and a configuration of one region."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "pipeline.toml"
        self.configure("")

    def configure(self, keys: str) -> None:
        self.file.write_text(f'state = "{self.folder}/state"\n[regions.eu]\n[keys]\n{keys}\n')

    def call(self, *arguments: str):
        return CliRunner().invoke(app, ["--config", str(self.file), "--json", "keys", *arguments])

    @property
    def keys(self) -> Path:
        return self.folder / "state" / "keys" / "eu"

    def made(self) -> list[dict[str, str]]:
        assert self.call("create").exit_code == 0
        return json.loads(self.call("list", "--check").stdout)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_first_use_makes_a_master_key_beside_the_roots_and_no_command_prints_either(place):
    listed = place.made()
    assert {line["state"] for line in listed} == {"opens"}
    assert {line["wrapping"] for line in listed} == {"local"}
    master = place.folder / "state" / "secrets" / "master.key"
    assert stat.S_IMODE(master.stat().st_mode) == 0o600
    assert stat.S_IMODE(master.parent.stat().st_mode) == 0o700
    texts = [path.read_text().split()[-1] for path in place.keys.glob("*.key")]
    for arguments in (("create",), ("list", "--check"), ("rewrap",)):
        output = place.call(*arguments).output
        assert not any(secret in output for secret in (master.read_text().strip(), *texts))


def test_a_copy_of_the_roots_without_the_master_key_is_worth_nothing(place):
    place.made()
    (place.folder / "state" / "secrets" / "master.key").unlink()
    listed = place.call("list", "--check")
    assert listed.exit_code == 1
    assert "no file here" in listed.output
    made = place.call("create")
    assert isinstance(made.exception, ConfigError)
    assert "the master key is gone, and there are roots under it" in str(made.exception)
    assert not (place.folder / "state" / "secrets" / "master.key").exists()


def test_from_the_default_to_a_master_file_to_a_passphrase_and_the_same_keys_all_the_way(place, monkeypatch):
    place.made()
    purposes = sorted(path.name.split(".")[1] for path in place.keys.glob("*.key"))

    def keys() -> list[bytes]:
        store = Keyring(Config.model_validate(_raw(place))).store("eu")
        return [store.key("eu", purpose, "2026-q1") for purpose in purposes]

    before = keys()
    other = place.folder / "other" / "master.key"
    assert place.call("master", str(other)).exit_code == 0
    assert isinstance(place.call("master", str(other)).exception, ConfigError)  # never overwritten
    steps = [f'master_file = "{other}"', 'passphrase_env = "A_PASSPHRASE"']
    monkeypatch.setenv("A_PASSPHRASE", PASSPHRASE)
    for step in steps:
        old = place.folder / "old.toml"
        old.write_text(place.file.read_text())
        place.configure(step)
        assert place.call("list", "--check").exit_code == 1
        done = place.call("rewrap", "--old", str(old))
        assert done.exit_code == 0, done.output
        assert all(change["changed"] for change in json.loads(done.stdout))
        assert not any(c["changed"] for c in json.loads(place.call("rewrap", "--old", str(old)).stdout))
        assert keys() == before
    monkeypatch.delenv("A_PASSPHRASE")
    with pytest.raises(ConfigError, match=r"variable A_PASSPHRASE: no passphrase"):
        keys()


def _raw(place: Place) -> dict[str, object]:
    return tomllib.loads(place.file.read_text())


def test_a_region_may_have_a_wrapping_of_its_own(place, tmp_path):
    create_master(tmp_path / "own.key")
    write_secret(tmp_path / "words", PASSPHRASE)
    place.file.write_text(
        f'state = "{tmp_path}/state"\n[regions.eu]\nwrapping.master_file = "{tmp_path}/own.key"\n'
        f'[regions.br]\nwrapping.passphrase_file = "{tmp_path}/words"\n'
    )
    assert {(line["region"], line["wrapping"]) for line in place.made()} == {
        ("eu", "local"), ("br", "passphrase"),
    }  # fmt: skip
    assert not (tmp_path / "state" / "secrets").exists()
    ring = Keyring(Config.model_validate(_raw(place)))
    assert isinstance(ring.wrapping("eu"), LocalWrapping)
    assert isinstance(ring.wrapping("br"), PassphraseWrapping)


def test_a_master_file_that_was_named_and_is_missing_is_not_made(place):
    place.configure(f'master_file = "{place.folder}/missing.key"')
    made = place.call("create")
    assert isinstance(made.exception, ConfigError)
    assert "missing.key: no file here" in str(made.exception)
    assert not (place.folder / "missing.key").exists()
    (place.folder / "missing.key").write_text("short\n")
    (place.folder / "missing.key").chmod(0o600)
    assert "expected a master key of 64 hex digits" in str(place.call("create").exception)


def test_a_root_from_elsewhere_is_brought_in_once(place):
    root = bytes(range(32))
    write_secret(place.folder / "root", root.hex())
    arguments = ("import", str(place.folder / "root"), "--region", "eu", "--purpose", "maintenance")
    assert place.call(*arguments).exit_code == 0
    store = Keyring(Config.model_validate(_raw(place))).store("eu")
    assert store.key("eu", "maintenance", "2026-q1") == epoch_key(root, "eu", "maintenance", "2026-q1")
    assert "there is a key already" in str(place.call(*arguments).exception)
    (place.folder / "root").chmod(0o644)
    assert "found 0644: others can reach it" in str(place.call(*arguments).exception)


def test_rotate_takes_the_epochs_of_the_pack_and_destroy_wants_a_word_and_an_age(place):
    place.made()
    which = ("--region", "eu", "--purpose", "maintenance")
    assert "epochs of eu are by quarter" in str(place.call("rotate", *which, "--from", "2099-01").exception)
    assert "has begun" in str(place.call("rotate", *which, "--from", "2026-q1").exception)
    assert place.call("rotate", *which, "--from", "2099-q1").exit_code == 0
    assert (place.keys / "eu.maintenance.2099-q1.key").exists()
    assert "not confirmed" in str(place.call("destroy", *which, "--before", "2099-q1").exception)
    assert "still taken" in str(place.call("destroy", *which, "--before", "2099-q1", "--yes").exception)


US, ROOT_USER, OTHER = 1000, 0, 1001
FILES = [  # mode and owner of the file, mode of its folder, named by the operator, accepted
    (0o600, US, 0o700, False, True),
    (0o400, US, 0o755, False, True),
    (0o440, US, 0o700, True, False),
    (0o600, OTHER, 0o700, True, False),
    (0o400, ROOT_USER, 0o700, False, False),
    (0o440, ROOT_USER, 0o550, True, True),  # a systemd credential, a Kubernetes secret with fsGroup
    (0o440, ROOT_USER, 0o1777, True, True),
    (0o444, ROOT_USER, 0o700, True, False),  # a Kubernetes secret with the default mode
    (0o460, ROOT_USER, 0o700, True, False),
    (0o600, US, 0o777, True, False),
    (0o600, US, 0o1777, False, False),
    (0o600, US, 0o1777, True, True),
    (0o600, US, 0o770, True, False),
]


@pytest.mark.parametrize(("mode", "owner", "folder", "mounted", "accepted"), FILES)
def test_who_may_reach_a_file_with_a_secret(mode, owner, folder, mounted, accepted):
    file = os.stat_result((stat.S_IFREG | mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))
    place = os.stat_result((stat.S_IFDIR | folder, 0, 0, 1, ROOT_USER, 0, 0, 0, 0, 0))
    assert (fault(file, place, US, mounted=mounted) is None) == accepted


def test_a_link_is_followed_where_a_service_manager_mounts_one_and_nowhere_else(tmp_path):
    write_secret(tmp_path / "data", "word")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert read_secret(tmp_path / "link", mounted=True) == "word"
    with pytest.raises(ConfigError, match="cannot open"):
        read_secret(tmp_path / "link")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x" * 20_000])
def test_a_file_that_is_no_line_of_text_is_refused(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="expected one short line of text"):
        read_secret(path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="expected a plain file"):  # and does not wait for a writer
        read_secret(tmp_path / "pipe")
