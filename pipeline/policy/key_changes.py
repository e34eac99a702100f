"""Changes of roots that exist: another wrapping, another generation, the end of an old one.

Comes in: a folder of roots. Goes out: the same folder, changed file by file; each step is whole or not done,
and a command that was killed is run again to go on where it ended. Invariants: rewrapping changes no key;
a new generation changes no key of an epoch that an event can have had already.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.policy.derivation import KEY_BYTES
from pipeline.policy.root_files import (
    Root,
    RootName,
    epoch_start,
    generations,
    list_roots,
    read_root,
    rewrite_root,
    unwrapped,
    wrapped,
    write_root,
)
from pipeline.policy.secret_files import locked, refusal, remove_secret
from pipeline.policy.wrapping import Wrapping


@dataclass(frozen=True)
class Change:
    """One file; ``changed`` is False when it was as it should be already."""

    name: RootName
    path: Path
    changed: bool


def rewrap_keys(directory: Path, old: Wrapping, new: Wrapping) -> Iterator[Change]:
    """Every root of a folder from ``old`` to ``new``, one at a time as this is iterated over.

    With ``old is new`` every file is wrapped anew (a transit engine's key has a new version). Raises
    ConfigError when a root opens under neither, TransientError; the files before it are done then.
    """
    with locked(directory):
        for name in list_roots(directory):
            root = read_root(directory, name)
            done = old is not new and _opens(directory, root, new)
            if not done:
                plain = unwrapped(directory, root, old)
                rewrite_root(directory, wrapped(name, root.until, plain, new))
            yield Change(name, name.path(directory), not done)


def rotate_key(directory: Path, name: RootName, wrapping: Wrapping, now_us: int) -> Change:
    """A new random root for the epochs from ``name.since`` on; the one before it ends there.

    ``now_us``: the latest time an event may have, in microseconds since 1970 UTC. Raises ConfigError when the
    epoch has begun by then (its pseudonyms would change), or when there is a later generation already.
    """
    latest = datetime.fromtimestamp(now_us / 1e6, UTC)
    path = name.path(directory)
    with locked(directory):
        names = generations(directory, name.region, name.purpose)
        before = [one for one in names if one.start() < name.start()]
        if not before or len(names) > len(before) + (name in names):
            raise refusal(path, "no generation to follow, or a later one exists", "see `pipeline keys list`")
        fresh = name not in names
        if fresh and name.start() <= latest.year * 12 + latest.month - 1:
            raise refusal(path, "this epoch has begun: its pseudonyms would change", "take a later one")
        last = read_root(directory, before[-1])
        plain = unwrapped(directory, last, wrapping)  # before anything is written
        if fresh:
            write_root(directory, name, secrets.token_bytes(KEY_BYTES), wrapping)
        ended = last.until == name.since
        if not ended:
            rewrite_root(directory, wrapped(last.name, name.since, plain, wrapping))
        return Change(name, path, fresh or not ended)


def destroy_keys(directory: Path, region: str, purpose: str, before: str, oldest_us: int) -> list[Change]:
    """Remove every generation that serves only epochs below ``before``.

    ``oldest_us``: the earliest time an event may still have. Raises ConfigError when that event would need a
    key that goes, or when the last generation would go.
    """
    oldest = datetime.fromtimestamp(oldest_us / 1e6, UTC)
    if epoch_start(before) > oldest.year * 12 + oldest.month - 1:
        raise ConfigError(
            "events of these epochs are still taken, and would stop the stage", operation="keys destroy",
            place=f"{region}, {purpose}, before {before}",
            remedy="lower limits.event_age_max_s first, or name an earlier epoch",
        )  # fmt: skip
    with locked(directory):
        roots = [read_root(directory, name) for name in generations(directory, region, purpose)]
        gone = [root for root in roots if root.until and epoch_start(root.until) <= epoch_start(before)]
        for root in gone:
            remove_secret(root.name.path(directory))
    return [Change(root.name, root.name.path(directory), True) for root in gone]


def _opens(directory: Path, root: Root, wrapping: Wrapping) -> bool:
    if root.wrapping != wrapping.name:
        return False
    try:
        unwrapped(directory, root, wrapping)
    except ConfigError:
        return False
    return True
