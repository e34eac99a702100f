"""Commands that run policies on data: policy apply, policy plan."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from connectors.file_sink import FileSink
from connectors.files import Rows, open_rows
from pipeline.cli.output import Session, session
from pipeline.errors import ConfigError
from pipeline.mapping import Mapping, find_mapping
from pipeline.policy.compare import LegComparison
from pipeline.policy.offline import Offline, Reject
from pipeline.policy_comparison import Source, comparisons, proposed, replayed
from pipeline.policy_session import event_of, file_conform, offline
from pipeline.reasons import Reason

Event = Annotated[str, typer.Option(help="the event its rows are")]
Region = Annotated[str, typer.Option(help="where the events were collected")]
To = Annotated[str | None, typer.Option(help="the region across the border; the rows are curated ones then")]
REJECTS = pa.schema([("row", pa.int64()), ("field", pa.string()), ("reason", pa.string())])


def add_to(policy: typer.Typer) -> None:
    """Register the commands."""
    policy.command("apply")(policy_apply)
    policy.command("plan")(policy_plan)


def policy_apply(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="CSV, Parquet or JSON lines, also .gz")],
    event: Event,
    region: Region,
    out: Annotated[Path, typer.Option(help="what may leave: .parquet or .csv")],
    to: To = None,
    mapping: Annotated[
        str | None, typer.Option(help="a mapping: a TOML file, or the name of a shipped one")
    ] = None,
    jurisdiction: Annotated[str | None, typer.Option(help="where all rows were collected")] = None,
    rejects: Annotated[
        Path | None, typer.Option(help="rows that fail a check: number, field, reason (.csv, .parquet)")
    ] = None,
) -> None:
    """Run a leg's plan on a file; what it lets through appears as a whole file or not at all."""
    here = session(context)
    _demand_distinct(file, out, rejects)
    declared = find_mapping(mapping, here.config.schemas_path()) if mapping else None
    source = open_rows(file, declared.read if declared else None)
    kind = event_of(here.project, event, "policy apply")
    if to is not None and (declared or jurisdiction):
        raise ConfigError("curated rows have names and jurisdictions of their own", operation="policy apply",
                          place="--to", remedy="leave out --mapping and --jurisdiction")  # fmt: skip
    where = _jurisdiction(here, region, jurisdiction, declared)
    conform = file_conform(here.project, (region, to or region), kind, source.schema, declared, where)
    run = offline(here.project, (region, to or region), kind, conform)
    with ExitStack() as stack:
        bar = stack.enter_context(_bar(here))
        sink = stack.enter_context(FileSink(out, run.schema, operation="policy apply"))
        refused = stack.enter_context(FileSink(rejects, REJECTS)) if rejects else None
        task = bar.add_task("rows", total=None)
        for rows in source.batches(conform.columns):
            allowed, bad = run.apply(rows.batch, rows.numbers, _broken(rows))
            sink.write(allowed)
            if refused is not None and bad:
                refused.write(pa.RecordBatch.from_pylist([vars(reject) for reject in bad], REJECTS))
            bar.update(task, advance=len(rows.numbers) + len(rows.broken))
    _tell(here, run)


def _broken(rows: Rows) -> tuple[Reject, ...]:
    return tuple(Reject(row.number, row.field, str(Reason.UNDECODABLE)) for row in rows.broken)


def _demand_distinct(file: Path, out: Path, rejects: Path | None) -> None:
    paths = [path.resolve() for path in (file, out, rejects) if path is not None]
    if len(set(paths)) < len(paths):
        raise ConfigError("input, --out and --rejects must be different files", operation="policy apply")


def _jurisdiction(here: Session, region: str, given: str | None, declared: Mapping | None) -> str | None:
    """The given one, which has to be the region's; else its only one, where the mapping says none."""
    there = sorted(here.project.packs.jurisdictions(region))
    if given is not None and given not in there:
        raise ConfigError(f"it does not belong to region {region}", operation="policy apply",
                          place="--jurisdiction", remedy=f"one of {', '.join(there)}")  # fmt: skip
    if given is None and declared and declared.jurisdiction is None and len(there) == 1:
        return there[0]
    return given


