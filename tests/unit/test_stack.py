"""The local stack: all or nothing at the start, found again, stopped in reverse order."""

from __future__ import annotations

import fcntl
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from pipeline.errors import TransientError
from pipeline.stack import ProcessSpec, Stack, StackOptions
from tests.waiting import wait_for

# A role in small: says that it is ready, notes when it is told to stop.
ROLE = """
import signal, sys, time
from pathlib import Path
from pipeline.stack import announce_ready
ready, journal, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
def end(*_):
    with journal.open("a") as file: file.write(name + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
announce_ready(ready, 4711)
while True: time.sleep(60)
"""


@dataclass
class FakeBroker:
    """Counts what is asked of it; ``refuse`` makes its start fail."""

    running: bool = False
    refuse: bool = False
    calls: list[str] = field(default_factory=list)

    def alive(self) -> bool:
        return self.running

    def start(self, progress: object = None) -> None:
        if self.refuse:
            raise TransientError("no", operation="local broker start")
        self.running = True
        self.calls.append("start")

    def stop(self) -> bool:
        self.running = False
        self.calls.append("stop")
        return True


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


@pytest.fixture
def stack(tmp_path: Path, broker: FakeBroker) -> Iterator[Stack]:
    options = StackOptions(start_timeout_s=20, stop_timeout_s=10, detached=False)
    stack = Stack(tmp_path, broker, options)
    yield stack
    stack.down()


def role(tmp_path: Path, name: str, stage: int = 0) -> ProcessSpec:
    ready = tmp_path / "run" / f"{name}.ready"
    argv = (sys.executable, "-c", ROLE, str(ready), str(tmp_path / "journal"), name)
    return ProcessSpec(name, argv, ready, stage)


def failing(name: str, code: str, tmp_path: Path) -> ProcessSpec:
    return ProcessSpec(name, (sys.executable, "-c", code), tmp_path / "run" / f"{name}.ready")


def test_up_returns_when_every_process_is_ready_and_down_goes_stage_by_stage(
    tmp_path: Path, stack: Stack, broker: FakeBroker
) -> None:
    done = stack.up([role(tmp_path, "store"), role(tmp_path, "processor", 1), role(tmp_path, "edge", 2)])
    assert done.started == ("broker", "store", "processor", "edge")
    shown = stack.status()
    assert [(one.name, one.alive, one.port) for one in shown] == [
        ("store", True, 4711),
        ("processor", True, 4711),
        ("edge", True, 4711),
    ]
    ended = stack.down()
    assert list(ended) == ["edge", "processor", "store", "broker"]
    assert all(ended.values())
    assert broker.calls == ["start", "stop"]
    assert (tmp_path / "journal").read_text().split() == ["edge", "processor", "store"]
    assert stack.status() == []
    assert not any(psutil.pid_exists(one.pid) for one in shown)


def test_a_second_up_starts_only_what_is_missing(tmp_path: Path, stack: Stack) -> None:
    stack.up([role(tmp_path, "store")])
    (before,) = stack.status()
    done = stack.up([role(tmp_path, "store"), role(tmp_path, "edge")])
    assert done.started == ("edge",)
    assert done.running == ("broker", "store")
    assert stack.status()[0].pid == before.pid


def test_another_run_of_the_program_finds_and_stops_the_processes(
    tmp_path: Path, stack: Stack, broker: FakeBroker
) -> None:
    stack.up([role(tmp_path, "store")])
    assert Stack(tmp_path, broker).down() == {"store": True, "broker": True}
    assert stack.status() == []


def test_a_process_that_ends_stops_all_that_was_started_and_says_why(
    tmp_path: Path, stack: Stack, broker: FakeBroker
) -> None:
    bad = failing("processor", "raise SystemExit('no key for region eu')", tmp_path)
    with pytest.raises(TransientError, match=r"at processor: ended; (.|\n)*no key for region eu"):
        stack.up([role(tmp_path, "store"), bad])
    assert stack.status() == []
    assert broker.calls == ["start", "stop"]


def test_a_failed_up_leaves_alone_what_ran_before(tmp_path: Path, stack: Stack, broker: FakeBroker) -> None:
    stack.up([role(tmp_path, "store")])
    with pytest.raises(TransientError, match="at edge: ended"):
        stack.up([role(tmp_path, "store"), failing("edge", "pass", tmp_path)])
    assert [(one.name, one.alive) for one in stack.status()] == [("store", True)]
    assert broker.running


def test_a_process_that_never_gets_ready_is_ended_at_the_deadline(tmp_path: Path, broker: FakeBroker) -> None:
    stack = Stack(tmp_path, broker, StackOptions(start_timeout_s=0.3, stop_timeout_s=5, detached=False))
    with pytest.raises(TransientError, match=r"at edge: not ready within 0\.3 s"):
        stack.up([failing("edge", "import time; time.sleep(60)", tmp_path)])
    assert stack.status() == []
    assert not broker.running


def test_nothing_starts_when_the_broker_or_the_preparation_fails(
    tmp_path: Path, stack: Stack, broker: FakeBroker
) -> None:
    broker.refuse = True
    with pytest.raises(TransientError, match="local broker start"):
        stack.up([role(tmp_path, "store")])
    broker.refuse = False

    def prepare() -> None:
        raise TransientError("topics", operation="topics")

    with pytest.raises(TransientError, match="topics"):
        stack.up([role(tmp_path, "store")], prepare)
    assert stack.status() == []
    assert not broker.running


def test_a_crashed_process_shows_and_is_started_again(tmp_path: Path, stack: Stack) -> None:
    stack.up([role(tmp_path, "store")])
    (before,) = stack.status()
    victim = psutil.Process(before.pid)
    victim.kill()
    victim.wait(10)
    assert [(one.name, one.alive) for one in stack.status()] == [("store", False)]
    assert stack.up([role(tmp_path, "store")]).started == ("store",)
    (after,) = stack.status()
    assert after.alive
    assert after.pid != before.pid


def test_down_forgets_the_records_of_a_crash(tmp_path: Path, stack: Stack) -> None:
    stack.up([role(tmp_path, "store")])
    victim = psutil.Process(stack.status()[0].pid)
    victim.kill()
    victim.wait(10)
    assert stack.down() == {"broker": True}
    assert stack.status() == []


def test_processes_of_one_stage_share_the_deadline_of_their_stop(tmp_path: Path, stack: Stack) -> None:
    slow = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    deaf = [ProcessSpec(name, (sys.executable, "-c", slow)) for name in ("a", "b", "c")]
    stack.up(deaf)
    logs = [tmp_path / "run" / f"{spec.name}.log" for spec in deaf]
    wait_for(lambda: all(log.stat().st_size > 0 for log in logs))  # deaf by now
    hurried = Stack(tmp_path, FakeBroker(), StackOptions(stop_timeout_s=1))
    began = time.monotonic()
    assert hurried.down() == {"a": False, "b": False, "c": False}
    assert time.monotonic() - began < 2.5  # one deadline, not three


def test_two_at_once_are_refused(tmp_path: Path, stack: Stack) -> None:
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TransientError, match="another up or down is at work"):
            stack.up([])
