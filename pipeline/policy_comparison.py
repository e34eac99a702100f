"""Two policies on the same events, joined to where packs and events come from.

Comes in: a project, packs as proposed, and a source: a raw topic, a file, or a snapshot of a store. Goes out:
comparisons that were fed. Nothing is written anywhere, and no token is made in a region's vault.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from connectors.files import open_rows
from connectors.kafka_scan import LogScanner
from connectors.lake import open_reader
from pipeline.checks import Findings
from pipeline.config import REGION_NAME
from pipeline.errors import ConfigError
from pipeline.events import EventType
from pipeline.policy import KeyStore, Packs, compile_plan, judge_all, survey_packs
from pipeline.policy.borders import landed_event
from pipeline.policy.compare import LegComparison, Stage, Way
from pipeline.policy.examples import ExampleKeys
from pipeline.policy.offline import ByName, Conform
from pipeline.policy.packs import Leg
from pipeline.policy.standalone import Standalone
from pipeline.policy.tokens import ExampleVault
from pipeline.policy.violations import Violation
from pipeline.policy_session import arriving_on, checks_on, intake
from pipeline.service import Project


@dataclass(frozen=True)
class Source:
    """Where events are replayed from: one of the three. ``curated``: they are rows of the region's store."""

    topic: bool = False
    file: Path | None = None
    snapshot: int | None = None
    curated: bool = False


@dataclass(frozen=True)
class Proposed:
    """Packs, and all that speaks against them and their flows."""

    packs: Packs
    violations: tuple[Violation, ...]


def proposed(project: Project, path: Path | None, now_us: int, base: Path | None = None) -> Proposed:
    """The packs of a folder; of a file: those of ``base`` with it in its region's place. None: those in use.

    Raises ConfigError when there is nothing to read.
    """
    if path is None:
        return Proposed(project.packs, ())
    shipped = project.config.schemas_path() / "policies"
    folder, events = path, project.schemas.events
    if folder.is_dir():
        if not any(folder.glob("*.toml")) and (folder / "policies").is_dir():
            folder = folder / "policies"
        return _judged(folder, events, now_us)
    if not folder.is_file():
        raise ConfigError("no such file or folder", operation="policy plan", place=str(folder))
    with TemporaryDirectory(prefix="packs-") as together:
        for pack in sorted((base or shipped).glob("*.toml")):
            shutil.copy(pack, together)
        shutil.copy(folder, Path(together) / f"{_region_in(folder)}.toml")
        return _judged(Path(together), events, now_us)


def _judged(folder: Path, events: Mapping[str, EventType], now_us: int) -> Proposed:
    survey = survey_packs(folder, events, now_us=now_us)
    return Proposed(survey.packs, judge_all(survey, events).violations)


def _region_in(file: Path) -> str:
    """The region that a pack says it is for; of one that cannot be read the file's name."""
    try:
        region = tomllib.loads(file.read_text(encoding="utf-8")).get("region")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        region = None
    return region if isinstance(region, str) and re.fullmatch(REGION_NAME, region) else file.stem


def comparisons(
    project: Project, both: tuple[Packs, Packs], event: EventType, where: tuple[str, str | None],
    source: Source,
) -> list[LegComparison]:  # fmt: skip
    """One comparison per leg that begins in the region: those that either side permits; with a destination
    that one alone. Raw events take the landing first, under each side's own rules."""
    region, to = where
    if to is not None:
        legs = [(region, to)]
    else:
        found = {leg for packs in both for leg in packs.legs() if leg[0] == region}
        found -= {(region, region)} if source.curated else set()
        legs = sorted(found, key=lambda leg: (leg[0] != leg[1], leg))
    return [_comparison(project, both, event, leg, source.curated) for leg in legs]


def _comparison(
    project: Project, both: tuple[Packs, Packs], event: EventType, leg: Leg, curated: bool
) -> LegComparison:
    """With the real keys where all that are asked for can be read, else on both sides with example keys."""

    def ways(keys: Callable[[str], KeyStore]) -> tuple[Way, Way]:
        before, after = (Way(_stages(project, packs, event, leg, curated, keys)) for packs in both)
        return before, after

    try:
        (before, after), used = ways(project.keys.store), "real"
    except ConfigError:
        (before, after), used = ways(lambda region: ExampleKeys()), "example"
    return LegComparison(*leg, before, after, used, _not_replayed(both, leg, event.name))


