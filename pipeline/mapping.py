"""A declared mapping: how the columns of a foreign file become the fields of one event.

Comes in: a TOML file (those in ``schemas/mappings/`` are shipped). Goes out: a frozen :class:`Mapping`.
Only the shape is checked here; names, types and units are checked against the event and the file's header
by :class:`pipeline.replay.Mapper`, before the first row is read.

    event = "machine_reading"
    source = "turbofan-{unit}"                      # a template over columns of the file
    jurisdiction = "DE"                             # optional: the caller may give another

    [read]                                          # how the file is written
    format = "csv"
    delimiter = "whitespace"
    columns = ["unit", "cycle", "t2"]               # a file without a header

    [event_time]                                    # text, epoch or synthetic
    start = 2026-01-01T00:00:00Z
    step_s = 60
    from = "cycle"

    [fields]
    cycle = "cycle"                                 # short for {from = "cycle"}
    sensor_1 = {from = "t2", unit = "degR", to = "K"}
    machine = {template = "unit-{unit}"}            # or a constant: {value = "press-7"}
"""

from __future__ import annotations

import string
import tomllib
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.errors import ConfigError

ISO = "iso"  # ISO 8601, with or without a zone, fraction of a second optional
WHITESPACE = "whitespace"  # runs of blanks and tabs, as numeric text files use them
SUFFIX = ".toml"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Reading(_Strict):
    """How the file is written."""

    format: Literal["csv", "parquet", "jsonl"] | None = None  # None: told by the file's name
    delimiter: str = ","
    header: bool = True  # False, or columns given for a file without a header line
    columns: tuple[str, ...] = ()
    null_values: tuple[str, ...] = ("",)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.delimiter != WHITESPACE and len(self.delimiter) != 1:
            raise ValueError(f"delimiter: expected one character or {WHITESPACE!r}")
        if self.has_header == bool(self.columns):
            raise ValueError("a file has either a header line or named columns")
        return self

    @property
    def has_header(self) -> bool:
        return self.header and not self.columns


class FieldRule(_Strict):
    """Where one field's value comes from: a column, a template over columns, or a constant."""

    column: str | None = Field(default=None, alias="from")
    unit: str | None = None  # the unit of the column; None: the field's own
    to: str | None = None  # the unit to land in, for a channel whose unit its machine type fixes
    template: str | None = None
    value: str | int | float | bool | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum(way is not None for way in (self.column, self.template, self.value)) != 1:
            raise ValueError("expected exactly one of from, template, value")
        if self.unit is not None and self.column is None:
            raise ValueError("unit needs from")
        if self.to is not None and self.unit is None:
            raise ValueError("to needs unit")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        if self.template is not None:
            return placeholders(self.template)
        return () if self.column is None else (self.column,)


class TimeRule(_Strict):
    """The clock: text in a format, an epoch in a unit, or a start plus a step.

    A local time is read in ``timezone``; where the clock was set back, the earlier of the two moments.
    A synthetic clock runs ``start + step_s * column``, or per row of the file when no column is named.
    """

    column: str | None = Field(default=None, alias="from")
    format: str = ISO
    timezone: str = "UTC"
    unit: Literal["s", "ms", "us", "ns"] | None = None
    start: datetime | None = None
    step_s: float | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.start is None) != (self.step_s is None):
            raise ValueError("start and step_s belong together")
        if self.start is None and self.column is None:
            raise ValueError("expected from, or start and step_s")
        if self.start is not None and (self.unit is not None or self.format != ISO):
            raise ValueError("a synthetic clock has no unit and no format")
        if self.unit is not None and self.format != ISO:
            raise ValueError("an epoch has no format")
        if any(directive in self.format for directive in ("%f", "%z", "%Z")):
            raise ValueError(f"fractions and zones are read by format {ISO!r} only")
        return self

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError("expected a name of the IANA time zone database") from error
        return name

    @property
    def start_us(self) -> int:
        """Microseconds since the epoch; a start without a zone is UTC."""
        assert self.start is not None
        start = self.start if self.start.tzinfo else self.start.replace(tzinfo=UTC)
        return int((start - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1_000_000)


class Mapping(_Strict):
    """Columns of a file to one event."""

    event: str
    source: str
    jurisdiction: str | None = None
    event_time: TimeRule
    fields: dict[str, FieldRule] = {}
    read: Reading = Reading()

    @field_validator("fields", mode="before")
    @classmethod
    def _short_form(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: {"from": rule} if isinstance(rule, str) else rule for name, rule in fields.items()}

    @field_validator("source", "jurisdiction")
    @classmethod
    def _template_parses(cls, template: str | None) -> str | None:
        if template is not None:
            placeholders(template)
        return template

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the file that are read, each once, in the order of their first use."""
        used = [*placeholders(self.source), *placeholders(self.jurisdiction or "")]
        if self.event_time.column is not None:
            used.append(self.event_time.column)
        used += [column for rule in self.fields.values() for column in rule.columns]
        return tuple(dict.fromkeys(used))


def template_parts(template: str) -> list[tuple[str, str | None]]:
    """``[(text, column or None), …]``; raises ValueError for anything beyond ``{column}``."""
    parts = []
    for text, column, spec, conversion in string.Formatter().parse(template):
        if spec or conversion or column == "":
            raise ValueError("a template holds {column} and nothing finer")
        parts.append((text, column))
    return parts


def placeholders(template: str) -> tuple[str, ...]:
    """Names of the columns in a template."""
    return tuple(column for _, column in template_parts(template) if column is not None)


def by_name(event: str, fields: Iterable[str], columns: Iterable[str]) -> Mapping:
    """The mapping of a file that already speaks the event's names (source, event_time, jurisdiction too)."""
    present = set(columns)
    rules = {name: FieldRule.model_validate({"from": name}) for name in fields if name in present}
    return Mapping(
        event=event,
        source="{source}",
        jurisdiction="{jurisdiction}" if "jurisdiction" in present else None,
        event_time=TimeRule.model_validate({"from": "event_time"}),
        fields=rules,
    )


def load_mapping(path: Path) -> Mapping:
    """Read one mapping; ConfigError with one line that names every fault."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        return Mapping.model_validate(raw)
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", operation="mapping", place=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not TOML: {error}", operation="mapping", place=str(path)) from error
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
        raise ConfigError("; ".join(faults), operation="mapping", place=str(path)) from None


def find_mapping(name: str, schemas: Path) -> Mapping:
    """A shipped mapping by its name, or a file by its path; ConfigError lists the shipped ones."""
    folder = schemas / "mappings"
    for path in (Path(name), folder / f"{name}{SUFFIX}"):
        if path.suffix == SUFFIX and path.is_file():
            return load_mapping(path)
    shipped = ", ".join(sorted(path.stem for path in folder.glob(f"*{SUFFIX}")))
    raise ConfigError(f"no mapping {name!r}", operation="mapping", remedy=f"shipped: {shipped}; or a path")
