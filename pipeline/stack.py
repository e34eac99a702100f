"""The local stack: a broker and the roles' processes, started together, found again, stopped together.

Comes in: a broker and a list of :class:`ProcessSpec`. Goes out: running processes, each in a session of its
own, with its output in ``<state>/run/<name>.log`` and its identity in ``<state>/run/<name>.json``.
Invariant: a failed start leaves nothing running that it started; a process is signalled only when pid and
start time are the recorded ones.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Protocol

from connectors.processes import Launch, ProcessRecord, launch, log_start, stop, tail
from pipeline.errors import TransientError

Progress = Callable[[str], None]
POLL_S = 0.02
BROKER = "broker"  # the name in its record


class Broker(Protocol):
    """What the stack needs of a local broker."""

    def alive(self) -> bool:
        """Whether its process runs."""

    def start(self, progress: Progress | None = None) -> None:
        """Return when it takes work."""

    def stop(self) -> bool:
        """Return when it is gone; False when it had to be killed."""


@dataclass(frozen=True)
class ProcessSpec:
    """One process of the stack.

    ``ready``: the file that it writes with :func:`announce_ready` once it works; None: ready when started.
    ``stage``: processes of a higher one are stopped before those of a lower one, those of one stage together,
    the broker last. ``env`` is added to the environment of this process.
    """

    name: str
    argv: tuple[str, ...]
    ready: Path | None = None
    stage: int = 0
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProcessStatus:
    """One recorded process; ``port``: where it serves metrics (the broker: clients), 0 when nowhere."""

    name: str
    pid: int
    alive: bool
    uptime_s: float
    port: int
    log: Path


@dataclass(frozen=True)
class Started:
    """What ``up`` did: names it started, names that ran already."""

    started: tuple[str, ...]
    running: tuple[str, ...]


@dataclass(frozen=True)
class StackOptions:
    """``detached``: the processes outlive the one that starts them."""

    start_timeout_s: float = 90.0
    stop_timeout_s: float = 20.0
    detached: bool = True


def announce_ready(path: Path, port: int = 0, more_ports: Mapping[str, int] | None = None) -> None:
    """Called by a process of the stack once it works: its ready file appears, with the ports it serves."""
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(json.dumps({"port": port, **(more_ports or {})}) + "\n", encoding="utf-8")
    fresh.replace(path)


class Stack:
    """Starts, lists and stops the processes of one state folder. Not for use by several threads."""

    def __init__(self, state: Path, broker: Broker, options: StackOptions | None = None) -> None:
        self._run = state.resolve() / "run"
        self._broker = broker
        self._options = options or StackOptions()
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def up(
        self,
        specs: Sequence[ProcessSpec],
        prepare: Callable[[], None] | None = None,
        progress: Progress | None = None,
    ) -> Started:
        """Start what does not run yet; return when all of it is ready. Blocks.

        ``prepare`` is called once the broker works, before the first process starts (topics). Raises
        TransientError when one does not become ready, with its name and the end of its log, and whatever the
        broker or ``prepare`` raises; then everything that this call started has been stopped.
        """
        with self._locked("up"):
            say = progress or (lambda _: None)
            running = [spec.name for spec in specs if self._alive(spec.name)]
            missing = [spec for spec in specs if spec.name not in running]
            broker_was_up = self._broker.alive()
            try:
                if not broker_was_up:
                    say("starting the broker")
                self._broker.start(progress)
                if prepare is not None:
                    prepare()
                starts = {spec.name: self._start(spec) for spec in missing}
                self._wait_until_ready(specs, starts, say)
            except BaseException:
                names = {spec.name for spec in missing}
                self._stop_recorded([record for record in self._records() if record.name in names], say)
                if not broker_was_up:
                    self._broker.stop()
                raise
            started = [spec.name for spec in missing]
            (running if broker_was_up else started).insert(0, BROKER)
            return Started(tuple(started), tuple(running))

    def down(self, progress: Progress | None = None, names: Collection[str] | None = None) -> dict[str, bool]:
        """Stop everything recorded (or only ``names``), the highest stage first, the broker last. Blocks.

        The value per name: True when it went by itself, False when it had to be killed. Records of processes
        that are gone (a crash) are removed and not mentioned.
        """
        with self._locked("down"):
            say = progress or (lambda _: None)
            wanted = [
                one for one in self._records() if one.name != BROKER and one.name in (names or {one.name})
            ]
            ended = self._stop_recorded(wanted, say)
            if names is not None and BROKER not in names:
                return ended
            running = self._broker.alive()
            if running:
                say("stopping the broker")
            by_itself = self._broker.stop()  # also when it crashed: its record goes
            return {**ended, BROKER: by_itself} if running else ended

    def status(self) -> list[ProcessStatus]:
        """Every recorded process, the broker first; one that crashed shows as not alive."""
        return [
            ProcessStatus(
                record.name,
                record.pid,
                alive := record.alive(),
                record.uptime_s() if alive else 0.0,
                record.port,
                Path(record.log),
            )
            for record in self._records()
        ]

    def _start(self, spec: ProcessSpec) -> int:
        """Start one and record it; where its lines begin in its log."""
        log = self._run / f"{spec.name}.log"
        begin = log_start(log)
        if spec.ready is not None:
            spec.ready.parent.mkdir(parents=True, exist_ok=True)
            spec.ready.unlink(missing_ok=True)  # of a run before
        child = launch(Launch(spec.argv, log, env=spec.env, detached=self._options.detached))
        self._children[spec.name] = child
        record = ProcessRecord.of(spec.name, child.pid, log)
        if record is not None:
            replace(record, stage=spec.stage).write(self._record_path(spec.name))
        return begin

    def _wait_until_ready(
        self, specs: Sequence[ProcessSpec], starts: Mapping[str, int], say: Progress
    ) -> None:
        """All of them, also those found running: the call that started one may have been killed."""
        deadline = time.monotonic() + self._options.start_timeout_s
        for spec in specs:
            say(f"waiting for {spec.name}")
            while True:
                ready = spec.ready is None or spec.ready.exists()
                if not self._alive(spec.name):
                    raise self._failed(spec, "ended", starts.get(spec.name, 0))
                if ready:
                    break
                if time.monotonic() > deadline:
                    waited = f"not ready within {self._options.start_timeout_s:g} s"
                    raise self._failed(spec, waited, starts.get(spec.name, 0))
                time.sleep(POLL_S)
            self._note_port(spec)
        for spec in specs:  # one may have ended while another was waited for
            if not self._alive(spec.name):
                raise self._failed(spec, "ended", starts.get(spec.name, 0))

    def _note_port(self, spec: ProcessSpec) -> None:
        record = ProcessRecord.read(self._record_path(spec.name))
        if record is not None and spec.ready is not None:
            port = int(json.loads(spec.ready.read_text(encoding="utf-8")).get("port", 0))
            replace(record, port=port).write(self._record_path(spec.name))

    def _failed(self, spec: ProcessSpec, problem: str, start: int) -> TransientError:
        log = self._run / f"{spec.name}.log"
        return TransientError(
            f"{problem}; last lines of {log}:\n{tail(log, start)}", operation="stack start", place=spec.name
        )

    def _stop_recorded(self, records: Sequence[ProcessRecord], say: Progress) -> dict[str, bool]:
        """Stop them stage by stage and forget them; those that live are in the result."""
        ended: dict[str, bool] = {}
        for _, group in groupby(
            sorted(records, key=lambda record: -record.stage), lambda record: record.stage
        ):
            together = list(group)
            living = [record for record in together if record.alive()]
            if living:
                say(f"stopping {', '.join(record.name for record in living)}")
            by_itself = stop(living, self._options.stop_timeout_s)
            ended |= dict(zip((record.name for record in living), by_itself, strict=True))
            for record in together:
                self._forget(record.name)
        return ended

    def _forget(self, name: str) -> None:
        self._record_path(name).unlink(missing_ok=True)
        child = self._children.pop(name, None)
        if child is not None:
            child.wait(self._options.stop_timeout_s)  # gone already: this takes its exit status

    def _alive(self, name: str) -> bool:
        record = ProcessRecord.read(self._record_path(name))
        return record is not None and record.alive()

    def _records(self) -> list[ProcessRecord]:
        """The broker's, then by stage, then by start."""
        found = [ProcessRecord.read(path) for path in self._run.glob("[!.]*.json")]
        records = [record for record in found if record is not None]
        return sorted(records, key=lambda record: (record.name != BROKER, record.stage, record.create_time_s))

    def _record_path(self, name: str) -> Path:
        return self._run / f"{name}.json"

    @contextmanager
    def _locked(self, operation: str) -> Iterator[None]:
        """One up or down at a time; the system drops the lock with the process that holds it."""
        self._run.mkdir(parents=True, exist_ok=True)
        with (self._run / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TransientError(
                    "another up or down is at work",
                    operation=f"stack {operation}",
                    place=str(self._run),
                    remedy="wait for it, then run the command again",
                ) from None
            yield