def _not_replayed(both: tuple[Packs, Packs], leg: Leg, event: str) -> tuple[str, ...]:
    asked = [packs.terms(*leg).consent(event) for packs in both if leg in packs.legs()]
    return ("consent",) if any(asked) else ()


def _stages(
    project: Project, packs: Packs, event: EventType, leg: Leg, curated: bool,
    keys: Callable[[str], KeyStore],
) -> list[Stage]:  # fmt: skip
    origin, destination = leg
    if leg not in packs.legs() or not packs.terms(*leg).permits(event.name):
        return []
    if packs.terms(*leg).expired(time.time_ns() // 1000):
        return []  # nothing crosses without a basis that holds
    way = [] if curated else [(origin, origin)]
    way += [leg] if origin != destination else []
    stages = []
    for part in way:
        arriving = arriving_on(packs, part, event)
        plan = compile_plan(packs.terms(*part), arriving, keys(part[1]), vault=ExampleVault())
        run = Standalone(plan, without_consent=True)
        stages.append(Stage(checks_on(project, packs, part, arriving), run))
    return stages


def replayed(
    project: Project, packs: Packs, event: EventType, region: str, source: Source, limit: int
) -> Iterator[pa.RecordBatch]:
    """At most ``limit`` events of the source, as rows of the raw event or of what ``packs`` land.

    Rows that cannot be read are left out. Raises ConfigError, TransientError, RecordError.
    """
    arriving = landed_event(packs, region, event)[0] if source.curated else event
    if source.topic:
        batches: Iterator[pa.RecordBatch] = iter(asyncio.run(_topic_batches(project, region, event, limit)))
    elif source.file is not None:
        batches = _file_batches(source.file, arriving)
    else:
        batches = _store_batches(project, region, arriving, source.snapshot, limit)
    for batch in batches:
        yield batch.slice(0, limit)
        limit -= len(batch)
        if limit <= 0:
            return


def _file_batches(file: Path, arriving: EventType) -> Iterator[pa.RecordBatch]:
    source = open_rows(file)
    conform = ByName(arriving, source.schema)
    for rows in source.batches(conform.columns):
        yield _readable(conform, rows.batch, rows.numbers)


def _store_batches(
    project: Project, region: str, arriving: EventType, snapshot: int | None, limit: int
) -> Iterator[pa.RecordBatch]:
    with open_reader(project.config.store_path(region)) as lake:
        table = f'"{arriving.name}"'
        conform = ByName(arriving, lake.query(f"SELECT * FROM {table} LIMIT 0", snapshot=snapshot).schema)
        columns = ", ".join(f'"{name}"' for name in conform.columns)
        sql = f"SELECT {columns} FROM {table} LIMIT {int(limit)}"
        for batch in lake.stream(sql, snapshot=snapshot):
            yield _readable(conform, batch, np.arange(1, len(batch) + 1))


def _readable(conform: Conform, batch: pa.RecordBatch, numbers: np.ndarray) -> pa.RecordBatch:
    conformed = conform.apply(batch, numbers)
    rows = np.setdiff1d(np.arange(len(batch)), list(conformed.bad))
    return conformed.batch.take(pa.array(rows)) if conformed.bad else conformed.batch


class _AnyRow:
    """Each side of a comparison asks its own checks."""

    def run(self, batch: pa.RecordBatch, now_us: int) -> Findings:
        """Every row passes."""
        return Findings(np.full(len(batch), -1, np.int16), [])


async def _topic_batches(project: Project, region: str, event: EventType, limit: int) -> list[pa.RecordBatch]:
    """The oldest records of every partition, an equal share of each."""
    door = replace(intake(project, region, event.name), checks=_AnyRow())
    scan = LogScanner(project.cluster(region), project.config.limits)
    topic, partitions = project.topics.raw(region, event.name), project.config.region(region).partitions
    found: list[pa.RecordBatch] = []
    for partition in range(partitions):
        left = -(-limit // partitions)
        async with aclosing(scan(topic, partition, 0)) as fetches:  # type: ignore[type-var]
            async for fetched in fetches:
                batch = door.take(fetched.values, 0).batch.slice(0, left)
                found.append(batch)
                left -= len(batch)
                if left <= 0:
                    break
    return found
