"""What speaks against a pack or a flow, one sentence each, with what would mend it.

Goes out to people who write packs, so it names files, rules, events, fields and tags, never a field's value.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Violation:
    """One fault. ``place`` begins its sentence; the rest says the same in parts, empty where there is none.

    ``tags``: those that are at odds. ``rule``: the rule's place in the pack of ``destination``. ``source``:
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

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}" + (f"; {self.remedy}" if self.remedy else "")
