"""What commands share: the loaded configuration and ways to print."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.config import Config

if TYPE_CHECKING:
    from pipeline.service import Project


@dataclass
class Session:
    """One call of the command line."""

    config: Config
    config_file: Path | None
    json: bool

    @cached_property
    def project(self) -> Project:
        """Schemas and packs, loaded when first needed."""
        from pipeline.service import Project  # an edge agent does without

        return Project.open(self.config)

    @cached_property
    def console(self) -> Console:
        """Where people read."""
        return Console(highlight=False)

    @cached_property
    def progress(self) -> Console:
        """Where progress goes: standard error, so that output can be piped."""
        return Console(stderr=True, highlight=False)

    def regions(self, region: str | None) -> list[str]:
        """The named region, or all; an unknown one is a ConfigError."""
        if region is not None:
            self.config.region(region)
        return [region] if region is not None else list(self.config.regions)

    def say(self, text: str) -> None:
        """One line of progress; nothing with ``--json``."""
        if not self.json:
            self.progress.print(text, style="dim")

    def print_json(self, value: Any) -> None:
        """A value as JSON."""
        print(json.dumps(value, indent=2, default=str, ensure_ascii=False))

    def print_rows(self, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Rows of a query: a table where it fits the terminal, else one block of lines per row."""
        cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
        if sum(widths) + 3 * len(names) < self.console.width:
            table = Table(*names, header_style="bold")
            for row in cells:
                table.add_row(*map(escape, row))
            self.console.print(table)
            return
        label = max(map(len, names))
        for number, row in enumerate(cells, 1):
            self.console.print(f"row {number}", style="bold")
            for name, cell in zip(names, row, strict=True):
                self.console.print(f"  {name:<{label}}  {escape(cell)}", soft_wrap=True)

    def print_table(self, headings: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
        """A table for people."""
        table = Table(*headings, title=title or None, title_justify="left", header_style="bold")
        for row in rows:
            table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
        self.console.print(table)


def session(context: typer.Context) -> Session:
    """The session of a command."""
    found = context.find_object(Session)
    assert found is not None
    return found
