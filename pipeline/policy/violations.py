"""What speaks against a pack or a flow, one sentence each, with what would mend it.

Goes out to people who write packs, so it names files, rules, events, fields and tags, never a field's value.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Violation:
    """One fault. ``place`` begins its sentence; the rest says the same in parts, empty where there is none.

    ``tags``: those that are at odds. ``rule``: its place in the landing rules of ``destination``. ``source``:
    the law that rule serves.
    """

    place: str
    problem: str
    remedy: str = ""
    destination: str = ""
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
            f"to {self.destination}" if self.destination else "",
            self.problem,
            f"rule {self.rule} ({self.source})" if self.rule else "",
            f"mend: {self.remedy}" if self.remedy else "",
        ]
        return " | ".join(part for part in parts if part)

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}" + (f"; {self.remedy}" if self.remedy else "")
