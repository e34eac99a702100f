"""Terms: what one leg runs under, from the packs at its two ends.

Comes in: the pack of a region (a landing), or those of an origin and a destination (a border). Goes out:
:class:`Terms`, all that the type check and the plan need to know of packs. Invariants: without terms nothing
flows; what may be held after a border is what the origin lets out *and* the destination may hold; a transfer
whose basis has ended runs no more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date

from pipeline.errors import BasisEnded, ConfigError
from pipeline.policy.filters import Filter
from pipeline.policy.hierarchies import Hierarchy
from pipeline.policy.pack import Pack, Purpose
from pipeline.policy.pseudonyms import EpochKind
from pipeline.policy.rules import Consent, Crowd, EventRules, LegRules
from pipeline.policy.tags import common
from pipeline.policy.transfers import Transfer


@dataclass(frozen=True)
class Terms:
    """One leg. ``rules``: the destination's own; ``transfer``: the origin's leave, None for a landing.

    ``epoch``, ``hierarchies``, ``purposes`` are the destination's: keys are asked for in its name. ``hash``
    (SHA-256, hex) changes with either pack.
    """

    origin: str
    destination: str
    rules: LegRules
    transfer: Transfer | None
    epoch: EpochKind
    hierarchies: Mapping[str, Hierarchy]
    purposes: Mapping[str, Purpose]
    hash: str

    @property
    def layers(self) -> tuple[tuple[str, LegRules], ...]:
        """Rules with their place in their pack, in the order in which they are asked: first the transfer's
        (in the origin's pack), then the destination's."""
        landing = ("landing", self.rules)
        if self.transfer is None:
            return (landing,)
        return (f"transfers.{self.destination}", self.transfer.leg), landing

    @property
    def crosses(self) -> bool:
        """Whether the leg goes over a border."""
        return self.transfer is not None

    @property
    def basis(self) -> str:
        """What permits the crossing; empty for a landing."""
        return self.transfer.basis if self.transfer else ""

    @property
    def valid_until(self) -> date | None:
        """Last day (UTC) of the basis; None: it has no end."""
        return self.transfer.valid_until if self.transfer else None

    @property
    def valid_until_us(self) -> int | None:
        """First microsecond (since 1970 UTC) without a basis; None: it has no end."""
        return self.transfer.valid_until_us if self.transfer else None

    def permits(self, event: str) -> bool:
        """Whether the event may take this leg at all."""
        return self.transfer is None or self.transfer.permits(event)

    def allowed_for(self, event: str) -> frozenset[str]:
        """Tags that columns of the event may have at the destination."""
        held = self.rules.allowed_for(event)
        return held if self.transfer is None else common(held, self.transfer.leg.allowed_for(event))

    def filters(self, event: str) -> tuple[Filter, ...]:
        """What drops whole events on this leg, the transfer's first."""
        return tuple(rule for part in self._parts(event) for rule in part.filters)

    def consent(self, event: str) -> Consent | None:
        """The leg's question of consent. Two different ones are a fault of the flow, see :meth:`twice`."""
        return next((part.consent for part in self._parts(event) if part.consent), None)

    def crowd(self, event: str) -> Crowd | None:
        """The crowd in which rows of the event leave; the same is said of two."""
        return next((part.crowd for part in self._parts(event) if part.crowd), None)

    def twice(self, event: str) -> tuple[str, ...]:
        """``consent`` or ``crowd`` when both ends ask for one and not for the same."""
        parts = self._parts(event)
        consents = {part.consent for part in parts if part.consent}
        crowds = {part.crowd for part in parts if part.crowd}
        return tuple(name for name, found in (("consent", consents), ("crowd", crowds)) if len(found) > 1)

    def demand_valid(self, now_us: int) -> None:
        """BasisEnded (a ConfigError) once it has; ``now_us``: microseconds since 1970 UTC."""
        if fault := self.expired(now_us):
            raise BasisEnded(
                fault,
                operation="border",
                place=f"{self.origin} to {self.destination}",
                remedy="name a basis that holds in the origin's pack; nothing crosses until then",
            )

    def expired(self, now_us: int) -> str:
        """Why nothing crosses any more; empty while the basis holds."""
        if self.valid_until_us is None or now_us < self.valid_until_us:
            return ""
        return f"the basis of the transfer ({self.basis}) ended with {self.valid_until}"

    def _parts(self, event: str) -> list[EventRules]:
        return [layer.event(event) for _, layer in self.layers]


def landing_terms(pack: Pack) -> Terms:
    """What lands in the pack's own region; ConfigError for a region that collects nothing."""
    if not pack.collects:
        raise ConfigError(
            f"{pack.region} collects nothing itself, so nothing lands there from an edge",
            operation="policy",
            place=f"pack {pack.region}",
            remedy="what it receives crosses a border: ask for a leg from another region",
        )
    region = pack.region
    return Terms(region, region, pack.landing, None, pack.epoch, pack.hierarchies, pack.purposes, pack.hash)


def border_terms(origin: Pack, destination: Pack) -> Terms:
    """What crosses from origin to destination; ConfigError when the origin permits no such transfer."""
    transfer = origin.transfers.get(destination.region)
    if transfer is None or not origin.collects or origin.region == destination.region:
        permitted = ", ".join(permitted_destinations(origin)) or "no region at all"
        raise ConfigError(
            f"no leg from {origin.region} to {destination.region}: what is not permitted is denied",
            operation="policy",
            place=f"pack {origin.region}",
            remedy=f"the pack of {origin.region} permits transfers to {permitted}",
        )
    both = hashlib.sha256(f"{origin.hash}\n{destination.hash}".encode()).hexdigest()
    return Terms(
        origin.region, destination.region, destination.landing, transfer, destination.epoch,
        destination.hierarchies, destination.purposes, both,
    )  # fmt: skip


def permitted_destinations(pack: Pack) -> Iterator[str]:
    """Regions to which something of the pack's region may cross, sorted."""
    if pack.collects:
        yield from sorted(region for region in pack.transfers if region != pack.region)
