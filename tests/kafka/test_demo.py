"""The demonstration as a user runs it: it closes its books, cleans up, and can be interrupted anywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.kafka
TIMEOUT_S = 180


def command(state: Path, *options: str, json_too: bool = False) -> list[str]:
    common = [sys.executable, "-m", "pipeline", "--state", str(state), *(["--json"] if json_too else [])]
    return [*common, "demo", *options]


def still_running(state: Path) -> list[str]:
    """Command lines of living processes that name the folder."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline()) + process.cwd()
            if str(state) in line and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(line)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_every_event_of_a_short_demo_is_accounted_for_and_nothing_stays(tmp_path):
    options = ("--seconds", "6", "--outage", "1", "--rate", "900", "--seed", "7")
    done = subprocess.run(
        command(tmp_path, *options, json_too=True), capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr[-4000:]
    account = json.loads(done.stdout)
    assert account["balanced"] is True
    assert account["accepted"] == account["offered"]
    assert account["outage"]["accepted"] > 0
    for region, count in account["accepted"].items():
        balance = account["balance"][region]
        assert balance["accepted"] == count > 500
        assert count == balance["stored"] + balance["filtered"]
        assert account["answers"][region]
    core = account["balance"]["core"]
    assert core["accepted"] == sum(account["balance"][region]["stored"] for region in account["accepted"])
    assert core["accepted"] == core["stored"] + core["filtered"]
    assert sum(one["count"] for one in account["crossings"]) == core["stored"] > 0
    assert {one["origin"] for one in account["crossings"]} == set(account["accepted"])
    assert all(one["basis"] for one in account["crossings"])
    assert still_running(tmp_path) == []
    assert list(tmp_path.glob("demo-*")) == []


def test_an_interrupted_demo_stops_what_it_started(tmp_path):
    child = subprocess.Popen(
        command(tmp_path, "--seconds", "10", "--outage", "60", "--rate", "300"),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    watchdog = threading.Timer(TIMEOUT_S, child.kill)
    watchdog.start()
    try:
        assert child.stderr is not None
        for line in child.stderr:
            if "edges go on" in line:
                break
        else:
            pytest.fail("it ended before the outage")
        child.send_signal(signal.SIGTERM)
        child.stderr.read()
        assert child.wait(60) == 130
    finally:
        watchdog.cancel()
        child.kill()
        child.wait()
    assert still_running(tmp_path) == []
    assert list(tmp_path.glob("demo-*")) == []
