"""Commands of the local stack: up, down, status, demo."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.output import Session, session
from pipeline.errors import PipelineError
from pipeline.evidence import weigh
from pipeline.local import specs, stack, up
from pipeline.scrape import rates


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("up")(command_up)
    app.command("down")(command_down)
    app.command("status")(command_status)
    app.command("demo")(command_demo)


def command_up(context: typer.Context) -> None:
    """Start the local stack: a broker, and each region's edge agent, processor, border and store writer."""
    here = session(context)
    result = up(here.project, stack(here.project), specs(here.project, here.config_file), here.say)
    if here.json:
        here.print_json({"started": result.started, "running": result.running})
        return
    if result.running:
        here.console.print(f"ran already: {', '.join(result.running)}")
    here.console.print(f"started: {', '.join(result.started) or 'nothing, all of it runs'}")
    here.console.print("`pipeline status` shows it, `pipeline down` stops it")


def command_down(context: typer.Context) -> None:
    """Stop the local stack; its data stays."""
    here = session(context)
    ended = stack(here.project).down(here.say)
    if here.json:
        here.print_json(ended)
    elif not ended:
        here.console.print("nothing runs")
    for name, by_itself in ended.items():
        if not by_itself and not here.json:
            here.console.print(f"{name} had to be killed")


def command_status(context: typer.Context) -> None:
    """What runs, how fast, how far behind, and the balance of each region."""
    here = session(context)
    processes = stack(here.project).status()
    rows = [
        {
            "name": one.name, "pid": one.pid, "state": "running" if one.alive else "gone",
            "uptime_s": round(one.uptime_s), "port": one.port, **(rates(one.port) if one.alive else {}),
        }
        for one in processes
    ]  # fmt: skip
    balances = [_balance_row(here, region) for region in here.config.regions] if processes else []
    if here.json:
        here.print_json({"processes": rows, "balance": balances})
        return
    if not rows:
        here.console.print("nothing runs; `pipeline up` starts the stack")
        return
    here.print_table(
        ("process", "pid", "state", "up s", "port", "events", "lag"),
        [
            (
                r["name"],
                str(r["pid"]),
                r["state"],
                r["uptime_s"],
                str(r["port"]),
                r.get("events", ""),
                r.get("lag", ""),
            )
            for r in rows
        ],
    )
    here.print_table(
        ("region", "balance", "accepted", "stored", "pending"), [tuple(b.values()) for b in balances]
    )


def _balance_row(here: Session, region: str) -> dict[str, Any]:
    try:
        report = asyncio.run(weigh(here.project, region))
    except PipelineError as error:
        return {"region": region, "status": str(error), "accepted": "", "stored": "", "pending": ""}
    return {
        "region": region, "status": report.status, "accepted": report.accepted,
        "stored": report.stored, "pending": report.pending,
    }  # fmt: skip


def command_demo(
    context: typer.Context,
    seconds: Annotated[float, typer.Option(min=2, max=600, help="how long the fleet emits")] = 20.0,
    rate: Annotated[
        float, typer.Option(min=10, max=100_000, help="events a second, all regions together")
    ] = 6000.0,
    outage: Annotated[
        float, typer.Option(min=0, max=300, help="seconds without the broker, in the middle")
    ] = 5.0,
    seed: Annotated[int, typer.Option(help="the fleet's seed")] = 2026,
    keep: Annotated[Path | None, typer.Option(help="keep the demo's state in this folder")] = None,
) -> None:
    """The main job once: fleets in three regions, a core, an outage, the balance to the row, queries."""
    from pipeline.demo.demo import Demo, run_demo

    here = session(context)
    raise typer.Exit(run_demo(here, Demo(seconds, rate, outage, seed, keep)))
