"""The main job once, from nothing: regions, their fleets, a core, an outage, the books closed to the row.

Comes in: a session of the command line and what is wished for. Goes out: a printed account and an exit
status, 1 when a balance is off. Everything happens in a folder of its own with a local broker of its own,
never in a configured cluster; nothing is left running, whatever happens.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from connectors.broker import LocalBroker
from connectors.lake import ReadOnlyLake, open_reader
from pipeline.balance import BalanceReport
from pipeline.cli.output import Session
from pipeline.config import load_config
from pipeline.demo.account import Account, Crossing, print_account
from pipeline.demo.edges import Edges
from pipeline.demo.emission import Emission
from pipeline.demo.fleet import Fleet, FleetSize
from pipeline.demo.places import CITIES
from pipeline.demo.samples import sample
from pipeline.demo.watch import Watch
from pipeline.errors import ConfigError
from pipeline.evidence import weigh_settled
from pipeline.local import specs, up
from pipeline.service import Project
from pipeline.stack import Stack, StackOptions

ROLES = ("process", "border", "store")  # the edges live in this process
SETTLE_S = 60.0
HASTE_S = 3.0
OUTAGE_AT = 0.3  # of the time; its end, a broker's start later, should still be seen
QUERIES = {
    "eu": """SELECT jurisdiction, count(DISTINCT vin) AS vehicles, count(*) AS samples,
        round(avg(speed_m_s) * 3.6, 1) AS mean_km_h, count(DISTINCT location_cell) AS cells,
        count(DISTINCT vin) FILTER (fault_code IS NOT NULL) AS with_fault
        FROM vehicle_telemetry GROUP BY ALL ORDER BY vehicles DESC""",
    "us-ca": """SELECT tariff, count(DISTINCT meter) AS meters, count(*) AS readings,
        round(avg(power_w)) AS mean_w, round(min(voltage_v), 1) AS lowest_v
        FROM meter_reading GROUP BY ALL ORDER BY meters DESC""",
    "br": """SELECT target, count(DISTINCT subject) AS machines, count(*) AS outputs,
        count(*) FILTER (acted) AS alarms, round(avg(latency_ms), 2) AS mean_ms
        FROM inference_output GROUP BY ALL ORDER BY target""",
    "core": """SELECT origin, count(DISTINCT vin) AS vehicles, count(*) AS samples,
        round(avg(speed_m_s) * 3.6, 1) AS mean_km_h, count(DISTINCT location_cell) AS cells
        FROM vehicle_telemetry GROUP BY ALL ORDER BY origin""",
}


@dataclass(frozen=True)
class Demo:
    """What is wished for. ``rate``: events per second, all regions together; ``keep``: the folder to work
    in, kept afterwards; None: a temporary one."""

    seconds: float = 20.0
    rate: float = 6000.0
    outage_s: float = 5.0
    seed: int = 2026
    keep: Path | None = None


def run_demo(here: Session, demo: Demo) -> int:
    """Run it and print what happened; 0 when every region's balance is exact, else 1. Blocks.

    Raises ConfigError before anything is started, TransientError when the stack does not come up.
    """
    with _ends_on_sigterm(), _quiet(), _workplace(here, demo.keep) as place:
        project, config_file = _project(here, place.folder)
        fleets = _fleets(project, demo)
        with _running(project, config_file, here.say) as (stack, broker):
            account = Account(demo.seed, list(fleets))
            _emit(project, fleets, demo, _Scene(here, stack, broker, account))
            asyncio.run(_look(project, account))
            print_account(here, account)
            place.keep |= not account.balanced
            here.say("stopping")
    return 0 if account.balanced else 1


@dataclass
class _Scene:
    """Where it is played, and the account of it."""

    here: Session
    stack: Stack
    broker: LocalBroker
    account: Account


def _emit(project: Project, fleets: dict[str, Fleet], demo: Demo, scene: _Scene) -> None:
    """The fleets emit, the broker is killed in the middle and started again, the spools run empty."""
    account, say = scene.account, scene.here.say
    with Edges(project, list(fleets)) as edges:
        emission = Emission(fleets, edges.clients, demo.seconds)
        begun = time.monotonic()
        with emission, Watch(scene.here, scene.stack, emission, edges.pending) as watch:
            watch.until(begun + demo.seconds * OUTAGE_AT)
            if demo.outage_s and emission.running:
                _outage(demo.outage_s, scene, watch)
            watch.until(None)
            account.note_emission(emission)
            say(f"emitted: {account.accepted_total:,} events acknowledged; now the spools run empty")
            edges.drain()
            account.drained_s = time.monotonic() - begun
            say("spools empty; waiting until the stores have everything")
            account.reports = asyncio.run(_settle(project))
            account.settled_s = time.monotonic() - begun


def _outage(seconds: float, scene: _Scene, watch: Watch) -> None:
    """kill -9 of the broker; the edges go on; the same broker again."""
    account, emission, say = scene.account, watch.emission, scene.here.say
    before = sum(emission.accepted.values())
    scene.broker.kill9()
    gone = time.monotonic()
    say("the broker is killed (SIGKILL); the edges go on")
    watch.until(gone + seconds)
    say("starting the broker again")
    scene.broker.start()
    account.outage_s = time.monotonic() - gone
    account.accepted_in_outage = sum(emission.accepted.values()) - before
    account.spooled = watch.pending()
    say(
        f"the broker is back after {account.outage_s:.1f} s; {account.accepted_in_outage:,} events were "
        f"acknowledged meanwhile, {sum(account.spooled.values()):,} wait in the spools"
    )


async def _settle(project: Project) -> list[BalanceReport]:
    """The balance of every region once nothing moves any more."""
    settling = [weigh_settled(project, name, SETTLE_S, distinct=True) for name in project.config.regions]
    return await asyncio.gather(*settling)


async def _look(project: Project, account: Account) -> None:
    """One event raw, stored and beyond its border, and one query, per region; what crossed."""
    with ExitStack() as stack:
        lakes = {
            region: stack.enter_context(open_reader(project.config.store_path(region)))
            for region in project.config.regions
        }
        for region, lake in lakes.items():
            if project.collects(region):
                beyond = next((lakes[to] for to in lakes if region in project.origins(to)), None)
                found = await sample(project, region, lake, beyond)
                if found is not None:
                    account.samples.append(found)
            if region in QUERIES:
                account.answers[region] = lake.query(QUERIES[region])
            account.crossings += _crossings(project, region, lake)


def _crossings(project: Project, region: str, lake: ReadOnlyLake) -> list[Crossing]:
    """What came into the region over each border, by its store's own account."""
    passed: Counter[str] = Counter()
    for raw, totals in lake.totals().accounts.items():
        passed[raw.topic] += totals.passed
    return [
        Crossing(leg.origin, region, event, project.packs.terms(leg.origin, region).basis, count)
        for leg in project.legs_into(region)
        if leg.is_border
        for event in project.events_on(leg)
        if (count := passed[leg.source(event)])
    ]


