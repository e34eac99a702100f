"""Commands that are one role in the foreground: what production runs. The edge has a module of its own."""

from __future__ import annotations

import asyncio
import logging
import sys
from functools import partial
from typing import Annotated

import typer

from pipeline.cli.output import session
from pipeline.crossing import run_border
from pipeline.local import ready_file, role_name
from pipeline.role import Role
from pipeline.service import Runner, run_processor, run_store

Region = Annotated[str, typer.Option(help="the region this process works for")]
MetricsPort = Annotated[int, typer.Option(min=0, max=65_535, help="port of /metrics; 0: a free one")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("process")(command_process)
    app.command("border")(command_border)
    app.command("store")(command_store)


def command_process(context: typer.Context, region: Region, metrics_port: MetricsPort = 0) -> None:
    """Run the processor of a region: raw topics through the policy to curated topics."""
    _run(context, "process", region, metrics_port, run_processor)


def command_border(
    context: typer.Context,
    region: Annotated[str, typer.Option(help="the region that receives")],
    origin: Annotated[
        str | None, typer.Option("--from", help="only from here; default: every origin")
    ] = None,
    metrics_port: MetricsPort = 0,
) -> None:
    """Run what crosses into a region: the origins' curated topics through both policies."""
    _run(context, "border", region, metrics_port, partial(run_border, origin=origin))


def command_store(context: typer.Context, region: Region, metrics_port: MetricsPort = 0) -> None:
    """Run the store writer of a region: curated topics into its DuckLake."""
    _run(context, "store", region, metrics_port, run_store)


def _run(context: typer.Context, role: str, region: str, port: int, runner: Runner) -> None:
    here = session(context)
    here.config.region(region)
    logging.getLogger("pipeline").setLevel(logging.INFO)
    host = here.config.metrics_host
    this = Role(role_name(role, region), ready_file(here.project, role, region), host, port)
    sys.setswitchinterval(0.0005)
    asyncio.run(runner(here.project, region, this))
