"""A policy pack: one region's rules, as data.

Comes in: a TOML file. Goes out: a frozen :class:`Pack`, or every fault of its shape as a sentence. A pack
says what may land in its region (or, for a region that only receives, pass its gate), what may cross to which
other region, how long rows are held, and what the edge leaves out; and for each rule the law it comes from.
Whether the content makes sense is said by :mod:`pipeline.policy.faults`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from pipeline.policy.hierarchies import Hierarchy
from pipeline.policy.retention import Retention
from pipeline.policy.rules import EdgeRules, Jurisdiction, Law, LegRules, Name, Strict
from pipeline.policy.transfers import Region, Transfer, TransferDenied
from pipeline.policy.violations import Violation


class Purpose(Strict):
    """What data are processed for, and on which legal basis (GDPR 5(1)(b), 6; LGPD 7)."""

    meaning: Law
    basis: Law


class Example(Strict):
    """A row, and what the region shall hold of it: ``pipeline policy test`` runs it.

    ``input``: fields of the event; the rest is null or plain. ``origin``: the region that collected it, when
    the row also crosses a border; its way begins at the edge then too. ``expected``: columns and their
    values. ``absent``: columns that must not leave. ``filtered``: the filter that drops the row instead.
    """

    name: Law
    event: str
    origin: Region | None = None
    input: dict[str, Any] = Field(default={})
    expected: dict[str, Any] = Field(default={})
    absent: tuple[str, ...] = ()
    filtered: str = ""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if bool(self.expected or self.absent) == bool(self.filtered):
            raise ValueError("say what leaves (expected, absent) or which filter drops it (filtered)")
        return self


class Pack(Strict):
    """One region's policy.

    ``jurisdictions`` empty: the region collects nothing itself and only receives; then ``located_in`` says
    under whose law its store stands, and ``landing`` is its gate for what arrives from anywhere.
    """

    region: Region
    version: Annotated[str, Field(pattern=r"^\d{4}\.\d+$")]
    title: str = ""
    jurisdictions: tuple[Jurisdiction, ...]
    located_in: Jurisdiction | None = None
    epoch: Literal["month", "quarter"]
    purposes: Annotated[dict[Name, Purpose], Field(min_length=1)]
    hierarchies: dict[Name, Hierarchy] = Field(default={})
    retention: Retention
    landing: LegRules
    edge: EdgeRules = EdgeRules()
    transfers: dict[Region, Transfer] = Field(default={})
    transfers_denied: tuple[TransferDenied, ...] = ()
    examples: tuple[Example, ...] = ()

    @model_validator(mode="after")
    def _stands_somewhere(self) -> Self:
        if not self.jurisdictions and self.located_in is None:
            raise ValueError("a region without jurisdictions says located_in: under whose law it stands")
        return self

    @property
    def places(self) -> frozenset[str]:
        """Every jurisdiction the region collects in or stands in."""
        return frozenset(self.jurisdictions) | ({self.located_in} if self.located_in else frozenset())

    @property
    def collects(self) -> bool:
        """Whether events land here from edges; a region that does not only receives."""
        return bool(self.jurisdictions)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of what the pack does; comments, order, layout and examples do not count."""
        content = self.model_dump(mode="json", by_alias=True, exclude={"examples"})
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def parse_pack(raw: Mapping[str, Any]) -> tuple[Pack | None, list[Violation]]:
    """A pack from plain values, or what is wrong with their shape."""
    try:
        return Pack.model_validate(raw), []
    except ValidationError as error:
        return None, [Violation(place, problem) for place, problem in sentences(error)]


def sentences(error: ValidationError) -> list[tuple[str, str]]:
    """Place and problem of each fault that pydantic found."""
    return [
        (".".join(map(str, e["loc"])) or "file", e["msg"].removeprefix("Value error, "))
        for e in error.errors()
    ]