def _fleets(project: Project, demo: Demo) -> dict[str, Fleet]:
    collecting = [name for name in project.config.regions if project.collects(name)]
    size = FleetSize().at_rate(demo.rate / len(collecting))
    return {name: Fleet(name, demo.seed, size) for name in collecting}


def _project(here: Session, folder: Path) -> tuple[Project, Path]:
    """A configuration of the demo's own, in a file that its processes read, too.

    Of the caller's only the schemas and the heap are taken over: a configured cluster, store or key
    folder is production's, and invented events have no business there.
    """
    regions = [name for name in here.config.regions if name in CITIES or not here.project.collects(name)]
    if not set(regions) & set(CITIES):
        raise ConfigError(
            "no configured region has a simulated fleet",
            operation="demo",
            remedy=f"there is one for {', '.join(CITIES)}",
        )
    lines = [f"schemas = {json.dumps(str(here.config.schemas_path().resolve()))}"]
    lines += [f"[regions.{name}]" for name in regions]
    lines += ["[stack]", f"broker_heap_mb = {here.config.stack.broker_heap_mb}"]
    file = folder / "demo.toml"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = load_config(file).model_copy(update={"state": folder})
    return Project.open(config), file


@contextmanager
def _running(
    project: Project, config_file: Path, say: Callable[[str], None]
) -> Iterator[tuple[Stack, LocalBroker]]:
    """Broker, processors and store writers; stopped at the end, killed by the system if we are.

    After an error they get seconds only: without a broker they would wait for it, and a kill harms nothing.
    """
    limits = project.config.stack
    broker = project.broker(detached=False)
    options = StackOptions(limits.start_timeout_s, limits.stop_timeout_s, detached=False)
    stack = Stack(project.config.state, broker, options)
    if any(process.alive for process in stack.status()):
        raise ConfigError(
            "a stack runs in this folder", operation="demo", place=str(project.config.state),
            remedy="stop it with `pipeline down`, or choose another folder",
        )  # fmt: skip
    try:
        up(project, stack, specs(project, config_file, ROLES), say)
        yield stack, broker
    except BaseException:
        Stack(project.config.state, broker, replace(options, stop_timeout_s=HASTE_S)).down()
        raise
    stack.down()


@dataclass
class _Workplace:
    """The folder to work in; ``keep``: it stays, with its logs and its evidence."""

    folder: Path
    keep: bool


@contextmanager
def _workplace(here: Session, wanted: Path | None) -> Iterator[_Workplace]:
    """The wanted folder, or a temporary one that goes at the end, unless something went wrong."""
    parent = wanted or here.config.state
    parent.mkdir(parents=True, exist_ok=True)
    folder = wanted or Path(tempfile.mkdtemp(prefix="demo-", dir=parent))
    place = _Workplace(folder.resolve(), keep=wanted is not None)
    try:
        yield place
    except Exception:
        place.keep = True
        raise
    finally:
        if place.keep:
            here.say(f"kept: {place.folder}, logs in its folder run")
        else:
            shutil.rmtree(place.folder, ignore_errors=True)


@contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """SIGTERM ends it like Ctrl-C: what was started is stopped."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """What the clients say about the missing broker, many times a second, is no news here."""
    loggers = [logging.getLogger(name) for name in ("aiokafka", "pipeline.edge")]
    levels = [logger.level for logger in loggers]
    if not logging.getLogger().isEnabledFor(logging.INFO):  # --verbose shows it
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
