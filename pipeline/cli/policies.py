"""Commands for those who write schemas and policies: schema, policy, config."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape

from pipeline.cli import policy_data
from pipeline.cli.output import Session, session
from pipeline.errors import ConfigError
from pipeline.policy import (
    Explanation,
    Flow,
    Judgement,
    Survey,
    derived_schemas,
    explain,
    judge_all,
    load_packs,
    run_examples,
    survey_packs,
)
from pipeline.policy.record import processing_record, record_markdown
from pipeline.schemas import EventType, SchemaStore, lock, source_schemas


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    schema = typer.Typer(no_args_is_help=True, help="Schemas and their lock.")
    schema.command("lint")(schema_lint)
    schema.command("check")(schema_check)
    schema.command("lock")(schema_lock)
    app.add_typer(schema, name="schema")
    policy = typer.Typer(no_args_is_help=True, help="What may be where.")
    policy.command("check")(policy_check)
    policy.command("explain")(policy_explain)
    policy.command("test")(policy_test)
    policy_data.add_to(policy)
    policy.command("record")(policy_record)
    app.add_typer(policy, name="policy")
    app.command("config")(config_show)


def schema_lint(context: typer.Context) -> None:
    """Every field documented, tagged, with its unit; nothing that a decoder could be hurt with."""
    here = session(context)
    found = source_schemas(here.config.schemas_path())
    here.print_json(sorted(found)) if here.json else here.console.print(f"{len(found)} schemas are sound")


def schema_check(context: typer.Context) -> None:
    """The files against the lock, and the curated schemas against what the packs make."""
    here = session(context)
    folder = here.config.schemas_path()
    store = SchemaStore.load(folder)
    derived = derived_schemas(load_packs(folder / "policies", store.events), store.events)
    for subject, schema in derived.items():
        if store.latest(subject).schema != schema:
            raise ConfigError(
                f"{subject} differs from the lock", operation="schema check", place=str(folder),
                remedy="run `pipeline schema lock`",
            )  # fmt: skip
    if here.json:
        here.print_json([{"id": e.id, "subject": e.subject, "version": e.version} for e in store.entries()])
    else:
        here.console.print(f"{len(store.entries())} locked schemas, all files and policies agree with them")


def schema_lock(
    context: typer.Context,
    breaking: Annotated[bool, typer.Option(help="also lock a version that old readers cannot read")] = False,
) -> None:
    """Give ids to new versions of schemas; ids that exist never change."""
    here = session(context)
    folder = here.config.schemas_path()
    sources = source_schemas(folder)
    events = {
        name: EventType(name, 0, 0, schema)
        for name, schema in sources.items()
        if not name.startswith("control.")
    }
    derived = derived_schemas(load_packs(folder / "policies", events), events)
    added = lock(folder, derived, breaking=breaking)
    if here.json:
        here.print_json([{"id": e.id, "subject": e.subject, "version": e.version} for e in added])
        return
    for entry in added:
        here.console.print(f"{entry.id}: {entry.subject} version {entry.version}")
    here.console.print(f"{len(added)} new" if added else "nothing new")


def policy_check(
    context: typer.Context,
    fields: Annotated[bool, typer.Option("--fields", help="what becomes of each field, too")] = False,
) -> None:
    """Type-check every event, from every origin to every destination; tell what is not permitted and all that
    is wrong. Ends with status 2 when anything is."""
    here = session(context)
    survey, events = _surveyed(here)
    judged = judge_all(survey, events)
    if here.json:
        here.print_json(
            {
                "flows": [_flow_row(judged, flow) for flow in judged.flows],
                "fields": [row for flow in judged.flows for row in _field_rows(flow)],
                "denied": [asdict(denial) for denial in judged.denied],
                "violations": [asdict(violation) for violation in judged.violations],
            }
        )
    else:
        _print_judged(here, judged, len(events), fields)
    if judged.violations:
        raise typer.Exit(2)


def _print_judged(here: Session, judged: Judgement, events: int, fields: bool) -> None:
    here.print_table(
        ("event", "from", "to", "held there", "faults"),
        [
            (r["event"], r["origin"], r["destination"], ", ".join(r["held"]), str(r["violations"]))
            for r in (_flow_row(judged, flow) for flow in judged.flows)
        ],
    )
    if fields:
        for row in (row for flow in judged.flows for row in _field_rows(flow)):
            line = "{event}.{field}: {origin} to {destination}: {operator}: ".format(**row)
            line += f"{', '.join(row['tags'])} -> {', '.join(row['result']) or 'nothing'} | {row['source']}"
            here.console.print(line, markup=False, soft_wrap=True)
    for line in _denied(judged, events):
        here.console.print(line, markup=False, soft_wrap=True)
    for violation in judged.violations:
        here.console.print(violation.line, style="red", markup=False, soft_wrap=True)
    legs = len({(flow.terms.origin, flow.region) for flow in judged.flows})
    told = f"{len(judged.flows)} flows on {legs} legs, {len(judged.violations)} violations"
    here.console.print(told, style="red" if judged.violations else "")


def _flow_row(judged: Judgement, flow: Flow) -> dict[str, Any]:
    me = (flow.event.name, flow.terms.origin, flow.region)
    against = [v for v in judged.violations if (v.event, v.origin, v.destination) == me]
    held = sorted({tag for decision in flow.columns for tag in decision.result})
    return {
        "event": flow.event.name, "origin": flow.terms.origin, "destination": flow.region, "held": held,
        "basis": flow.terms.basis, "valid_until": str(flow.terms.valid_until or ""),
        "violations": len(against),
    }  # fmt: skip


def _field_rows(flow: Flow) -> Iterator[dict[str, Any]]:
    for decision in flow.decisions:
        for field in decision.fields:
            yield {
                "event": flow.event.name, "origin": flow.terms.origin, "destination": flow.region,
                "region": flow.region, "field": field.name, "tags": sorted(field.tags),
                "operator": decision.operator.name,
                "result": sorted(decision.result) if decision.output else [],
                "rule": decision.rule, "source": decision.source,
            }  # fmt: skip


def _denied(judged: Judgement, events: int) -> Iterator[str]:
    """What is not permitted, one line per origin, reason and events."""
    legs: dict[tuple[str, str, str], list[str]] = {}
    for denial in judged.denied:
        legs.setdefault((denial.origin, denial.reason, denial.destination), []).append(denial.event)
    lines: dict[tuple[str, str, str], list[str]] = {}
    for (origin, reason, destination), names in legs.items():
        what = "every event" if len(names) == events else ", ".join(names)
        lines.setdefault((origin, what, reason), []).append(destination)
    for (origin, what, reason), destinations in lines.items():
        yield f"denied: {origin} to {', '.join(destinations)}: {what}: {reason}"


def policy_explain(
    context: typer.Context,
    event: Annotated[str, typer.Option(help="name of the event")],
    field: Annotated[str, typer.Option(help="name of the field")],
    region: Annotated[str, typer.Option(help="where it is collected and lands")],
    to: Annotated[str | None, typer.Option(help="over the border to this region")] = None,
) -> None:
    """What happens to a field in a region or over a border, by which rule and law; or why it is denied."""
    here = session(context)
    survey, events = _surveyed(here)
    if event not in events:
        raise ConfigError(
            f"no such event {event!r}; there are {', '.join(sorted(events))}", operation="policy explain"
        )
    ends = ("", region, to or region)
    broken = [v for v in survey.violations if v.destination in ends and v.origin in ends]
    for end in {region, to or region} - set(survey.packs.regions):
        if unread := [v for v in broken if v.destination == end]:
            raise ConfigError(
                "; ".join(map(str, unread)), operation="policy explain", place=f"policies/{end}.toml"
            )
    told = explain(survey.packs, events[event], field, region, to or region)
    if here.json:
        faults = [asdict(violation) for violation in broken]
        here.print_json({**asdict(told), "outcome": told.outcome, "pack_violations": faults})
        return
    for name, text in _told(told):
        here.console.print(f"{name:<10} {text}", markup=False, soft_wrap=True)
    for violation in (*told.against, *broken):
        here.console.print(violation.line, style="red", markup=False, soft_wrap=True)
    if told.others:
        here.console.print(f"{told.others} more faults of {event}: see policy check", style="red")


def policy_test(
    context: typer.Context, region: Annotated[str | None, typer.Option(help="default: every pack")] = None
) -> None:
    """Run the examples of the packs: does what leaves look as their writers expect."""
    here = session(context)
    folder = here.config.schemas_path()
    events = SchemaStore.load(folder).events
    packs = load_packs(folder / "policies", events)
    regions = packs.regions if region is None else (region,)
    results = [result for name in regions for result in run_examples(packs, name, events)]
    failed = [result for result in results if not result.passed]
    if here.json:
        here.print_json([{**asdict(result), "passed": result.passed} for result in results])
    else:
        here.print_table(
            ("region", "event", "example", "result"),
            [(r.region, r.event, escape(r.name), "ok" if r.passed else "failed") for r in results],
        )
        for result in failed:
            for fault in result.faults:
                line = f"{result.region}, {result.name}: {fault}"
                here.console.print(line, style="red", markup=False, soft_wrap=True)
        here.console.print(f"{len(results) - len(failed)} of {len(results)} examples as expected")
    if failed:
        raise typer.Exit(1)


def policy_record(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json/--markdown", help="for machines or for people")] = False,
) -> None:
    """The record of processing activities (GDPR 30), from the configuration and the packs."""
    here = session(context)
    folder = here.config.schemas_path()
    events = SchemaStore.load(folder).events
    packs = load_packs(folder / "policies", events)
    record = processing_record(packs, events, here.config.regions, here.config.record)
    if as_json or here.json:
        here.print_json(record)
    else:
        print(record_markdown(record), end="")


def _surveyed(here: Session) -> tuple[Survey, dict[str, EventType]]:
    """The packs as they are, sound or not, and the events."""
    folder = here.config.schemas_path()
    events = SchemaStore.load(folder).events
    return survey_packs(folder / "policies", events, now_us=time.time_ns() // 1000), events


def _told(told: Explanation) -> list[tuple[str, str]]:
    """The lines of an explanation."""
    lines = [
        ("field", f"{told.event}.{told.field}: {told.doc}"),
        *(("is", f"{tag}: {meaning}") for tag, meaning in told.tags.items()),
        ("outcome", told.outcome),
        ("basis", told.basis),
        ("valid", f"until {told.valid_until}" if told.valid_until else ""),
        ("rule", told.rule or "none"),
        ("operator", f"{told.operator}: {told.does}" if told.operator else "none"),
        *(("with", f"{name} = {value}") for name, value in told.parameters.items()),
        ("effect", told.effect),
        ("becomes", ", ".join(told.becomes)),
        ("column", told.column or ""),
        ("source", told.source),
        ("crowd", told.crowd),
        ("consent", told.consent),
        *(("filter", f"{name}: {source}") for name, source in told.filters.items()),
    ]
    return [(name, text) for name, text in lines if text]


def config_show(context: typer.Context) -> None:
    """The effective configuration, secrets masked."""
    here = session(context)
    print(here.config.model_dump_json(indent=2))
