"""The transit adapter on a real Vault or OpenBao; run by ``make keys-test``, not by ``make test``."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from connectors import vault_transit
from connectors.vault_transit import ATTEMPTS, TransitWrapping
from pipeline.cli import app
from pipeline.errors import ConfigError, TransientError
from pipeline.key_config import TransitConfig
from pipeline.policy import FileKeyStore, create_keys
from pipeline.policy.derivation import epoch_key
from pipeline.policy.key_changes import rewrap_keys
from pipeline.policy.root_files import RootName, read_root, write_root
from pipeline.policy.secret_files import write_secret
from pipeline.policy.wrapping import LocalWrapping
from tests.vault_server import VaultServer

ROOT, LOCAL = bytes(range(32)), LocalWrapping(b"\1" * 32)
CARE = RootName("eu", "care")
NOTHING = 'path "nothing" { capabilities = ["deny"] }\n'
STAGE = 'path "transit/decrypt/eu" { capabilities = ["update"] }\n'
KEEPER = STAGE + (
    'path "transit/encrypt/eu" { capabilities = ["update"] }\n'
    'path "transit/keys/eu" { capabilities = ["read"] }\n'
)


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VaultServer]:
    with VaultServer(tmp_path_factory.mktemp("vault")) as server:
        server.root.sys.enable_secrets_engine("transit")
        server.root.secrets.transit.create_key("eu")
        yield server


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VAULT_TOKEN", "VAULT_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(vault_transit, "PAUSE_S", 0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "keys").mkdir(mode=0o700)
    return tmp_path / "keys"


def config(vault: VaultServer, token: str, tmp_path: Path, **options: object) -> TransitConfig:
    file = tmp_path / f"token-{abs(hash(token))}"
    write_secret(file, token)
    values = {"address": vault.address, "key": "eu", "ca_file": vault.ca_file, "token_file": file, **options}
    return TransitConfig.model_validate(values)


def keeper(vault: VaultServer, tmp_path: Path, **options: object) -> TransitWrapping:
    return TransitWrapping(config(vault, vault.token("keeper", KEEPER), tmp_path, **options))


def stage(vault: VaultServer, tmp_path: Path, **options: object) -> TransitWrapping:
    return TransitWrapping(config(vault, vault.token("stage", STAGE), tmp_path, **options))


def test_a_stage_that_may_only_decrypt_gets_the_keys_of_roots_it_cannot_make(vault, folder, tmp_path):
    write_root(folder, CARE, ROOT, keeper(vault, tmp_path))
    assert (folder / "eu.care.key").read_text().startswith("root-key v1 transit - vault:v1:")
    assert ROOT.hex() not in (folder / "eu.care.key").read_text()
    transit = stage(vault, tmp_path)
    found = FileKeyStore(folder, transit).key("eu", "care", "2026-q1")
    assert found == epoch_key(ROOT, "eu", "care", "2026-q1")
    with pytest.raises(ConfigError, match="token or policy refused"):
        create_keys(folder, "eu", ["service"], transit)
    assert [path.name for path in folder.iterdir()] == ["eu.care.key"]


def test_a_root_moved_to_another_name_does_not_open(vault, folder, tmp_path):
    write_root(folder, CARE, ROOT, keeper(vault, tmp_path))
    (folder / "eu.care.key").rename(folder / "br.care.key")
    with pytest.raises(ConfigError, match=r"br\.care\.key: decrypt: request refused"):
        FileKeyStore(folder, stage(vault, tmp_path)).key("br", "care", "2026-q1")


def test_roots_move_to_the_server_and_back_and_to_a_new_version_of_its_key(vault, folder, tmp_path):
    create_keys(folder, "eu", ["care", "service"], LOCAL)
    before = FileKeyStore(folder, LOCAL).key("eu", "care", "2026-q1")
    transit = keeper(vault, tmp_path)
    assert all(change.changed for change in rewrap_keys(folder, LOCAL, transit))
    assert not any(change.changed for change in rewrap_keys(folder, LOCAL, transit))
    old = read_root(folder, CARE)
    vault.root.secrets.transit.rotate_key("eu")
    assert all(change.changed for change in rewrap_keys(folder, transit, transit))
    new = read_root(folder, CARE)
    versions = int(old.text.split(":")[1][1:]), int(new.text.split(":")[1][1:])
    assert versions[1] == versions[0] + 1
    vault.root.secrets.transit.update_key_configuration("eu", min_decryption_version=versions[1])
    with pytest.raises(ConfigError, match="request refused"):
        transit.unwrap(old.text, old.context())  # what a backup of the folder holds opens no longer
    assert FileKeyStore(folder, stage(vault, tmp_path)).key("eu", "care", "2026-q1") == before
    list(rewrap_keys(folder, transit, LOCAL))
    assert FileKeyStore(folder, LOCAL).key("eu", "care", "2026-q1") == before


def test_a_key_that_is_missing_is_not_made_even_by_who_might(vault, tmp_path):
    for name in ("missing", "eu-too"):
        transit = TransitWrapping(config(vault, vault.root_token, tmp_path, key=name))
        with pytest.raises(ConfigError, match="no such mount or key"):
            transit.wrap(ROOT, b"")
    assert vault.root.secrets.transit.list_keys()["data"]["keys"] == ["eu"]
    with pytest.raises(ConfigError, match="request refused"):
        transit.unwrap("vault:v1:AAAA", b"")
    with pytest.raises(ConfigError, match="no such mount or key"):
        TransitWrapping(config(vault, vault.root_token, tmp_path, mount="else")).wrap(ROOT, b"")


@pytest.mark.parametrize(
    "options",
    [{"exportable": True}, {"derived": True}, {"key_type": "rsa-2048"}],
    ids=lambda o: next(iter(o)),
)
def test_a_key_of_the_wrong_kind_wraps_nothing(vault, tmp_path, options):
    vault.root.secrets.transit.create_key("wrong", **options)
    try:
        with pytest.raises(ConfigError, match=r"cannot bind|can be exported"):
            TransitWrapping(config(vault, vault.root_token, tmp_path, key="wrong")).wrap(ROOT, b"")
    finally:
        vault.root.secrets.transit.update_key_configuration("wrong", deletion_allowed=True)
        vault.root.secrets.transit.delete_key("wrong")


def test_wrong_revoked_and_renewed_tokens(vault, folder, tmp_path):
    write_root(folder, CARE, ROOT, keeper(vault, tmp_path))
    text, context = read_root(folder, CARE).text, read_root(folder, CARE).context()
    with pytest.raises(ConfigError, match="token or policy refused"):
        TransitWrapping(config(vault, "hvs.made-up", tmp_path)).unwrap(text, context)
    with pytest.raises(ConfigError, match="token or policy refused"):
        TransitWrapping(
            config(vault, vault.token("nothing", 'path "nothing" { capabilities = ["deny"] }'), tmp_path)
        ).unwrap(text, context)
    token = vault.token("stage", STAGE)
    settings = config(vault, token, tmp_path)
    transit = TransitWrapping(settings)
    assert transit.unwrap(text, context) == ROOT
    vault.root.auth.token.revoke(token)
    with pytest.raises(ConfigError, match="token or policy refused"):
        transit.unwrap(text, context)
    assert settings.token_file is not None
    settings.token_file.write_text(vault.token("stage", STAGE))
    assert transit.unwrap(text, context) == ROOT


def test_a_role_logs_in_by_itself_and_again_when_its_token_ended(vault, folder, tmp_path):
    write_root(folder, CARE, ROOT, keeper(vault, tmp_path))
    root = vault.root
    root.sys.create_or_update_policy("stage", STAGE)
    root.sys.enable_auth_method("approle")
    root.auth.approle.create_or_update_approle("eu", token_policies=["stage"])
    write_secret(tmp_path / "role", root.auth.approle.read_role_id("eu")["data"]["role_id"])
    write_secret(tmp_path / "secret", root.auth.approle.generate_secret_id("eu")["data"]["secret_id"])
    options = {"auth": "approle", "role_id_file": tmp_path / "role", "secret_id_file": tmp_path / "secret"}
    transit = TransitWrapping(config(vault, "unused", tmp_path, **options))
    assert FileKeyStore(folder, transit).key("eu", "care", "2026-q1")
    assert transit._client is not None
    root.auth.token.revoke(transit._client.token)
    assert FileKeyStore(folder, transit).key("eu", "care", "2026-q1")


def test_sealed_slow_and_untrusted(vault, folder, tmp_path):
    write_root(folder, CARE, ROOT, keeper(vault, tmp_path))
    transit = stage(vault, tmp_path, timeout_s=1.0)
    running = FileKeyStore(folder, transit)
    key = running.key("eu", "care", "2026-q1")
    vault.root.sys.seal()
    try:
        with pytest.raises(TransientError, match="sealed or on standby"):
            FileKeyStore(folder, transit).key("eu", "care", "2026-q1")
        assert running.key("eu", "care", "2026-q1") == key  # a stage that has its roots goes on
    finally:
        vault.unseal()
    vault.halt()
    try:
        started = time.monotonic()
        with pytest.raises(TransientError, match="no answer within 1 s"):
            FileKeyStore(folder, transit).key("eu", "care", "2026-q1")
        assert time.monotonic() - started < ATTEMPTS * 1.0 + 2
    finally:
        vault.go_on()
    assert FileKeyStore(folder, transit).key("eu", "care", "2026-q1") == key
    with pytest.raises(ConfigError, match="certificate is not trusted"):
        FileKeyStore(folder, stage(vault, tmp_path, ca_file=None)).key("eu", "care", "2026-q1")


def test_nothing_secret_is_logged(vault, folder, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    token = vault.token("keeper", KEEPER)
    caplog.clear()
    transit = TransitWrapping(config(vault, token, tmp_path))
    write_root(folder, CARE, ROOT, transit)
    FileKeyStore(folder, transit).key("eu", "care", "2026-q1")
    with pytest.raises(ConfigError):
        transit.unwrap("vault:v1:AAAA", b"")
    assert "POST /v1/transit/decrypt/eu" in caplog.text  # the client does log
    for secret in (token, ROOT.hex(), "AAECAwQF", read_root(folder, CARE).text):
        assert secret not in caplog.text


def test_the_commands_make_roots_on_the_server_and_a_stage_without_it_does_not_start(vault, tmp_path):
    settings = config(vault, vault.token("keeper", KEEPER), tmp_path)
    file = tmp_path / "pipeline.toml"
    file.write_text(
        f'state = "{tmp_path}/state"\n[regions.eu]\n'
        f'[keys.transit]\naddress = "{settings.address}"\nkey = "eu"\n'
        f'ca_file = "{settings.ca_file}"\ntoken_file = "{settings.token_file}"\n'
    )
    made = CliRunner().invoke(app, ["--config", str(file), "keys", "create"])
    assert made.exit_code == 0, made.output
    listed = CliRunner().invoke(app, ["--config", str(file), "--json", "keys", "list", "--check"])
    assert listed.exit_code == 0, listed.output
    assert '"wrapping": "transit"' in listed.output
    assert not (tmp_path / "state" / "secrets").exists()
    vault.root.sys.seal()
    try:
        started = CliRunner().invoke(app, ["--config", str(file), "process", "--region", "eu"])
    finally:
        vault.unseal()
    assert isinstance(started.exception, TransientError)
    assert "sealed or on standby" in str(started.exception)
