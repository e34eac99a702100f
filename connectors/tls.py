"""TLS of the edge agent's doors: the files of a configuration as what each door's library takes.

Comes in: :class:`ListenConfig`. Goes out: an SSL context or gRPC credentials, and the names on a peer's
certificate. Invariants: TLS 1.2 or later; with ``client_ca`` a client without a valid certificate gets no
connection; a key that everybody on the machine can read is refused.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.listen_config import ListenConfig


def server_context(listen: ListenConfig) -> ssl.SSLContext | None:
    """The context of a server, None without TLS. Raises ConfigError when a file is unfit."""
    if listen.certificate is None or listen.key is None:
        return None
    _demand_private(listen.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(listen.certificate, listen.key, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise _unfit("certificate and key", f"{listen.certificate}, {listen.key}", error) from None
    if listen.client_ca is not None:
        try:
            context.load_verify_locations(listen.client_ca)
        except (OSError, ValueError) as error:
            raise _unfit("client_ca", str(listen.client_ca), error) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def key_pair(listen: ListenConfig) -> tuple[bytes, bytes, bytes | None] | None:
    """Key, certificate chain and client authority as PEM, checked; None without TLS. Raises ConfigError."""
    if server_context(listen) is None or listen.certificate is None or listen.key is None:
        return None
    authority = listen.client_ca.read_bytes() if listen.client_ca else None
    return listen.key.read_bytes(), listen.certificate.read_bytes(), authority


def names_of(peer: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The names on a certificate as ``SSLSocket.getpeercert`` gives it.

    DNS and URI names; the common name only where there are none (RFC 6125, 6.4.4), so that an authority
    which checks the former alone is enough.
    """
    if not peer:
        return ()
    alternative = tuple(name for kind, name in peer.get("subjectAltName", ()) if kind in ("DNS", "URI"))
    common = (value for part in peer.get("subject", ()) for key, value in part if key == "commonName")
    return alternative or tuple(common)


def names_of_auth(context: Mapping[str, Sequence[bytes]]) -> tuple[str, ...]:
    """The same from gRPC's ``auth_context`` (names: grpc_security_constants.h)."""
    kinds = ("peer_dns", "peer_uri")
    alternative = tuple(_text(name) for kind in kinds for name in context.get(kind, ()))
    return alternative or tuple(_text(name) for name in context.get("x509_common_name", ()))


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _demand_private(key: Path) -> None:
    try:
        mode = key.stat().st_mode
    except OSError as error:
        raise _unfit("key", str(key), error) from None
    if mode & 0o007:
        raise ConfigError(
            "the key is open to everybody on this machine", operation="tls", place=str(key),
            remedy=f"chmod o= {key}",
        )  # fmt: skip


def _no_password() -> str:
    raise ValueError("the key is encrypted, and an agent that starts by itself cannot be asked")


def _unfit(what: str, place: str, error: Exception) -> ConfigError:
    problem = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return ConfigError(f"{what}: {problem}", operation="tls", place=place, remedy="expected PEM that fits")
