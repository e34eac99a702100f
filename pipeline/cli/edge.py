"""``pipeline edge``: the edge agent, and tokens for those who send to it. Imports nothing of other roles."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Annotated

import typer

from pipeline.cli.output import session
from pipeline.edge.senders import new_token
from pipeline.edge_service import default_region, run_edge
from pipeline.installation import Installation
from pipeline.local import ready_file, role_name
from pipeline.role import Role


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    group = typer.Typer(invoke_without_command=True, callback=command_edge)
    group.command("token")(command_token)
    app.add_typer(group, name="edge")


def command_edge(
    context: typer.Context,
    region: Annotated[
        str | None, typer.Option(help="the region this agent works for; default: the one that collects")
    ] = None,
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65_535, help="port of HTTP and /metrics; 0: as configured")
    ] = 0,
) -> None:
    """Run an edge agent: take events over HTTP and gRPC, keep them safe, forward them."""
    if context.invoked_subcommand is not None:
        return
    config = session(context).config
    if region is not None:
        config.region(region)
    installation = Installation.open(config)
    name = region or default_region(installation)
    logging.getLogger("pipeline").setLevel(logging.INFO)
    file = ready_file(installation, "edge", name)
    sys.setswitchinterval(0.0005)
    role = Role(role_name("edge", name), file, config.metrics_host, metrics_port)
    asyncio.run(run_edge(installation, name, role))


def command_token(context: typer.Context) -> None:
    """A new token for a class of senders: give it to the devices, its hash to the agent."""
    token, digest = new_token()
    here = session(context)
    if here.json:
        here.print_json({"token": token, "token_sha256": digest})
        return
    print(f"token         {token}")
    print(f'token_sha256 = ["{digest}"]')
