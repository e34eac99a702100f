"""Local processes: found again by pid and start time, ended for certain, never outliving a killed parent."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from connectors.processes import (
    LOG_BYTES_KEPT,
    Launch,
    ProcessRecord,
    kill,
    launch,
    log_start,
    stop,
    tail,
)
from tests.waiting import wait_for

STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
SLEEPER = "import time; print('here', flush=True); time.sleep(60)"


def start(code: str, log: Path) -> ProcessRecord:
    child = launch(Launch([sys.executable, "-c", code], log))
    wait_for(lambda: log.stat().st_size > 0)
    record = ProcessRecord.of("child", child.pid, log)
    assert record is not None
    return record


def test_a_record_read_back_finds_the_same_process(tmp_path: Path) -> None:
    record = start(SLEEPER, tmp_path / "log")
    record.write(tmp_path / "child.json")
    assert ProcessRecord.read(tmp_path / "child.json") == record
    assert record.alive()
    assert stop([record], 10) == [True]
    assert not record.alive()


def test_a_process_deaf_to_sigterm_is_killed_at_the_deadline(tmp_path: Path) -> None:
    record = start(STUBBORN, tmp_path / "log")
    assert stop([record], 0.2) == [False]
    assert not psutil.pid_exists(record.pid)


def test_a_process_whose_parent_does_not_ask_for_its_end_has_ended(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        record = ProcessRecord.of("child", int(parent.stdout.readline()), tmp_path / "log")
        assert record is not None
        begun = time.monotonic()
        assert stop([record], 20) == [True]
        assert time.monotonic() - begun < 10
        assert psutil.Process(record.pid).status() == psutil.STATUS_ZOMBIE


def test_the_pid_of_another_process_is_never_signalled(tmp_path: Path) -> None:
    record = start(SLEEPER, tmp_path / "log")
    earlier = replace(record, create_time_s=record.create_time_s - 100)
    assert not earlier.alive()
    assert stop([earlier], 0.2) == [True]
    kill(earlier)
    assert record.alive()
    kill(record)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "x"}', '{"pid": 1, "extra": 2}'])
def test_a_torn_or_foreign_record_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "child.json").write_text(content)
    assert ProcessRecord.read(tmp_path / "child.json") is None


def test_a_child_dies_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from connectors.processes import Launch, launch\n"
        f"child = launch(Launch([sys.executable, '-c', {SLEEPER!r}], Path({str(tmp_path / 'log')!r})))\n"
        "print(child.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        wait_for(lambda: (tmp_path / "log").stat().st_size > 0)
        parent.send_signal(signal.SIGKILL)
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_the_tail_starts_where_this_run_does_and_leaves_stack_frames_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("an older failure\n")
    begin = log_start(log)
    with log.open("a") as file:
        file.write("Exception: because\n\tat kafka.Kafka.main\n")
    assert tail(log, begin) == "Exception: because"
    assert tail(tmp_path / "none") == "(no log)"


def test_a_large_log_is_put_aside(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(LOG_BYTES_KEPT + 1)
    assert log_start(log) == 0
    assert not log.exists()
    assert (tmp_path / "log.1").stat().st_size == LOG_BYTES_KEPT + 1
