"""The local stack as its users start it: through the command line, in processes of its own.

Comes in: a folder. Goes out: two regions that run, and a way to call commands on them as a shell would.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from connectors.lake import open_reader
from pipeline.balance import BALANCED
from pipeline.config import load_config
from pipeline.evidence import weigh_settled
from pipeline.service import Project
from tests.shared_data import PROJECT

CONFIG = """\
[regions.eu]
[regions.us-ca]
[processor]
session_timeout_s = 6.0
[flush]
age_s = 0.5
[edge]
backoff_max_s = 1.0
[stack]
broker_heap_mb = 256
"""
COMMAND_S = 120.0
REST_S = 90.0


class LocalStack:
    """``with`` brings it up and down."""

    def __init__(self, folder: Path) -> None:
        self.state, self.config_file = folder / "state", folder / "pipeline.toml"
        self.config_file.write_text(CONFIG, encoding="utf-8")
        self.project = Project.open(
            load_config(self.config_file).model_copy(update={"state": self.state.resolve()})
        )

    def __enter__(self) -> LocalStack:
        self.done("up")
        return self

    def __exit__(self, *_: object) -> None:
        self.done("down")

    def argv(self, *arguments: str, config: Path | None = None, state: Path | None = None) -> list[str]:
        """A command line on this stack, or on another configuration or state."""
        options = ("--config", str(config or self.config_file), "--state", str(state or self.state))
        return [sys.executable, "-m", "pipeline", *options, *arguments]

    def run(self, *arguments: str, **other: Path) -> subprocess.CompletedProcess[str]:
        """Call a command and wait for its end."""
        return _run(self.argv(*arguments, **other))

    def done(self, *arguments: str) -> str:
        """Call a command that must succeed; what it printed."""
        ended = self.run(*arguments)
        assert ended.returncode == 0, f"{arguments}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout

    def answers(self, region: str, sql: str) -> list[dict[str, Any]]:
        """``pipeline query`` in a process of its own."""
        rows = json.loads(self.done("query", "--region", region, "--format", "json", sql))
        assert isinstance(rows, list)
        return rows

    def rows(self, region: str, sql: str) -> pa.Table:
        """The same, in this process."""
        with open_reader(self.project.config.store_path(region)) as lake:
            return lake.query(sql)

    def settle(self, region: str) -> None:
        """Wait until all that was accepted for the region is in its store, exactly."""
        report = asyncio.run(weigh_settled(self.project, region, REST_S, distinct=True))
        assert (report.status, report.findings) == (BALANCED, ()), report


def _run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, timeout=COMMAND_S)
