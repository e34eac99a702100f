"""Commands for events and rows: emit, replay, query, balance."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from connectors.lake import open_reader
from connectors.replay import Replay
from pipeline.balance import BALANCED, OFF, BalanceReport
from pipeline.cli.output import Session, session
from pipeline.demo.example import example
from pipeline.edge_session import drained_edge
from pipeline.errors import ConfigError
from pipeline.evidence import weigh_settled
from pipeline.mapping import Mapping, find_mapping
from pipeline.pacing import pace, parse_speed

Region = Annotated[str, typer.Option(help="the region")]


class Format(StrEnum):
    """How rows are printed or written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"
    ARROW = "arrow"


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("emit")(command_emit)
    app.command("replay")(command_replay)
    app.command("query")(command_query)
    app.command("balance")(command_balance)


def command_emit(
    context: typer.Context,
    event: Annotated[str, typer.Argument(help="the event's name")],
    fields: Annotated[
        str, typer.Argument(help="its fields as JSON; '-' reads standard input; default: an example")
    ] = "",
    source: Annotated[str, typer.Option(help="who emits")] = "",
    jurisdiction: Annotated[str, typer.Option(help="where it was collected, ISO 3166")] = "",
    region: Annotated[str, typer.Option(help="region of the example")] = "eu",
    show: Annotated[bool, typer.Option(help="only show the example, emit nothing")] = False,
) -> None:
    """Send one event through an edge of its own and wait until the broker has it."""
    here = session(context)
    if event not in here.project.schemas.events:
        known = ", ".join(sorted(here.project.schemas.events))
        raise ConfigError(f"unknown event {event!r}; there are {known}", operation="emit")
    row = _row(here, event, fields, region)
    source = source or row.pop("source", "")
    jurisdiction = jurisdiction or row.pop("jurisdiction", "")
    when = row.pop("event_time", datetime.now(UTC))
    row = {name: value for name, value in row.items() if name not in ("source", "jurisdiction")}
    if show:
        here.print_json({"source": source, "jurisdiction": jurisdiction, "event_time": when, **row})
        return
    with drained_edge(here.project, "emit") as client:
        receipt = client.emit(
            event, row, source=source,
            event_time=datetime.fromisoformat(when) if isinstance(when, str) else when,
            jurisdiction=jurisdiction,
        )  # fmt: skip
    answer = {"spool": receipt.spool, "lane": receipt.lane, "sequence": receipt.first_sequence}
    here.print_json(answer) if here.json else here.console.print(f"accepted and forwarded: {answer}")


def _row(here: Session, event: str, fields: str, region: str) -> dict[str, Any]:
    if not fields:
        return example(here.project.schemas.events[event], region)
    try:
        row = json.loads(sys.stdin.read() if fields == "-" else fields)
    except ValueError as error:
        raise ConfigError(f"the fields are not JSON: {error}", operation="emit") from None
    if not isinstance(row, dict):
        raise ConfigError("expected a JSON object of fields", operation="emit")
    return row


def command_replay(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="CSV, Parquet or JSON lines, also .gz")],
    event: Annotated[str, typer.Option(help="the event its rows are")],
    region: Annotated[str | None, typer.Option(help="its jurisdictions must belong to this region")] = None,
    jurisdiction: Annotated[str | None, typer.Option(help="where all rows were collected")] = None,
    mapping: Annotated[
        str | None, typer.Option(help="a mapping: a TOML file, or the name of a shipped one")
    ] = None,
    speed: Annotated[str, typer.Option(help="max, recorded, or a factor like 8x")] = "max",
    on_bad: Annotated[str, typer.Option(help="a row that cannot be an event: stop or skip")] = "stop",
) -> None:
    """Stream a file as events through an edge of its own, and wait until the broker has them."""
    here = session(context)
    if event not in here.project.schemas.events:
        known = ", ".join(sorted(here.project.schemas.events))
        raise ConfigError(f"unknown event {event!r}; there are {known}", operation="replay")
    if on_bad not in ("stop", "skip"):
        raise ConfigError(f"expected stop or skip, got {on_bad!r}", operation="replay", place="--on-bad")
    factor = parse_speed(speed)
    declared = find_mapping(mapping, here.config.schemas_path()) if mapping else None
    rows = Replay(
        file, here.project.schemas.events[event], declared,
        jurisdiction=_jurisdiction(here, region, jurisdiction, declared),
        on_bad=on_bad,  # type: ignore[arg-type]
    )  # fmt: skip
    with _bar(here) as bar, drained_edge(here.project, f"replay-{event}", bar) as client:
        task = bar.add_task("accepted", total=None)
        for batch in rows if factor is None else pace(rows, factor):
            client.emit_many(event, batch)
            bar.update(task, advance=len(batch))
    tally = rows.tally
    answer = {"read": tally.read, "sent": tally.sent, "skipped": tally.skipped}
    if here.json:
        here.print_json({**answer, "bad": {f"{f}: {p}": n for (f, p), n in tally.bad.items()}})
        return
    here.console.print(
        f"{tally.read:,} rows read, {tally.sent:,} accepted and forwarded, {tally.skipped:,} skipped"
    )
    for (name, problem), count in tally.bad.items():
        here.console.print(f"  skipped {count:,}: {name}: {problem}")


