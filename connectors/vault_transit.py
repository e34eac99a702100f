"""Root keys wrapped by the transit engine of Vault or OpenBao, through ``hvac`` (the extra ``vault``).

Comes in: a root and its context, or a ciphertext and its context. Goes out: ``vault:v1:…``, or the root.
Invariants: the wrapping key never leaves the server; the context travels as associated data, so that a
ciphertext opens for its own root alone; TLS is verified (plain HTTP goes to this machine only), no redirect
and no proxy of the environment is followed; every call ends in time; an error tells what to do and quotes
neither token, root, ciphertext nor answer.

What the server says becomes: refused token or policy, missing mount or key, another ciphertext: ConfigError;
sealed, away, slow, overloaded: TransientError, after some attempts. Both stop the stage or its batch.
"""

from __future__ import annotations

import base64
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hvac
import requests
from hvac import exceptions

from pipeline.errors import ConfigError, PipelineError, TransientError
from pipeline.key_config import TransitConfig
from pipeline.policy.secret_files import read_secret

ATTEMPTS = 3
PAUSE_S = 0.2  # before the second attempt; doubled after it, with jitter
KEY_TYPES = ("aes256-gcm96", "aes128-gcm96", "chacha20-poly1305")  # those that take associated data
_CIPHERTEXT = re.compile(r"[a-z]+:v\d+:[A-Za-z0-9+/=]+")
_AWAY = (
    exceptions.VaultDown,
    exceptions.VaultNotInitialized,
    exceptions.BadGateway,
    exceptions.InternalServerError,
    exceptions.RateLimitExceeded,
    exceptions.UnexpectedError,
)

Call = Callable[[hvac.Client], Any]


