"""What the tests of policies on files share: a project with keys, rows of real events, the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config import load_config
from pipeline.service import Project
from tests.raw_events import raw_batch, replaced
from tests.shared_data import PROJECT

EVENT = "object_detection"
CANARY = "CANARY-4711"  # in every row of `camera`: no report may hold it


class PolicyFiles:
    """A folder with schemas of its own, a configuration, keys, and a file of raw events."""

    def __init__(self, folder: Path, rows: int = 3_000) -> None:
        self.folder, self.config = folder, folder / "pipeline.toml"
        shutil.copytree(PROJECT / "schemas", folder / "schemas")
        regions = "".join(f"[regions.{name}]\n" for name in ("eu", "us-ca", "cn", "core"))
        self.config.write_text(f'schemas = "{folder}/schemas"\nstate = "{folder}/state"\n{regions}')
        self.project = Project.open(load_config(self.config))
        self.project.create_keys(["eu", "core"])
        self.event = self.project.schemas.events[EVENT]
        batch = raw_batch(self.project.schemas, EVENT, rows)
        cameras = [f"{CANARY}-{i % 7}" for i in range(rows)]
        self.batch = replaced(batch, "camera", cameras)
        self.raw = folder / "raw.parquet"
        pq.write_table(pa.Table.from_batches([self.batch]), self.raw)

    def call(self, *arguments: str | Path) -> Any:
        """The command line; its result."""
        return CliRunner().invoke(app, ["--config", str(self.config), *map(str, arguments)])

    def json(self, *arguments: str | Path) -> Any:
        """The same with ``--json``, which has to succeed; the answer."""
        result = self.call("--json", *arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        assert CANARY not in result.output
        return json.loads(result.stdout)

    def pack(self, old: str, new: str, region: str = "eu") -> Path:
        """A pack with one change, in a file of its own."""
        text = (self.folder / "schemas" / "policies" / f"{region}.toml").read_text()
        assert old in text
        file = self.folder / "proposed.toml"
        file.write_text(text.replace(old, new))
        return file
