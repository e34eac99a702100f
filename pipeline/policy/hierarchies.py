"""Hierarchies: a pack's own tables that put values into groups.

Comes in: a declared table. Goes out: the group of a value. Invariants: every value has a group, the unknown
one ``other``; there are fewer groups than values, so that something is hidden.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Label = Annotated[str, Field(min_length=1)]


class Hierarchy(BaseModel):
    """``values``: value → group. ``other``: the group of every value that is not listed."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    values: Annotated[dict[str, Label], Field(min_length=1)]
    other: Label
    source: Label

    @model_validator(mode="after")
    def _coarser(self) -> Self:
        groups = set(self.values.values())
        if len(self.values) > 1 and len(groups) >= len(self.values):
            raise ValueError(
                f"{len(self.values)} values make {len(groups)} groups: nothing is hidden; join some"
            )
        return self

    def group(self, value: str) -> str:
        """The group of a value."""
        return self.values.get(value, self.other)
