"""All packs of a deployment, together.

Comes in: the folder ``policies/*.toml``. Goes out: :class:`Packs`, or one ConfigError with every fault of
every file. Invariant: a jurisdiction belongs to exactly one region.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.events import EventType
from pipeline.policy.faults import pack_faults
from pipeline.policy.pack import Pack, parse_pack
from pipeline.policy.violations import Violation


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


@dataclass(frozen=True)
class Survey:
    """A folder of packs as it is: those that could be read, and everything wrong with any of them."""

    packs: Packs
    violations: tuple[Violation, ...]


def load_packs(directory: Path, events: Mapping[str, EventType]) -> Packs:
    """Read every pack of a folder and check it against the events.

    Raises ConfigError with all faults of all files, each as ``file: place: what is wrong; what to do``.
    """
    survey = survey_packs(directory, events)
    if survey.violations:
        told = [f"{v.destination}.toml: {v}" if v.destination else str(v) for v in survey.violations]
        raise ConfigError("; ".join(told), operation="policy packs", place=str(directory))
    return survey.packs


def survey_packs(directory: Path, events: Mapping[str, EventType]) -> Survey:
    """Read every pack of a folder, faulty or not: to tell its writer what is wrong, never to run it."""
    packs: list[Pack] = []
    faults: list[Violation] = []
    files = sorted(directory.glob("*.toml"))
    for file in files:
        pack, found = _read(file, events)
        faults += [replace(fault, destination=file.stem) for fault in found]
        if pack is not None:
            packs.append(pack)
    if not files:
        faults.append(Violation("policies", "no pack here: without a policy nothing may land", "add one"))
    faults += _conflicts(packs)
    return Survey(Packs(packs), tuple(faults))


def _read(file: Path, events: Mapping[str, EventType]) -> tuple[Pack | None, list[Violation]]:
    try:
        raw: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        return None, [Violation("file", f"cannot read: {error.strerror}")]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return None, [Violation("file", f"not TOML: {error}")]
    pack, faults = parse_pack(raw)
    if pack is None:
        return None, faults
    if pack.region != file.stem:
        problem = f"expected {file.stem!r} as in the file's name, got {pack.region!r}"
        faults.append(Violation("region", problem))
    return pack, faults + list(pack_faults(pack, events))


def _conflicts(packs: list[Pack]) -> list[Violation]:
    claims: dict[str, list[str]] = {}
    for pack in packs:
        for jurisdiction in pack.jurisdictions:
            claims.setdefault(jurisdiction, []).append(pack.region)
    return [
        Violation(
            f"jurisdiction {jurisdiction}",
            f"claimed by {' and '.join(regions)}: one event would have two laws",
            "leave it in one pack",
        )
        for jurisdiction, regions in sorted(claims.items())
        if len(regions) > 1
    ]
