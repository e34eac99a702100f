"""All packs of a deployment, together.

Comes in: the folder ``policies/*.toml``. Goes out: :class:`Packs`, or one ConfigError with every fault of
every file. Invariant: a jurisdiction belongs to exactly one region, and no transfer leads where no pack is or
where one end forbids it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.events import EventType
from pipeline.policy.borders import border_faults, expiry_faults
from pipeline.policy.edge_check import edge_faults
from pipeline.policy.faults import pack_faults
from pipeline.policy.pack import Pack, parse_pack
from pipeline.policy.packs import Packs
from pipeline.policy.violations import Violation


@dataclass(frozen=True)
class Survey:
    """A folder of packs as it is: those that could be read, and everything wrong with any of them."""

    packs: Packs
    violations: tuple[Violation, ...]


def load_packs(directory: Path, events: Mapping[str, EventType], *, now_us: int | None = None) -> Packs:
    """Read every pack of a folder and check it against the events and the other packs.

    Raises ConfigError with all faults of all files, each as ``file: place: what is wrong; what to do``. With
    ``now_us`` (microseconds since 1970 UTC) a transfer whose basis has ended is one of them. Without, it only
    keeps its own legs from being compiled: a region must not stop landing at midnight because of a border.
    """
    survey = survey_packs(directory, events, now_us=now_us)
    if survey.violations:
        told = [
            f"{file}.toml: {v}" if (file := v.origin or v.destination) else str(v) for v in survey.violations
        ]
        raise ConfigError("; ".join(told), operation="policy packs", place=str(directory))
    return survey.packs


def survey_packs(directory: Path, events: Mapping[str, EventType], *, now_us: int | None = None) -> Survey:
    """Read every pack of a folder, faulty or not: to tell its writer what is wrong, never to run it.

    ``now_us`` as for :func:`load_packs`.
    """
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
    together = Packs(packs)
    faults += border_faults(together, events)
    faults += _edge_faults(together, events)
    if now_us is not None:
        faults += expiry_faults(together, now_us)
    return Survey(together, tuple(faults))


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


def _edge_faults(packs: Packs, events: Mapping[str, EventType]) -> list[Violation]:
    legs = packs.legs()
    return [
        fault
        for region in packs.regions
        for name in packs.pack(region).edge.events
        if name in events
        for fault in edge_faults(
            packs.pack(region),
            events[name],
            [packs.terms(*leg) for leg in legs if leg[0] == region != leg[1]],
        )
    ]


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
