"""Commands for those who write schemas and policies: schema, policy, keys, config."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.output import session
from pipeline.errors import ConfigError
from pipeline.policy import check_flow, derived_schemas, load_packs
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
    app.add_typer(policy, name="policy")
    keys = typer.Typer(no_args_is_help=True, help="Keys of the pseudonyms.")
    keys.command("create")(keys_create)
    app.add_typer(keys, name="keys")
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


def policy_check(context: typer.Context) -> None:
    """Type-check every event in every region: what each field becomes, or why nothing may start."""
    here = session(context)
    folder = here.config.schemas_path()
    events = SchemaStore.load(folder).events
    packs = load_packs(folder / "policies", events)
    rows, faults = [], []
    for region in packs.regions:
        for name, event in sorted(events.items()):
            try:
                flow = check_flow(packs.pack(region), event, region, region)
            except ConfigError as error:
                faults.append(str(error))
                continue
            rows += [
                {
                    "event": name, "region": region, "field": field.name, "tags": sorted(field.tags),
                    "operator": decision.operator.name, "result": sorted(decision.result),
                    "source": decision.source,
                }
                for decision in flow.decisions for field in decision.fields
            ]  # fmt: skip
    if here.json:
        here.print_json({"fields": rows, "violations": faults})
    else:
        here.print_table(
            ("event", "region", "field", "is", "operator", "becomes"),
            [
                (
                    r["event"],
                    r["region"],
                    r["field"],
                    ", ".join(r["tags"]),
                    r["operator"],
                    ", ".join(r["result"]) or "-",
                )
                for r in rows
            ],
        )
        for fault in faults:
            here.console.print(fault, style="red")
    if faults:
        raise typer.Exit(2)


def keys_create(
    context: typer.Context, region: Annotated[str | None, typer.Option(help="default: every region")] = None
) -> None:
    """Make the root keys of pseudonyms that are missing; an existing key is never touched."""
    here = session(context)
    regions = here.regions(region)
    here.project.create_keys(regions)
    paths = {name: str(here.config.keys_path(name)) for name in regions}
    if here.json:
        here.print_json(paths)
    for name, path in paths.items():
        if not here.json:
            here.console.print(f"{name}: {path}")


def config_show(context: typer.Context) -> None:
    """The effective configuration, secrets masked."""
    here = session(context)
    print(here.config.model_dump_json(indent=2))
