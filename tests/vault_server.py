"""A real Vault or OpenBao for the tests of the transit adapter: found, or built once, then run and stopped.

In this order: ``VAULT_BINARY``, ``bao`` or ``vault`` on PATH, ``.pipeline/tools/vault``; else it is built
there with Go from the module proxy (some minutes on two cores, 270 MB) when ``PIPELINE_BUILD_TOOLS=1``, as
``make keys-test`` says. Built is Vault 1.14.2, of the last minor version under the Mozilla licence, from
which OpenBao was forked; OpenBao's own module cannot be had from the public proxy. Vault's repository builds
with its own copy of its ``sdk`` module, which is not on the proxy either; the published 0.9.2 compiles, and
differs at run time by a self-check of path definitions that one path of this Vault fails: it is taken out.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import hvac
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.shared_data import PROJECT
from tests.waiting import wait_for

TOOL = PROJECT / ".pipeline" / "tools" / "vault"
START_S, BUILD_S = 30.0, 1800.0
GO_MOD = """\
module server

go 1.20

require (
	github.com/hashicorp/vault v1.14.2
	github.com/hashicorp/vault/sdk v0.9.2
)
"""
SDK = "github.com/hashicorp/vault/sdk"
SELF_CHECK = "if p.ExistenceCheck == nil {"
MAIN = """\
package main

import (
	"os"

	"github.com/hashicorp/vault/command"
)

func main() { os.Exit(command.Run(os.Args[1:])) }
"""
SETTINGS = """\
disable_mlock = true
storage "file" {{ path = "{folder}/data" }}
listener "tcp" {{
  address = "127.0.0.1:{port}"
  tls_cert_file = "{folder}/server.pem"
  tls_key_file = "{folder}/server.key"
}}
"""


def binary() -> Path:
    """The server's program; the test fails, saying what to do, when there is none."""
    named = os.environ.get("VAULT_BINARY") or shutil.which("bao") or shutil.which("vault")
    if named:
        return Path(named)
    if not TOOL.exists():
        assert os.environ.get("PIPELINE_BUILD_TOOLS") == "1", (
            "no bao or vault on PATH: run `make keys-test`, which builds one, or set VAULT_BINARY"
        )
        _build()
    return TOOL


def _build() -> None:
    go = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    assert go is not None, "no bao, vault or go on PATH: install one of them"
    with TemporaryDirectory() as folder:
        (Path(folder) / "main.go").write_text(MAIN)
        show = [go, "mod", "download", "-json", f"{SDK}@v0.9.2"]
        told = subprocess.run(show, cwd=folder, check=True, capture_output=True, timeout=BUILD_S).stdout
        shutil.copytree(json.loads(told)["Dir"], Path(folder) / "sdk", copy_function=shutil.copyfile)
        (Path(folder) / "sdk" / "framework").chmod(0o755)
        backend = Path(folder) / "sdk" / "framework" / "backend.go"
        text = backend.read_text()
        assert text.count(SELF_CHECK) == 1
        backend.write_text(text.replace(SELF_CHECK, "if false {"))
        (Path(folder) / "go.mod").write_text(GO_MOD + f"\nreplace {SDK} => ./sdk\n")
        target = Path(folder) / "vault"
        command = [go, "build", "-mod=mod", "-trimpath", "-ldflags=-s -w", "-o", str(target), "."]
        subprocess.run(command, cwd=folder, check=True, timeout=BUILD_S)
        TOOL.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(target, TOOL)


@dataclass
class VaultServer:
    """A server with TLS on this machine, of one key share; ``with`` leaves nothing running."""

    folder: Path

    def __enter__(self) -> VaultServer:
        program = binary()
        self.ca_file = self.folder / "ca.pem"
        _certify(self.folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"https://127.0.0.1:{port}"
        settings = self.folder / "server.hcl"
        settings.write_text(SETTINGS.format(folder=self.folder, port=port))
        self.log = (self.folder / "server.log").open("wb")
        self.process = subprocess.Popen(
            [str(program), "server", f"-config={settings}"],
            stdout=self.log, stderr=subprocess.STDOUT, cwd=self.folder, env={"HOME": str(self.folder)},
        )  # fmt: skip
        try:
            wait_for(self._answers, START_S)
            made = self.client("").sys.initialize(secret_shares=1, secret_threshold=1)
            self.unseal_key, self.root_token = made["keys"][0], made["root_token"]
            self.unseal()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        self.log.close()

    def client(self, token: str) -> hvac.Client:
        """A client with this token."""
        return hvac.Client(url=self.address, token=token, verify=str(self.ca_file), timeout=10)

    @property
    def root(self) -> hvac.Client:
        """A client that may do everything."""
        return self.client(self.root_token)

    def unseal(self) -> None:
        """Make it serve."""
        self.client("").sys.submit_unseal_key(self.unseal_key)
        wait_for(lambda: self.client("").sys.is_initialized() and not self.client("").sys.is_sealed())

    def halt(self) -> None:
        """SIGSTOP: it takes connections and answers nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def token(self, name: str, rules: str) -> str:
        """A token that may do what these rules say, and nothing else."""
        self.root.sys.create_or_update_policy(name, rules)
        made = self.root.auth.token.create(policies=[name], no_default_policy=True, no_parent=True)
        return str(made["auth"]["client_token"])

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
        try:
            self.client("").sys.read_seal_status()
        except requests.RequestException:
            return False
        return True


def _certify(folder: Path) -> None:
    """An authority and a certificate of it for 127.0.0.1."""
    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a test")])
    certificate = (
        _certificate(issuer, issuer, authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority, hashes.SHA256())
    )
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server of a test")])
    signed = (
        _certificate(subject, issuer, server)
        .add_extension(address, critical=False)
        .sign(authority, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "server.pem").write_bytes(signed.public_bytes(pem))
    (folder / "server.key").write_bytes(
        server.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=2))
    )
