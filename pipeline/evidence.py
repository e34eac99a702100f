"""What a balance rests on, read in the order that makes it provable while everything runs.

Comes in: a project and a region. Goes out: a :class:`pipeline.balance.BalanceReport`. Ledgers (for a border:
the origins' stores) first, then the store, then the ends of the topics, then the ledgers again:
pipeline.balance says why.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

from connectors.kafka import KafkaAdmin
from connectors.lake import open_reader
from pipeline.balance import (
    BALANCED,
    BalanceReport,
    BorderEvidence,
    Evidence,
    LegEvidence,
    StoreTotals,
    balance,
    border_balance,
)
from pipeline.edge import LaneLedger, read_ledger, without_copies
from pipeline.errors import PipelineError
from pipeline.service import Project, started

SETTLED_AFTER_S = 20.0  # longer than a flush, a session timeout and a takeover together
POLL_S = 0.5


def spools(config_state: Path) -> list[Path]:
    """The spool files under a state folder."""
    return sorted((config_state / "edge").glob("*/spool.sqlite"))


def ledgers(project: Project) -> list[LaneLedger]:
    """The counters of every spool of this state folder."""
    return without_copies(one for path in spools(project.config.state) for one in read_ledger(path))


async def weigh(
    project: Project,
    region: str,
    *,
    settled: bool = False,
    distinct: bool = False,
) -> BalanceReport:
    """The balance of one region now: of what lands there, or, where nothing does, of what crosses to it.

    ``distinct`` also counts distinct raw positions in the store, which reads every row. Raises ConfigError
    (no store yet), TransientError (broker away).
    """
    if not project.collects(region):
        return await weigh_border(project, region, settled=settled, distinct=distinct)
    topics, events = project.topics, project.schemas.events
    raw = {topics.raw(region, event) for event in events}
    others = {topics.curated(region, event) for event in events} | {topics.stats(region)}
    count = project.config.region(region).partitions
    before = ledgers(project)
    store = _totals(project, region, distinct)
    ends = await _ends(project, region, dict.fromkeys(raw | others, count))
    evidence = Evidence(before, store, ends, frozenset(raw), ledgers(project))
    return balance(evidence, settled=settled)


async def weigh_border(
    project: Project, region: str, *, settled: bool = False, distinct: bool = False
) -> BalanceReport:
    """The balance of everything that crosses into a region now; reads the origins' stores as well."""
    legs, origins = _border_legs(project, region), project.origins(region)
    before = {origin: _totals(project, origin) for origin in origins}
    store = _totals(project, region, distinct)
    ends: dict[tuple[str, int], int] = {}
    for origin in origins:
        topics, count = project.topics.border(origin, region), project.config.region(origin).partitions
        mine = [leg for leg in legs if leg.origin == origin]
        there = {name: count for leg in mine for name in (leg.source, leg.origin_stats)}
        here = dict.fromkeys((topics.stats, *(topics.curated(leg.event) for leg in mine)), count)
        ends |= await _ends(project, origin, there) | await _ends(project, region, here)
    after = {origin: _totals(project, origin) for origin in origins}
    return border_balance(BorderEvidence(legs, before, store, ends, after), settled=settled)


def _border_legs(project: Project, region: str) -> list[LegEvidence]:
    found = []
    for origin in project.origins(region):
        here, there = project.topics.border(origin, region), project.topics.landing(origin)
        for event in project.events_on(here):
            names = (there.source(event), here.source(event), there.stats, here.stats)
            found.append(LegEvidence(origin, event, *names))
    return found


def _totals(project: Project, region: str, distinct: bool = False) -> StoreTotals:
    with open_reader(project.config.store_path(region)) as lake:
        return lake.totals(distinct=distinct)


async def _ends(project: Project, region: str, counts: Mapping[str, int]) -> dict[tuple[str, int], int]:
    """Ends of the region's topics that exist; ``counts``: partitions by name."""
    async with started(KafkaAdmin(project.cluster(region))) as admin:
        there = await admin.topic_ids(sorted(counts))
        return await admin.end_offsets([(name, number) for name in there for number in range(counts[name])])


async def weigh_settled(
    project: Project, region: str, wait_s: float, *, distinct: bool = False
) -> BalanceReport:
    """The balance once everything has come to rest, at the latest after ``wait_s``; else as :func:`weigh`.

    What has not moved for SETTLED_AFTER_S is taken as final: what is still on the way then is lost.
    """
    deadline = time.monotonic() + wait_s
    last: tuple[tuple[str, int], ...] = ()
    still_since = time.monotonic()
    while True:
        now = time.monotonic()
        try:
            settled = now - still_since > SETTLED_AFTER_S
            report = await weigh(project, region, settled=settled, distinct=distinct)
        except PipelineError:
            if now > deadline:
                raise
        else:
            if report.status == BALANCED or not report.ok or now > deadline:
                return report
            if tuple(report.rows()) != last:
                last, still_since = tuple(report.rows()), now
        await asyncio.sleep(POLL_S)
