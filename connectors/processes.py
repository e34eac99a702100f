"""Local child processes: started with a log, known by pid and start time, stopped for certain.

Comes in: a command line. Goes out: a :class:`ProcessRecord`, small enough to be kept in a file, with which a
later run of the program finds the same process again. Invariant: no signal is sent to a process whose start
time differs from the record's, because the system gives freed pids to strangers.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

# psutil derives the start time from the boot time, which moves a little when the clock is corrected.
CREATE_TIME_TOLERANCE_S = 2.0
POLL_S = 0.02
KILL_TIMEOUT_S = 30  # after SIGKILL only the system can be late
LOG_BYTES_KEPT = 16 * 1024 * 1024
PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True)
class ProcessRecord:
    """One started process; ``create_time_s`` is seconds since 1970, ``port`` what it serves (0: nothing).

    ``stage``: the higher ones are stopped first, equal ones together.
    """

    name: str
    pid: int
    create_time_s: float
    log: str
    port: int = 0
    stage: int = 0

    @classmethod
    def of(cls, name: str, pid: int, log: Path) -> ProcessRecord | None:
        """The record of a process now running; None when it has ended already."""
        try:
            created = psutil.Process(pid).create_time()
        except psutil.NoSuchProcess:
            return None
        return cls(name, pid, created, str(log))

    @classmethod
    def read(cls, path: Path) -> ProcessRecord | None:
        """The record in a file; None when there is none or it is not one (a torn or foreign file)."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Replace the file in one step, so a reader sees the old record or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        fresh.replace(path)

    def process(self) -> psutil.Process | None:
        """The very process that was recorded, if it still runs (a zombie does not)."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.create_time_s) < CREATE_TIME_TOLERANCE_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return None

    def alive(self) -> bool:
        """Whether the recorded process still runs."""
        return self.process() is not None

    def uptime_s(self) -> float:
        """Seconds since its start."""
        return max(0.0, time.time() - self.create_time_s)


@dataclass(frozen=True)
class Launch:
    """How to start a process; ``env`` is added to ours.

    ``detached``: it may outlive this process. Otherwise it dies with the thread that started it, even when
    that is killed (Linux; elsewhere nothing takes it along).
    """

    argv: Sequence[str]
    log: Path
    cwd: Path | None = None
    env: Mapping[str, str] | None = None
    detached: bool = False


def launch(what: Launch) -> subprocess.Popen[bytes]:
    """Start it in a session of its own (a Ctrl-C is for us alone), its output appended to the log."""
    what.log.parent.mkdir(parents=True, exist_ok=True)
    with what.log.open("ab") as log:
        return subprocess.Popen(
            list(what.argv),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=what.cwd,
            env={**os.environ, **what.env} if what.env else None,
            start_new_session=True,
            preexec_fn=None if what.detached else _die_with_parent(),
        )


def stop(records: Sequence[ProcessRecord], timeout_s: float) -> list[bool]:
    """End them together: SIGTERM to each, SIGKILL to those that run at the deadline.

    Returns when all are gone, per record True when it went by itself; one that was gone already did.
    """
    found = [record.process() for record in records]
    processes = [process for process in found if process is not None]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    deaf = _still_there(processes, timeout_s)
    for process in deaf:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _still_there(deaf, KILL_TIMEOUT_S)
    return [process not in deaf for process in found]


def kill(record: ProcessRecord) -> None:
    """SIGKILL, and wait until the system has taken the process away."""
    process = record.process()
    if process is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
        _still_there([process], KILL_TIMEOUT_S)


def _still_there(processes: Sequence[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait for their end; those that run at the deadline.

    One whose parent has not asked for its exit status has ended, too: a container's first process may never.
    """
    deadline = time.monotonic() + timeout_s
    while there := [process for process in processes if not _has_ended(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    return there


def _has_ended(process: psutil.Process) -> bool:
    try:
        process.wait(0)  # takes the exit status of a child of ours
        return True
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        with contextlib.suppress(psutil.NoSuchProcess):
            return bool(process.status() == psutil.STATUS_ZOMBIE)
        return True


def log_start(log: Path) -> int:
    """Where the next start's lines will begin; a log grown large is put aside first, in place of the last."""
    size = log.stat().st_size if log.exists() else 0
    if size <= LOG_BYTES_KEPT:
        return size
    log.replace(log.with_name(f"{log.name}.1"))
    return 0


def tail(log: Path, start: int = 0) -> str:
    """The last lines of a log, for a message: at most 15 and 8 kB, none before the byte ``start``.

    The lines of a Java stack trace are left out, the exceptions in it are not.
    """
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(start, file.tell() - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return "(no log)"
    lines = [line for line in text.splitlines() if not line.startswith("\tat ")]
    return "\n".join(lines[-15:]) or "(empty log)"


def _die_with_parent() -> Callable[[], None] | None:
    """What the child calls between fork and exec; everything is looked up before the fork."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def child() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the parent died before prctl took effect
            os._exit(1)

    return child
