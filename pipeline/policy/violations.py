"""What speaks against a pack or a flow, one sentence each, with what would mend it.

Goes out to people who write packs, so it names files, rules, events, fields and tags, never a field's value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Violation:
    """One fault. ``place`` begins its sentence; the rest says the same in parts, empty where there is none.

    ``tags``: those that are at odds. ``rule``: its place, under ``landing`` in the pack of ``destination``,
    under ``transfers`` or ``edge`` in that of ``origin``. ``source``: the law that rule serves.
    """

    place: str
    problem: str
    remedy: str = ""
    destination: str = ""
    origin: str = ""
    event: str = ""
    fields: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    rule: str = ""
    source: str = ""

    @property
    def line(self) -> str:
        """All of it on one line: event and field, tags, destination, what is wrong, rule, source, remedy."""
        where = ".".join(part for part in (self.event, ", ".join(self.fields)) if part) or self.place
        tags = f" [{', '.join(self.tags)}]" if self.tags else ""
        parts = [
            where + tags,
            self.leg,
            self.problem,
            f"rule {self.rule} ({self.source})" if self.rule else "",
            f"mend: {self.remedy}" if self.remedy else "",
        ]
        return " | ".join(part for part in parts if part)

    @property
    def leg(self) -> str:
        """``to eu`` for a landing, ``eu to core`` for a border; empty for a fault that has no place there."""
        crosses = self.origin and self.origin != self.destination
        return f"{self.origin if crosses else ''} to {self.destination}".strip() if self.destination else ""

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}" + (f"; {self.remedy}" if self.remedy else "")


def listed(names: Iterable[object]) -> str:
    """Names for a sentence, sorted; ``nothing`` when there are none."""
    return ", ".join(sorted(map(str, names))) or "nothing"