def _bar(here: Session) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=here.progress, disable=here.json)


def _jurisdiction(
    here: Session, region: str | None, jurisdiction: str | None, declared: Mapping | None
) -> str | None:
    """The given jurisdiction, or the region's only one; a region with several needs to be told which."""
    if region is None:
        return jurisdiction
    here.config.region(region)
    there = sorted(here.project.packs.jurisdictions(region))
    if jurisdiction is None:
        if len(there) == 1 or (declared and declared.jurisdiction):
            return there[0] if len(there) == 1 else None
        raise ConfigError(
            f"region {region} has {len(there)} jurisdictions", operation="replay", place="--jurisdiction",
            remedy=f"say where the rows were collected, one of {', '.join(there)}",
        )  # fmt: skip
    if jurisdiction not in there:
        raise ConfigError(
            f"it does not belong to region {region}", operation="replay", place="--jurisdiction"
        )
    return jurisdiction


def command_query(
    context: typer.Context,
    sql: Annotated[str, typer.Argument(help="one SELECT over the region's tables")],
    region: Region,
    snapshot: Annotated[int | None, typer.Option(help="the store as of this snapshot")] = None,
    form: Annotated[Format, typer.Option("--format", help="how to print")] = Format.TABLE,
    output: Annotated[
        Path | None, typer.Option(help="write here instead (csv, parquet, arrow, json)")
    ] = None,
) -> None:
    """Ask a region's store, read-only, also while its writer writes."""
    here = session(context)
    form = Format.JSON if here.json else form
    if form in (Format.PARQUET, Format.ARROW) and output is None and sys.stdout.isatty():
        raise ConfigError(
            f"{form} is not for a terminal", operation="query", remedy="use --output FILE or a pipe"
        )
    with open_reader(here.config.store_path(here.regions(region)[0])) as lake:
        rows = lake.query(sql, snapshot=snapshot)
    if form is Format.TABLE and output is None:
        here.print_rows(rows.column_names, [list(row.values()) for row in rows.to_pylist()])
        here.progress.print(f"{len(rows):,} rows", style="dim")
    else:
        _write(rows, form, output)


def _write(rows: pa.Table, form: Format, output: Path | None) -> None:
    with output.open("wb") if output else open(sys.stdout.fileno(), "wb", closefd=False) as sink:
        if form is Format.PARQUET:
            pyarrow.parquet.write_table(rows, sink)
        elif form is Format.ARROW:
            with pyarrow.ipc.new_stream(sink, rows.schema) as stream:
                stream.write_table(rows)
        elif form is Format.CSV or form is Format.TABLE:
            pyarrow.csv.write_csv(rows, sink)
        else:
            sink.write(
                json.dumps(rows.to_pylist(), default=str, ensure_ascii=False, indent=2).encode() + b"\n"
            )


def _side_by_side(reports: list[BalanceReport]) -> list[tuple[Any, ...]]:
    """The equation's lines, one column per region."""
    lines = zip(*(report.rows() for report in reports), strict=True)
    table: list[tuple[Any, ...]] = [(line[0][0], *(count for _, count in line)) for line in lines]
    return [*table, ("status", *(report.status for report in reports))]


def command_balance(
    context: typer.Context,
    region: Annotated[str | None, typer.Option(help="default: every region")] = None,
    wait: Annotated[
        float, typer.Option(min=0, help="seconds to wait until everything has come to rest")
    ] = 0.0,
    distinct: Annotated[
        bool, typer.Option(help="also count distinct positions in the store (reads all rows)")
    ] = False,
) -> None:
    """Every accepted event to the row: stored, filtered, quarantined, evicted, pending; exit 1 when off."""
    here = session(context)
    reports = [
        asyncio.run(weigh_settled(here.project, name, wait, distinct=distinct))
        for name in here.regions(region)
    ]
    if here.json:
        here.print_json(
            {r.region: {"status": r.status, **dict(r.rows()), "findings": r.findings} for r in reports}
        )
    else:
        here.print_table(("events", *(r.region for r in reports)), _side_by_side(reports))
        for report in reports:
            for finding in (*report.findings, *report.remarks):
                here.console.print(
                    f"{report.region}: {finding}", style="red" if report.status == OFF else "dim"
                )
    moving = wait > 0 and any(r.status != BALANCED for r in reports)
    if moving or any(not r.ok for r in reports):
        raise typer.Exit(1)
