"""Configuration of what wraps the root keys: ``[keys]``, or ``[regions.<r>.wrapping]`` for one region.

Comes in: values of the configuration file. Goes out: frozen models. At most one way is configured; none means
the local stack's master key in the state folder. Secrets are named here by file or variable, never written.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TransitConfig(_Strict):
    """A transit engine of Vault or OpenBao."""

    address: str  # https://host:port; http only to this machine
    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    mount: Annotated[str, Field(pattern=r"^[A-Za-z0-9_./-]+$")] = "transit"
    namespace: str = ""
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 5.0  # for one attempt; there are three
    ca_file: Path | None = None  # default: the authorities that come with requests
    auth: Literal["token", "approle", "kubernetes"] = "token"
    auth_mount: str = ""  # default: the name of auth
    token_file: Path | None = None  # default: VAULT_TOKEN_FILE, then VAULT_TOKEN
    role_id_file: Path | None = None
    secret_id_file: Path | None = None
    role: str = ""
    jwt_file: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")

    @model_validator(mode="after")
    def _relations(self) -> Self:
        parts = urlsplit(self.address)
        if parts.scheme not in ("https", "http") or not parts.hostname or parts.username or parts.query:
            raise ValueError("transit address must be https://host:port")
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise ValueError("transit address must be https: http is for this machine alone")
        if self.auth == "approle" and not (self.role_id_file and self.secret_id_file):
            raise ValueError("transit auth approle needs role_id_file and secret_id_file")
        if self.auth == "kubernetes" and not self.role:
            raise ValueError("transit auth kubernetes needs role")
        return self


class KeysConfig(_Strict):
    """What wraps the roots; see docs/keys.md."""

    master_file: Path | None = None  # 64 hex digits, closed to others
    passphrase_file: Path | None = None
    passphrase_env: str = ""  # name of a variable
    transit: TransitConfig | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = (self.master_file, self.passphrase_file, self.passphrase_env, self.transit)
        if sum(bool(way) for way in ways) > 1:
            raise ValueError("keys takes one of master_file, passphrase_file, passphrase_env, transit")
        return self


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
