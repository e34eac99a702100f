"""Commands for what people say about the use of their data: consent grant, withdraw, object, forget, show."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from pipeline import consents
from pipeline.cli.output import session
from pipeline.errors import ConfigError
from pipeline.policy.consent import Choice

Region = Annotated[str, typer.Option(help="the region whose events it is about")]
Purpose = Annotated[str, typer.Option(help="a purpose of the region's pack")]
Subject = Annotated[
    str, typer.Option(help="the person, as the event's field names them; - reads a line of input")
]

_HELP = {
    Choice.GRANTED: ("grant", "The person agrees: events for this purpose pass where consent is needed."),
    Choice.WITHDRAWN: (
        "withdraw",
        "The person no longer agrees: no event after this passes for the purpose.",
    ),
    Choice.OBJECTED: ("object", "The person objects: no event after this passes for the purpose."),
    None: ("forget", "As if the person had never said anything."),
}


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    consent = typer.Typer(no_args_is_help=True, help="What people say about the use of their data.")
    for choice, (name, text) in _HELP.items():
        consent.command(name, help=text)(_says(choice))
    consent.command("show", help="What the person said last.")(consent_show)
    app.add_typer(consent, name="consent")


def _says(choice: Choice | None) -> Callable[..., None]:
    def command(context: typer.Context, region: Region, purpose: Purpose, subject: Subject) -> None:
        here = session(context)
        here.config.region(region)
        asyncio.run(consents.say(here.project, region, purpose, _named(subject), choice))
        word = choice.value if choice else "forgotten"
        if here.json:
            here.print_json({"region": region, "purpose": purpose, "choice": word})
        else:
            here.console.print(f"{word}: {purpose} in {region}; every event processed from now on heeds it")

    return command


def consent_show(context: typer.Context, region: Region, purpose: Purpose, subject: Subject) -> None:
    """What the person said last."""
    here = session(context)
    here.config.region(region)
    choice = asyncio.run(consents.said(here.project, region, purpose, _named(subject)))
    word = choice.value if choice else "nothing"
    if here.json:
        here.print_json({"region": region, "purpose": purpose, "choice": word})
    else:
        here.console.print(f"{word}: {purpose} in {region}")


def _named(subject: str) -> str:
    """The subject; from standard input it stays out of the shell's history and of the process list."""
    name = sys.stdin.readline().rstrip("\n") if subject == "-" else subject
    if not name:
        raise ConfigError("the subject is empty", operation="consent")
    return name
