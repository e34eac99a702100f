"""The command line: ``pipeline COMMAND``; exit status 0 ok, 1 failed, 2 wrong use or configuration.

Comes in: arguments. Goes out: text for people on a terminal, JSON with ``--json``. Commands live in one
module per audience; this one holds what they share.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from pipeline.cli import edge
from pipeline.cli.output import Session
from pipeline.config import load_config
from pipeline.errors import BasisEnded, ConfigError, PipelineError


class Commands(TyperGroup):
    """The commands, those of other roles than the edge loaded when one of them is asked for."""

    _complete = False

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, those of the edge last."""
        self._complete_now()
        return sorted(super().list_commands(ctx), key=lambda name: name == "edge")

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, None when there is none of that name."""
        if cmd_name not in self.commands:
            self._complete_now()
        return super().get_command(ctx, cmd_name)

    def _complete_now(self) -> None:
        if not self._complete:
            self._complete = True
            others = typer.main.get_group(_others())
            self.commands = {**others.commands, **self.commands}


def _others() -> typer.Typer:
    """Everything that an edge agent has no memory for."""
    from pipeline.cli import consents, data, keys, local, policies, roles

    others = typer.Typer()
    for module in (local, roles, data, policies, keys, consents):
        module.add_to(others)
    return others


app = typer.Typer(
    name="pipeline", cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Edge events through Kafka into regional stores, each jurisdiction's policy checked like a type.",
)  # fmt: skip


@app.callback()
def common(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="configuration (default: pipeline.toml, if there is one)")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="folder for all that a run leaves (default: .pipeline)")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="log more")] = False,
) -> None:
    """Options that come before the command."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )  # fmt: skip
    # aiokafka logs several errors per try while a broker is away; ours say it once, with what is done.
    logging.getLogger("aiokafka").setLevel(logging.INFO if verbose else logging.CRITICAL)
    loaded = load_config(config)
    if state is not None:
        loaded = loaded.model_copy(update={"state": state})
    context.obj = Session(loaded, config, json)


edge.add_to(app)


def main() -> NoReturn:
    """Run the command named by the arguments and end the process with its exit status."""
    try:
        app(standalone_mode=True)
    except BasisEnded as error:
        _fail(error, 1)
    except ConfigError as error:
        _fail(error, 2)
    except PipelineError as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _fail(error: PipelineError, status: int) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(status)
