"""Commands for those who keep the keys: master, create, list, import, rewrap, rotate, destroy.

No command prints a key, whole or in part. What each does to the files is in docs/keys.md.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.output import Session, session
from pipeline.config import load_config
from pipeline.errors import ConfigError, PipelineError
from pipeline.keyring import Keyring
from pipeline.policy.key_changes import Change, destroy_keys, rewrap_keys, rotate_key
from pipeline.policy.keys import import_key
from pipeline.policy.root_files import RootName, list_roots, read_root, unwrapped
from pipeline.policy.secret_files import read_secret
from pipeline.policy.wrapping import create_master

Region = Annotated[str, typer.Option(help="whose keys")]
Purpose = Annotated[str, typer.Option(help="a purpose of the region's pack")]
Regions = Annotated[str | None, typer.Option(help="default: every region")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    keys = typer.Typer(no_args_is_help=True, help="Root keys of the pseudonyms, and what wraps them.")
    keys.command("master")(keys_master)
    keys.command("create")(keys_create)
    keys.command("list")(keys_list)
    keys.command("import")(keys_import)
    keys.command("rewrap")(keys_rewrap)
    keys.command("rotate")(keys_rotate)
    keys.command("destroy")(keys_destroy)
    app.add_typer(keys, name="keys")


def keys_master(
    context: typer.Context, file: Annotated[Path, typer.Argument(help="must not exist yet")]
) -> None:
    """Make a master key in a file of its own; name it in [keys] master_file."""
    here = session(context)
    if not create_master(file):
        raise ConfigError(
            "there is a file already", operation="keys master", place=str(file),
            remedy="a key is never overwritten: name another file",
        )  # fmt: skip
    here.print_json({"master": str(file)}) if here.json else here.console.print(f"master key: {file}")


def keys_create(context: typer.Context, region: Regions = None) -> None:
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


@dataclass(frozen=True)
class Line:
    """One root of the list."""

    region: str
    purpose: str
    since: str
    until: str
    wrapping: str
    state: str


def keys_list(
    context: typer.Context,
    region: Regions = None,
    check: Annotated[bool, typer.Option(help="also unwrap each one")] = False,
) -> None:
    """Every root by its names, and what wraps it. With --check: exit 1 when one does not open."""
    here = session(context)
    lines, faults = [], []
    for place in here.regions(region):
        folder = here.config.keys_path(place)
        for name in list_roots(folder):
            wrapped_by, until, state = "", "", "there"
            try:
                root = read_root(folder, name)
                wrapped_by, until = root.wrapping, root.until
                if check:
                    unwrapped(folder, root, here.project.keys.wrapping(place))
                    state = "opens"
            except PipelineError as error:
                state = "fault"
                faults.append(str(error))
            lines.append(Line(name.region, name.purpose, name.since, until, wrapped_by, state))
    if here.json:
        here.print_json([vars(line) for line in lines])
    else:
        here.print_table(
            ("region", "purpose", "since", "until", "wrapped by", "state"),
            [
                (
                    line.region,
                    line.purpose,
                    line.since or "ever",
                    line.until or "-",
                    line.wrapping,
                    line.state,
                )
                for line in lines
            ],
        )
    for fault in faults:
        here.progress.print(fault, style="red", markup=False, soft_wrap=True)
    if faults:
        raise typer.Exit(1)


def keys_import(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="64 hex digits, mode 0600; destroy it afterwards")],
    region: Region,
    purpose: Purpose,
) -> None:
    """Bring in a root that was kept elsewhere, for a region and purpose that have none."""
    here = session(context)
    folder = here.config.keys_path(region)
    name = RootName(region, purpose)
    here.project.keys.prepare(region)
    path = import_key(folder, name, read_secret(file, mounted=True), here.project.keys.wrapping(region))
    _report(here, [Change(name, path, True)])


def keys_rewrap(
    context: typer.Context,
    old: Annotated[
        Path | None,
        typer.Option(help="the configuration as it was; default: as it is (a new transit version)"),
    ] = None,
    region: Regions = None,
) -> None:
    """Wrap every root by what the configuration says now. Changes no pseudonym; run again after a crash."""
    here = session(context)
    before = Keyring(load_config(old).model_copy(update={"state": here.config.state})) if old else None
    changes: list[Change] = []
    try:
        for name in here.regions(region):
            new = here.project.keys.wrapping(name)
            was = before.wrapping(name) if before is not None else new
            for change in rewrap_keys(here.config.keys_path(name), was, new):
                changes.append(change)
    finally:
        _report(here, changes)


def keys_rotate(
    context: typer.Context,
    region: Region,
    purpose: Purpose,
    since: Annotated[str, typer.Option("--from", help="first epoch of the new root, one that has not begun")],
) -> None:
    """A new random root from an epoch on; until then nothing changes."""
    here = session(context)
    kind = here.project.packs.pack(region).epoch
    if (kind == "quarter") != ("q" in since):
        raise ConfigError(
            f"epochs of {region} are by {kind}", operation="keys rotate", place=since,
            remedy=f"take the form {'2027-q2' if kind == 'quarter' else '2027-05'}",
        )  # fmt: skip
    latest_us = time.time_ns() // 1000 + int(here.config.limits.event_future_max_s * 1e6)
    wrapping = here.project.keys.wrapping(region)
    folder = here.config.keys_path(region)
    _report(here, [rotate_key(folder, RootName(region, purpose, since), wrapping, latest_us)])


def keys_destroy(
    context: typer.Context,
    region: Region,
    purpose: Purpose,
    before: Annotated[str, typer.Option(help="every generation that ends at this epoch or earlier")],
    yes: Annotated[bool, typer.Option("--yes", help="it cannot be undone, except from a backup")] = False,
) -> None:
    """Remove old roots: their pseudonyms can never again be made, tested or found for an erasure."""
    here = session(context)
    if not yes:
        raise ConfigError(
            "not confirmed", operation="keys destroy", place=f"{region}, {purpose}",
            remedy="see that nothing stored is older than the epoch, then add --yes",
        )  # fmt: skip
    oldest_us = time.time_ns() // 1000 - int(here.config.limits.event_age_max_s * 1e6)
    _report(here, destroy_keys(here.config.keys_path(region), region, purpose, before, oldest_us))


def _report(here: Session, changes: Sequence[Change]) -> None:
    if here.json:
        here.print_json([{"path": str(change.path), "changed": change.changed} for change in changes])
        return
    for change in changes:
        word = "changed" if change.changed else "as it was"
        here.console.print(f"{change.path}: {word}", markup=False, soft_wrap=True)
    here.console.print(f"{sum(change.changed for change in changes)} of {len(changes)} changed")
