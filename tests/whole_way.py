"""A region's whole way, and on to the core, under a test's hands: the command line's processes by pid.

Comes in: a folder and how the region is set. Goes out: a broker, topics and keys, and one :class:`Child` per
process, which the test starts, kills, halts and starts again. Every process has a state folder of its own, as
on machines of their own; spool, keys and store are where the configuration says. Nothing outlives the test.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from connectors.broker import BrokerOptions, LocalBroker
from connectors.processes import Launch, launch, tail
from pipeline.config import load_config
from pipeline.errors import PipelineError
from pipeline.evidence import ledgers
from pipeline.policy.wrapping import create_master
from pipeline.service import Project
from tests.conftest import JARS, PROJECT

REGION, CORE = "eu", "core"
POLL_S = 0.05
STOP_S = 30.0
CONFIG = """\
topic_prefix = "{prefix}"
[regions.{region}]
partitions = {partitions}
store = "{folder}/store"
keys = "{folder}/keys"
[regions.{region}.cluster]
bootstrap = "{bootstrap}"
request_timeout_s = {request_timeout_s}
[regions.core]
store = "{folder}/store of the core"
keys = "{folder}/keys of the core"
[regions.core.cluster]
bootstrap = "{bootstrap}"
request_timeout_s = {request_timeout_s}
[keys]
master_file = "{folder}/secrets/master.key"
[edge]
backoff_max_s = 1.0
event_lanes = {{ object_detection = "urgent", meter_reading = "bulk" }}
[processor]
session_timeout_s = 6.0
fetch_bytes_max = 262144
[flush]
age_s = 0.5
"""


@dataclass(frozen=True)
class Setting:
    """What may differ between runs. ``bootstrap``: a broker that runs already; empty: one of its own."""

    bootstrap: str = ""
    prefix: str = ""
    partitions: int = 3
    request_timeout_s: float = 5.0


@dataclass
class Child:
    """One process of the way, over all its lives. ``ready`` appears when it works."""

    name: str
    argv: Sequence[str]
    log: Path
    ready: Path | None = None
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    starts: int = field(default=0)

    def start(self) -> None:
        """Begin a new life. For a thread that lives on: the process dies with the thread that starts it."""
        assert self.process is None, f"{self.name} runs already"
        if self.ready is not None:
            self.ready.unlink(missing_ok=True)
        self.process = launch(Launch(self.argv, self.log, cwd=PROJECT))
        self.started_at, self.starts = time.monotonic(), self.starts + 1

    @property
    def works(self) -> bool:
        """Whether it has announced that it works, and has not ended since."""
        return self.running and (self.ready is None or self.ready.exists())

    @property
    def running(self) -> bool:
        """Whether this life goes on, halted or not."""
        return self.process is not None and self.process.poll() is None

    def kill9(self) -> None:
        """SIGKILL, also when it is halted or has ended."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait(STOP_S)

    def stop(self) -> int:
        """SIGTERM; the exit status. Fails when it takes too long."""
        process, self.process = self.process, None
        assert process is not None, f"{self.name} does not run"
        process.terminate()
        try:
            return process.wait(STOP_S)
        finally:
            process.kill()
            process.wait()

    def halt(self) -> None:
        """SIGSTOP: it stands still, and everyone else believes it dead."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT: the same process, with all it had in hand."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def last_lines(self) -> str:
        """The end of its log."""
        return tail(self.log)


class Way:
    """Broker, configuration and children of one region; ``with`` leaves nothing running."""

    def __init__(self, folder: Path, setting: Setting | None = None) -> None:
        self.folder, self.setting = folder.resolve(), setting or Setting()
        self.children: list[Child] = []
        self.broker: LocalBroker | None = None
        # A process that is not detached dies with the thread that started it: this one lives to the end.
        self.broker_thread = ThreadPoolExecutor(1, thread_name_prefix="broker")

    def __enter__(self) -> Way:
        self.folder.mkdir(parents=True, exist_ok=True)
        bootstrap = self.setting.bootstrap
        try:
            if not bootstrap:
                self.broker = LocalBroker(self.folder / "broker", BrokerOptions(heap_mb=256, jars=JARS))
                self.broker_thread.submit(self.broker.start).result()
                bootstrap = self.broker.bootstrap
            self.config_file = self.folder / "pipeline.toml"
            text = CONFIG.format(
                folder=self.folder, region=REGION, bootstrap=bootstrap, prefix=self.setting.prefix,
                partitions=self.setting.partitions, request_timeout_s=self.setting.request_timeout_s,
            )  # fmt: skip
            self.config_file.write_text(text, encoding="utf-8")
            config = load_config(self.config_file).model_copy(update={"state": self.folder / "edge"})
            self.project = Project.open(config)
            create_master(self.folder / "secrets" / "master.key")
            self.project.create_keys([REGION, CORE])
            asyncio.run(self.project.ensure_topics([REGION, CORE]))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill what runs."""
        for child in self.children:
            child.kill9()
        if self.broker is not None:
            self.broker.kill9()
        self.broker_thread.shutdown()

    def role(
        self, role: str, instance: str = "", module: Sequence[str] = ("pipeline",), region: str = REGION
    ) -> Child:
        """A role as the command line starts it, not started; ``instance`` tells two of a kind apart.

        ``module`` is what python runs; a mutant's name goes before it.
        """
        name = f"{role}{instance}"
        state = self.folder / name
        options = ("--config", str(self.config_file), "--state", str(state))
        return self._add(
            name, (*module, *options, role, "--region", region), state / "run" / f"{role}-{region}.ready"
        )

    def producer(self, arguments: Sequence[str], module: Sequence[str] = ("tests.faults.producer",)) -> Child:
        """The edge: a producer with its spool and forwarder, not started."""
        options = ("--config", str(self.config_file), "--state", str(self.folder / "edge"))
        return self._add("edge", (*module, *options, *arguments), None)

    def accepted(self) -> int:
        """Events that the spools took so far."""
        try:
            return sum(ledger.accepted for ledger in ledgers(self.project))
        except PipelineError:  # a spool is being made
            return 0

    def all_sent(self, events: int) -> bool:
        """Whether the spools took so many events, and the broker has them all."""
        return self.accepted() >= events and all(one.pending == 0 for one in ledgers(self.project))

    def _add(self, name: str, module_and_arguments: Sequence[str], ready: Path | None) -> Child:
        argv = (sys.executable, "-m", *module_and_arguments)
        child = Child(name, argv, self.folder / "logs" / f"{name}.log", ready)
        self.children.append(child)
        return child


async def until(condition: Callable[[], bool], what: str, within_s: float = 60.0) -> None:
    """Return once the condition holds; fail, naming what was waited for, when it does not in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {within_s:g} s for: {what}"
        await asyncio.sleep(POLL_S)
