"""What is shipped for an agent under systemd fits the project: command, configuration, options."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest

from pipeline.config import load_config

PROJECT = Path(__file__).resolve().parents[3]
EDGE = PROJECT / "compose" / "edge"


def test_the_example_is_a_configuration_and_guards_its_doors():
    config = load_config(EDGE / "edge.toml")
    assert list(config.regions) == ["eu"]
    assert not config.edge.listen.is_local
    assert set(config.edge.senders) == {"vehicles", "meters", "monitoring"}


def test_the_unit_runs_the_projects_command_with_that_file():
    unit = ConfigParser(interpolation=None, strict=False, delimiters="=")
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(EDGE / "pipeline-edge.service")
    program, option, file, command = unit["Service"]["ExecStart"].split()
    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
    assert Path(program).name in scripts
    assert (option, Path(file).name, command) == ("--config", "edge.toml", "edge")
    state = load_config(EDGE / "edge.toml").state
    assert state == Path("/var/lib") / unit["Service"]["StateDirectory"]


def test_systemd_takes_every_line(tmp_path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not here")
    text = (EDGE / "pipeline-edge.service").read_text()
    program = "/opt/pipeline/.venv/bin/pipeline"
    copy = tmp_path / "pipeline-edge.service"
    copy.write_text(text.replace(program, "/bin/true").replace("file:///opt", "file:///usr"))
    found = subprocess.run([analyze, "verify", "--man=no", str(copy)], capture_output=True, text=True)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")
