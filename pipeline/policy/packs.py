"""All packs of a deployment, together: who is responsible for what, and which legs there are."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from pipeline.errors import ConfigError
from pipeline.policy.pack import Pack
from pipeline.policy.terms import Terms, border_terms, landing_terms, permitted_destinations

Leg = tuple[str, str]


class Packs:
    """The packs by region, and who is responsible for which jurisdiction. Read-only."""

    def __init__(self, packs: Iterable[Pack]) -> None:
        self._packs = {pack.region: pack for pack in packs}
        self._region_of = {j: pack.region for pack in self._packs.values() for j in pack.jurisdictions}

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of all regions, sorted."""
        return tuple(sorted(self._packs))

    @cached_property
    def known(self) -> frozenset[str]:
        """Every jurisdiction that some region claims."""
        return frozenset(self._region_of)

    def pack(self, region: str) -> Pack:
        """The region's pack; ConfigError when there is none."""
        try:
            return self._packs[region]
        except KeyError:
            raise ConfigError(
                f"no policy pack for region {region!r}; there are {', '.join(self.regions)}",
                operation="policy",
                remedy="without a pack nothing may land: add one to schemas/policies",
            ) from None

    def region_of(self, jurisdiction: str) -> str | None:
        """The one region that claims it, to the letter; None: hold it, never guess."""
        return self._region_of.get(jurisdiction)

    def jurisdictions(self, region: str) -> frozenset[str]:
        """All that the region claims."""
        return frozenset(self.pack(region).jurisdictions)

    def legs(self) -> tuple[Leg, ...]:
        """Every (origin, destination) that is permitted: landings, then borders, each sorted."""
        landings = [(region, region) for region in self.regions if self._packs[region].collects]
        borders = [
            (region, destination)
            for region in self.regions
            for destination in permitted_destinations(self._packs[region])
            if destination in self._packs
        ]
        return (*landings, *borders)

    def origins(self, destination: str) -> tuple[str, ...]:
        """The regions from which something may cross to the destination, sorted."""
        return tuple(origin for origin, to in self.legs() if to == destination and origin != to)

    def terms(self, origin: str, destination: str) -> Terms:
        """What the leg runs under; ConfigError for one that is not permitted."""
        if origin == destination:
            return landing_terms(self.pack(origin))
        return border_terms(self.pack(origin), self.pack(destination))