class TransitWrapping:
    """See :class:`pipeline.policy.wrapping.Wrapping`. Logs in when first needed, and again when refused."""

    name = "transit"

    def __init__(self, config: TransitConfig) -> None:
        self._config = config
        self._client: hvac.Client | None = None
        self._usable = False  # the key was looked at, and can wrap

    def wrap(self, plain: bytes, context: bytes) -> str:
        """The ciphertext, as the server writes it. Raises ConfigError, TransientError; blocks."""
        self._demand_key()
        names = {"name": self._config.key, "mount_point": self._config.mount}
        answer = self._ask(
            "encrypt",
            lambda client: client.secrets.transit.encrypt_data(
                plaintext=_base64(plain), associated_data=_base64(context), **names
            ),
        )
        text = _field(answer, "ciphertext")
        if not isinstance(text, str) or not _CIPHERTEXT.fullmatch(text):
            raise self._failed(TransientError, "the answer has no ciphertext", "is this Vault or OpenBao?")
        return text

    def unwrap(self, text: str, context: bytes) -> bytes:
        """The root. Raises ConfigError, TransientError; blocks."""
        names = {"name": self._config.key, "mount_point": self._config.mount}
        answer = self._ask(
            "decrypt",
            lambda client: client.secrets.transit.decrypt_data(
                ciphertext=text, associated_data=_base64(context), **names
            ),
        )
        try:
            return base64.b64decode(_field(answer, "plaintext"), validate=True)
        except (TypeError, ValueError):
            pass
        raise self._failed(TransientError, "the answer has no plaintext", "is this Vault or OpenBao?")

    def _demand_key(self) -> None:
        """A token that may create keys makes a missing one by encrypting: so look whether it is there."""
        if self._usable:
            return
        names = {"name": self._config.key, "mount_point": self._config.mount}
        answer = self._ask("read key", lambda client: client.secrets.transit.read_key(**names))
        if _field(answer, "type") not in KEY_TYPES or _field(answer, "derived") is not False:
            raise self._failed(
                ConfigError, "the key cannot bind a root to its name",
                f"make one that is not derived, of type {' or '.join(KEY_TYPES)}",
            )  # fmt: skip
        if _field(answer, "exportable") is not False:
            raise self._failed(ConfigError, "the key can be exported", "make one that cannot")
        self._usable = True

    def _ask(self, operation: str, call: Call) -> Any:
        """The answer, after at most ATTEMPTS attempts of ``timeout_s`` each, and one more log-in."""
        pause_s, logged_in_again = PAUSE_S, False
        attempts = ATTEMPTS
        while True:
            attempts -= 1
            failure = None
            try:
                return self._bounded(call)
            except PipelineError as error:
                failure = error
            except Exception as error:  # hvac's, requests' and what they let through
                refused = isinstance(error, (exceptions.Forbidden, exceptions.Unauthorized))
                if refused and self._client is not None and not logged_in_again:
                    self._client, logged_in_again, attempts = None, True, attempts + 1
                    continue
                failure = self._translated(operation, error)
            # Raised out here, so that the error has no context: hvac's quote the address and the answer.
            if not isinstance(failure, TransientError) or attempts == 0:
                raise failure
            time.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s *= 2

    def _bounded(self, call: Call) -> Any:
        """Do it in a thread that is given up after ``timeout_s``: the timeouts of a socket start anew with
        each byte, and a server that drips them would hold the stage for ever."""
        answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def work() -> None:
            try:
                if self._client is None:
                    self._client = self._logged_in()
                answers.put((call(self._client), None))
            except BaseException as error:
                answers.put((None, error))

        threading.Thread(target=work, name="vault-transit", daemon=True).start()
        try:
            answer, error = answers.get(timeout=self._config.timeout_s)
        except queue.Empty:
            answer, error = None, requests.Timeout()
        if error is not None:
            raise error
        return answer

    def _logged_in(self) -> hvac.Client:
        config, session = self._config, requests.Session()
        mount = config.auth_mount or config.auth
        session.trust_env = False  # neither proxies, nor .netrc, nor another set of authorities
        session.verify = str(config.ca_file) if config.ca_file else True
        client = hvac.Client(
            url=config.address, token="", session=session, timeout=config.timeout_s, allow_redirects=False,
            namespace=config.namespace or None,
        )  # fmt: skip
        if config.auth == "approle":
            client.auth.approle.login(
                _secret(config.role_id_file),
                _secret(config.secret_id_file),
                mount_point=mount,
            )
        elif config.auth == "kubernetes":
            client.auth.kubernetes.login(config.role, _jwt(config.jwt_file), mount_point=mount)
        else:
            client.token = _token(config)
        return client

    def _translated(self, operation: str, error: Exception) -> PipelineError:
        """One of ours for one of theirs, by its type alone."""
        match error:
            case exceptions.Forbidden() | exceptions.Unauthorized():
                return self._failed(
                    ConfigError, f"{operation}: token or policy refused",
                    "renew the token; docs/keys.md has the policy it needs",
                )  # fmt: skip
            case exceptions.InvalidRequest():
                return self._failed(
                    ConfigError, f"{operation}: request refused (400)",
                    "no such key, or the text is not one of this key for this root: restore the file",
                )  # fmt: skip
            case exceptions.InvalidPath() | exceptions.UnsupportedOperation():
                return self._failed(
                    ConfigError, f"{operation}: no such mount or key", "see [keys] transit mount and key"
                )
            case exceptions.VaultDown():
                return self._failed(TransientError, f"{operation}: sealed or on standby", "unseal it")
            case requests.exceptions.SSLError():
                return self._failed(
                    ConfigError, f"{operation}: its certificate is not trusted", "see [keys] transit ca_file"
                )
            case requests.Timeout():
                limit = f"{self._config.timeout_s:g} s"
                return self._failed(
                    TransientError, f"{operation}: no answer within {limit}", "see that it is well"
                )
            case requests.RequestException():
                return self._failed(TransientError, f"{operation}: cannot be reached", "see that it is up")
            case _ if isinstance(error, _AWAY):
                kind = type(error).__name__
                return self._failed(TransientError, f"{operation}: failed ({kind})", "see its log")
        return self._failed(TransientError, f"{operation}: failed ({type(error).__name__})", "see its log")

    def _failed(self, kind: type[PipelineError], problem: str, remedy: str) -> PipelineError:
        return kind(problem, operation="transit", place=self._config.address, remedy=remedy)

    def __repr__(self) -> str:
        return f"TransitWrapping({self._config.address!r}, {self._config.key!r})"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _field(answer: Any, name: str) -> Any:
    """A field of the answer's data; None when the answer is not of that form (a redirect, another server)."""
    data = answer.get("data") if isinstance(answer, dict) else None
    return data.get(name) if isinstance(data, dict) else None


def _token(config: TransitConfig) -> str:
    file = config.token_file or os.environ.get("VAULT_TOKEN_FILE")
    token = _secret(Path(file)) if file else os.environ.get("VAULT_TOKEN", "").strip()
    if not token:
        raise ConfigError(
            "no token", operation="transit", place=config.address,
            remedy="name a file in [keys] transit token_file or VAULT_TOKEN_FILE, or set VAULT_TOKEN",
        )  # fmt: skip
    return token


def _secret(path: Path | None) -> str:
    assert path is not None, "the configuration was checked"
    return read_secret(path, mounted=True)


def _jwt(path: Path) -> str:
    """The service account's token, which Kubernetes mounts with modes of its own choice."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        pass
    raise ConfigError(
        "cannot read the service account's token", operation="transit", place=str(path),
        remedy="mount it, see [keys] transit jwt_file",
    )  # fmt: skip
