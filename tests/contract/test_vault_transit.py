"""The transit adapter against everything that can go wrong without a server of the kind: real sockets only.

What a server that works answers, and what it refuses, is in ``transit_server.py`` (``make keys-test``).
"""

from __future__ import annotations

import base64
import json
import logging
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import ValidationError

from connectors import vault_transit
from connectors.vault_transit import ATTEMPTS, TransitWrapping
from pipeline.errors import ConfigError, TransientError
from pipeline.key_config import KeysConfig, TransitConfig
from pipeline.policy import FileKeyStore
from pipeline.policy.root_files import Root, RootName
from pipeline.policy.secret_files import write_secret

TOKEN = "hvs.a-token-that-nobody-may-see"
TEXT = "vault:v1:AAECAwQFBgcICQ=="
PLAIN = bytes(range(32))


class Answers(ThreadingHTTPServer):
    """A server that gives the answers it was told, one after the other, the last one for ever."""

    daemon_threads = True

    def __init__(self, *answers: tuple[int, bytes]) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Answers

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = self.server.requests
        asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        status, content = self.server.answers[min(len(asked), len(self.server.answers)) - 1]
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", content.decode())
            content = b""
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering(*answers: tuple[int, bytes]) -> Iterator[Answers]:
    server = Answers(*answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VAULT_TOKEN", "VAULT_TOKEN_FILE", "VAULT_ADDR", "VAULT_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(vault_transit, "PAUSE_S", 0.01)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    write_secret(path, TOKEN)
    return path


def wrapping(address: str, token_file: Path | None, **options: object) -> TransitWrapping:
    values = {"address": address, "key": "roots", "token_file": token_file, "timeout_s": 5.0, **options}
    return TransitWrapping(TransitConfig.model_validate(values))


def said(status: int, *errors: str) -> tuple[int, bytes]:
    return status, json.dumps({"errors": list(errors)}).encode()


GOOD = (200, json.dumps({"data": {"plaintext": base64.b64encode(PLAIN).decode()}}).encode())
REFUSALS = [
    (said(403, "permission denied"), ConfigError, "token or policy refused"),
    (said(400, "cipher: message authentication failed"), ConfigError, r"request refused \(400\)"),
    (said(400, "encryption key not found"), ConfigError, r"request refused \(400\)"),
    (said(404, "no handler for route"), ConfigError, "no such mount or key"),
    (said(503, "Vault is sealed"), TransientError, "sealed or on standby"),
    (said(500, f"internal {TOKEN}"), TransientError, r"failed \(InternalServerError\)"),
    (said(501, "not initialized"), TransientError, r"failed \(VaultNotInitialized\)"),
    (said(502, "bad gateway"), TransientError, "failed"),
    (said(429, "slow down"), TransientError, "failed"),
    (said(418, "teapot"), TransientError, "failed"),
    ((503, b"<html>not JSON</html>"), TransientError, "sealed or on standby"),
    ((200, b"<html>not JSON</html>"), TransientError, "no plaintext"),
    ((200, b"[1]"), TransientError, "no plaintext"),
    ((200, b'{"data": {"plaintext": "%%%"}}'), TransientError, "no plaintext"),
    ((200, b'{"data": {"plaintext": 7}}'), TransientError, "no plaintext"),
    ((204, b""), TransientError, "no plaintext"),
]


@pytest.mark.parametrize(("answer", "kind", "problem"), REFUSALS)
def test_every_refusal_becomes_an_error_that_says_what_to_do_and_shows_nothing(
    token_file, caplog, answer, kind, problem
):
    caplog.set_level(logging.DEBUG)
    with answering(answer) as server, pytest.raises((ConfigError, TransientError), match=problem) as caught:
        wrapping(server.address, token_file).unwrap(TEXT, b"context of the root")
    assert type(caught.value) is kind
    assert caught.value.remedy
    assert caught.value.__context__ is None
    shown = caplog.text + "".join(traceback.format_exception(caught.value))
    for secret in (TOKEN, TEXT, base64.b64encode(b"context of the root").decode(), answer[1].decode()[2:]):
        assert not secret or secret not in shown
    assert len(server.requests) <= ATTEMPTS + 1


def test_an_outage_that_passes_is_waited_for(token_file):
    with answering(said(503, "sealed"), said(503, "sealed"), GOOD) as server:
        assert wrapping(server.address, token_file).unwrap(TEXT, b"") == PLAIN
    assert len(server.requests) == ATTEMPTS


def test_an_outage_that_stays_is_given_up_after_some_attempts(token_file):
    with answering(said(503, "sealed")) as server:
        with pytest.raises(TransientError):
            wrapping(server.address, token_file).unwrap(TEXT, b"")
        assert len(server.requests) == ATTEMPTS


def test_the_request_carries_token_ciphertext_and_context_and_nothing_of_the_surroundings(
    token_file, monkeypatch, tmp_path
):
    with answering(GOOD) as server, answering(said(500)) as elsewhere:
        monkeypatch.setenv("HTTP_PROXY", elsewhere.address)
        monkeypatch.setenv("http_proxy", elsewhere.address)
        monkeypatch.setenv("VAULT_ADDR", elsewhere.address)
        assert wrapping(server.address, token_file, mount="other").unwrap(TEXT, b"which root") == PLAIN
        assert elsewhere.requests == []
    ((path, headers, body),) = server.requests
    assert path == "/v1/other/decrypt/roots"
    assert headers["x-vault-token"] == TOKEN
    assert json.loads(body) == {
        "ciphertext": TEXT, "associated_data": base64.b64encode(b"which root").decode(),
    }  # fmt: skip


def test_a_redirect_is_not_followed_and_the_token_goes_nowhere_else(token_file):
    with answering(GOOD) as elsewhere, answering((307, elsewhere.address.encode())) as server:
        with pytest.raises(TransientError):
            wrapping(server.address, token_file).unwrap(TEXT, b"")
        assert elsewhere.requests == []


def test_a_token_that_was_renewed_in_its_file_is_taken_up(token_file):
    with answering(GOOD, said(403, "permission denied"), GOOD) as server:
        transit = wrapping(server.address, token_file)
        transit.unwrap(TEXT, b"")
        token_file.write_text("hvs.the-next-one\n")
        assert transit.unwrap(TEXT, b"") == PLAIN
    assert [headers["x-vault-token"] for _, headers, _ in server.requests] == [
        TOKEN,
        TOKEN,
        "hvs.the-next-one",
    ]


def test_nothing_listens(token_file):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(TransientError, match="cannot be reached"):
            wrapping(address, token_file).unwrap(TEXT, b"")


@pytest.mark.parametrize("drips", [False, True])
def test_a_server_that_is_silent_or_drips_is_given_up_in_time(token_file, drips):
    end = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while not end.wait(0.02):
                try:
                    connection.sendall(b"X-A: b\r\n")
                except OSError:
                    return

    def serve(listener: socket.socket) -> None:
        while not end.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=drip, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        if drips:
            threading.Thread(target=serve, args=(listener,), daemon=True).start()
        started = time.monotonic()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(TransientError, match=r"no answer within 0\.2 s"):
            wrapping(address, token_file, timeout_s=0.2).unwrap(TEXT, b"")
        assert time.monotonic() - started < ATTEMPTS * 0.2 + 2
        end.set()


def test_without_a_token_nothing_is_sent(tmp_path):
    with answering(GOOD) as server:
        with pytest.raises(ConfigError, match=r"no token.*VAULT_TOKEN_FILE"):
            wrapping(server.address, None).unwrap(TEXT, b"")
        with pytest.raises(ConfigError, match="no file here"):
            wrapping(server.address, tmp_path / "missing").unwrap(TEXT, b"")
        assert server.requests == []


def test_a_token_that_others_can_read_is_refused(token_file):
    token_file.chmod(0o644)
    with answering(GOOD) as server:
        with pytest.raises(ConfigError, match="found 0644: others can reach it"):
            wrapping(server.address, token_file).unwrap(TEXT, b"")
        assert server.requests == []


def test_a_token_comes_from_a_file_before_the_variable(token_file, monkeypatch):
    monkeypatch.setenv("VAULT_TOKEN", "hvs.variable")
    with answering(GOOD) as server:
        wrapping(server.address, None).unwrap(TEXT, b"")
        monkeypatch.setenv("VAULT_TOKEN_FILE", str(token_file))
        wrapping(server.address, None).unwrap(TEXT, b"")
    assert [headers["x-vault-token"] for _, headers, _ in server.requests] == ["hvs.variable", TOKEN]


@pytest.mark.parametrize(
    "data", [{"type": "rsa-2048"}, {"derived": True}, {"exportable": True}, {"type": None}, {"derived": None}]
)
def test_a_key_that_cannot_bind_a_root_to_its_name_wraps_nothing(token_file, data):
    whole = {"type": "aes256-gcm96", "derived": False, "exportable": False, **data}
    with answering((200, json.dumps({"data": whole}).encode())) as server:
        with pytest.raises(ConfigError, match=r"cannot bind|can be exported"):
            wrapping(server.address, token_file).wrap(PLAIN, b"")
        assert [path for path, _, _ in server.requests] == ["/v1/transit/keys/roots"]


@pytest.mark.parametrize("answer", [said(403), said(503), (200, b"{}"), GOOD])
def test_a_key_store_on_it_gives_a_key_or_an_error_and_never_anything_else(token_file, tmp_path, answer):
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    write_secret(folder / "eu.care.key", Root(RootName("eu", "care"), "transit", "", TEXT).line())
    with answering(answer) as server:
        keys = FileKeyStore(folder, wrapping(server.address, token_file))
        if answer is GOOD:
            assert len(keys.key("eu", "care", "2026-q1")) == 32
            keys.key("eu", "care", "2026-q2")
            assert len(server.requests) == 1  # unwrapped once, then held
        else:
            with pytest.raises((ConfigError, TransientError), match=r"eu\.care\.key"):
                keys.key("eu", "care", "2026-q1")


@pytest.mark.parametrize(
    "values",
    [
        {"address": "http://vault.example:8200"},
        {"address": "ftp://127.0.0.1"},
        {"address": "127.0.0.1:8200"},
        {"address": "https://user:word@vault.example"},
        {"key": "../sys/seal"},
        {"key": ""},
        {"auth": "approle"},
        {"auth": "kubernetes"},
        {"timeout_s": 0},
        {"tokens": "x"},
    ],
)
def test_a_configuration_that_would_not_be_safe_is_refused(values):
    with pytest.raises(ValidationError):
        TransitConfig.model_validate({"address": "https://vault.example:8200", "key": "roots", **values})


def test_one_way_of_wrapping_and_no_second():
    TransitConfig(address="http://[::1]:8200", key="roots")
    with pytest.raises(ValidationError, match="one of master_file, passphrase_file, passphrase_env, transit"):
        KeysConfig(master_file=Path("a"), passphrase_env="B")
