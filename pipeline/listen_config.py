"""Configuration of the edge agent's doors: ``[edge.listen]`` and ``[edge.senders.<class>]``.

Comes in: values of the configuration file. Goes out: frozen models. Invariant: a door that other machines can
reach has TLS and knows who may send; without configuration the doors are open to this machine alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

CERTIFICATE = "{certificate}"  # in a source: the name on the sender's certificate
_Token = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Name = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ListenConfig(_Strict):
    """Where the doors listen, and their TLS. With ``client_ca`` every client shows a certificate of it."""

    host: _Name = "127.0.0.1"
    certificate: Path | None = None  # PEM, the chain
    key: Path | None = None
    client_ca: Path | None = None
    connections_max: Annotated[int, Field(ge=1, le=65_536)] = 512  # per door; more wait unaccepted

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: give both or neither")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca needs TLS: give certificate and key")
        return self

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the doors."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


class SenderClass(_Strict):
    """One class of devices: how it is known, and what it may emit.

    Named are names or patterns (``*``, ``?``, ``[a-z]``). A class that names tokens and certificates demands
    both. ``{certificate}`` in a source stands for the name on the sender's certificate. ``jurisdictions``
    empty: every one. ``sources`` or ``events`` empty: nothing, for one who only reads ``/metrics``.
    """

    token_sha256: tuple[_Token, ...] = ()  # of `pipeline edge token`; two while one is being replaced
    certificates: tuple[_Name, ...] = ()  # DNS or URI name, or the common name where there is none
    sources: tuple[_Name, ...] = ()
    events: tuple[_Name, ...] = ()
    jurisdictions: tuple[_Name, ...] = ()

    @model_validator(mode="after")
    def _known_by_something(self) -> Self:
        if not self.token_sha256 and not self.certificates:
            raise ValueError("give token_sha256 or certificates: how is the class known?")
        if not self.certificates and any(CERTIFICATE in source for source in self.sources):
            raise ValueError(f"a source with {CERTIFICATE} needs certificates")
        return self


def demand_guarded(listen: ListenConfig, senders: Mapping[str, SenderClass]) -> None:
    """Raise ValueError unless the doors are closed to other machines, or ask who comes."""
    if any(one.certificates for one in senders.values()) and listen.client_ca is None:
        raise ValueError("senders name certificates: listen.client_ca says which ones are valid")
    seen: set[str] = set()
    for one in senders.values():
        if not one.certificates and seen & set(one.token_sha256):
            raise ValueError("senders: one token is in two classes")
        seen |= set(one.token_sha256)
    if listen.is_local:
        return
    if listen.certificate is None:
        raise ValueError("listen.host is beyond this machine: give listen.certificate and listen.key")
    if not senders:
        raise ValueError("listen.host is beyond this machine: say in senders who may send")