def _tell(here: Session, run: Offline) -> None:
    done = run.summary
    rejected = [
        {"field": name, "reason": reason, "rows": count} for (name, reason), count in done.rejected.items()
    ]
    if here.json:
        here.print_json({
            "read": done.read, "passed": done.passed, "filtered": dict(done.filtered), "rejected": rejected,
            "columns": run.schema.names, "policy_hash": run.schema.metadata[b"policy_hash"].decode(),
        })  # fmt: skip
        return
    here.console.print(
        f"{done.read:,} rows read, {done.passed:,} passed, {done.filtered.total():,} filtered, "
        f"{done.rejected.total():,} rejected"
    )
    for name, count in done.filtered.items():
        here.console.print(f"  filtered {count:,}: {name}", markup=False)
    for row in rejected:
        here.console.print(f"  rejected {row['rows']:,}: {row['field']}: {row['reason']}", markup=False)


def policy_plan(
    context: typer.Context,
    new: Annotated[Path, typer.Option(help="a folder of packs, or one pack that takes its region's place")],
    event: Event,
    region: Region,
    old: Annotated[Path | None, typer.Option(help="what to compare with; default: the packs in use")] = None,
    to: To = None,
    topic: Annotated[bool, typer.Option("--topic", help="replay the region's raw topic")] = False,
    file: Annotated[Path | None, typer.Option(help="replay a file; curated rows when --to is given")] = None,
    snapshot: Annotated[
        int | None, typer.Option(help="replay the region's store as of this snapshot")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="at most so many events")] = 100_000,
) -> None:
    """What a new policy would change: the same events under both, per leg and column; never a value."""
    here = session(context)
    if sum((topic, file is not None, snapshot is not None)) != 1:
        raise ConfigError("expected one of --topic, --file, --snapshot", operation="policy plan")
    kind = event_of(here.project, event, "policy plan")
    here.config.region(region)
    now_us = time.time_ns() // 1000
    before, after = proposed(here.project, old, now_us), proposed(here.project, new, now_us, base=old)
    if before.violations:
        raise ConfigError("; ".join(map(str, before.violations)), operation="policy plan", place="--old")
    if after.violations:
        _tell_violations(here, [violation.line for violation in after.violations])
        raise typer.Exit(1)
    curated = snapshot is not None or (file is not None and to is not None)
    source = Source(topic, file, snapshot, curated)
    legs = comparisons(here.project, (before.packs, after.packs), kind, (region, to), source)
    with _bar(here) as bar:
        task = bar.add_task("events replayed", total=None)
        for batch in replayed(here.project, before.packs, kind, region, source, limit):
            for leg in legs:
                leg.feed(batch, now_us)
            bar.update(task, advance=len(batch))
    if here.json:
        here.print_json({"event": event, "region": region, "legs": [leg.as_dict() for leg in legs]})
        return
    for leg in legs:
        _show(here, leg)


def _tell_violations(here: Session, lines: list[str]) -> None:
    if here.json:
        here.print_json({"violations": lines})
        return
    for line in lines:
        here.console.print(line, style="red", markup=False, soft_wrap=True)


def _show(here: Session, leg: LegComparison) -> None:
    told = leg.as_dict()
    passed_before, passed_after = told["passed"]
    here.console.print(
        f"{leg.origin} to {leg.destination}: {leg.status}; {leg.rows:,} events, {passed_before:,} passed "
        f"before, {passed_after:,} after ({leg.keys} keys)",
        style="bold", markup=False, soft_wrap=True,
    )  # fmt: skip
    if leg.not_replayed:
        here.console.print(f"  not replayed: {', '.join(leg.not_replayed)}", markup=False)
    for move in told["moved"]:
        here.console.print(f"  {move['rows']:,} {move['before']} -> {move['after']}", markup=False)
    different = [column for column in told["columns"] if column["kinds"] or column.get("changed")]
    for column in different:
        here.console.print(f"  {_line(column)}", markup=False, soft_wrap=True)
    here.console.print(f"  {len(told['columns']) - len(different)} column(s) as before", markup=False)


def _line(column: dict[str, Any]) -> str:
    """One column's change: what the rules change, and what that does to the values."""
    tags = _both([", ".join(side) for side in column["tags"]])
    parts = [f"{', '.join(column['kinds']) or 'values'}: {_both(column['operator'])}", f"tags {tags}"]
    if column["drawn"]:
        parts.append("values are drawn at random")
    elif "changed" in column:
        parts.append(f"{100 * column['changed']:.2f} % of values differ")
        parts.append(f"{100 * column['newly_null']:.2f} % newly null")
    parts.append(f"distinct {_both(column['distinct'])}")
    return f"{column['column']}: {'; '.join(parts)}"


def _both(pair: list[Any]) -> str:
    before, after = ("-" if side in (None, "") else str(side) for side in pair)
    return before if before == after else f"{before} -> {after}"


def _bar(here: Session) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=here.progress, disable=here.json)
