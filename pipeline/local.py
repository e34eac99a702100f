"""The local stack: which processes it has, and how they are started, found and stopped.

Comes in: a project and the configuration file it came from. Goes out: a running stack under the state folder:
one broker; per region that collects one processor and one edge agent, per region that others' events cross to
one border processor, and per region one store writer.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.installation import Installation
from pipeline.stack import ProcessSpec, Progress, Stack, StackOptions, Started

if TYPE_CHECKING:
    from pipeline.service import Project

ROLES = ("process", "border", "store", "edge")
# The higher stops first: each drains what the one before sent.
STAGES = {"edge": 3, "process": 2, "border": 1, "store": 0}


def role_name(role: str, region: str) -> str:
    """A process's name: ``process-eu``."""
    return f"{role}-{region}"


def ready_file(project: Installation, role: str, region: str) -> Path:
    """Where a role announces that it works."""
    return project.config.run_path().resolve() / f"{role_name(role, region)}.ready"


def roles_of(project: Project, region: str) -> tuple[str, ...]:
    """The roles that have work in a region."""
    collects, receives = project.collects(region), bool(project.origins(region))
    works = {"process": collects, "border": receives, "store": collects or receives, "edge": collects}
    return tuple(role for role in ROLES if works[role])


def specs(project: Project, config_file: Path | None, roles: tuple[str, ...] = ROLES) -> list[ProcessSpec]:
    """One process per role and region, of the wanted roles."""
    file = ("--config", str(config_file.resolve())) if config_file else ()
    state = ("--state", str(project.config.state.resolve()))
    return [
        ProcessSpec(
            role_name(role, region),
            (sys.executable, "-m", "pipeline", *file, *state, role, "--region", region),
            ready_file(project, role, region),
            stage=STAGES[role],
        )
        for role in roles
        for region in project.config.regions
        if role in roles_of(project, region)
    ]


def stack(project: Project, *, detached: bool = True) -> Stack:
    """The stack of the project's state folder; nothing is started here."""
    limits = project.config.stack
    options = StackOptions(limits.start_timeout_s, limits.stop_timeout_s, detached)
    return Stack(project.config.state, project.broker(detached=detached), options)


def up(
    project: Project, local: Stack, processes: list[ProcessSpec], progress: Progress | None = None
) -> Started:
    """Start what does not run, keys and topics first. On ConfigError or TransientError nothing is left."""
    regions = list(project.config.regions)
    project.create_keys(regions)
    return local.up(processes, lambda: asyncio.run(project.ensure_topics(regions)), progress)
