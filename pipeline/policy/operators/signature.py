"""What an operator is: a signature that the type check reads, and one vectorised function.

Invariants of every function: it sees whole columns, gives one column of the same length, gives the same
for the same input unless its signature says that it draws, and raises where it cannot do its work: it never
hands a value on in despair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from pipeline.policy.hierarchies import Hierarchy
from pipeline.policy.pseudonyms import EpochKeyed, Epochs
from pipeline.policy.tokens import Tokeniser

Tags = frozenset[str]


@dataclass(frozen=True)
class Context:
    """What a function may need besides columns: the tag it discharges, the batch's epochs, the keyed names,
    the pack's tables, and the tokens."""

    domain: str
    epochs: Epochs | None
    pseudonyms: EpochKeyed | None
    encrypter: EpochKeyed | None = None
    hierarchies: Mapping[str, Hierarchy] = field(default_factory=dict)
    tokens: Tokeniser | None = None


class Parameters(BaseModel):
    """Parameters of an operator; most have none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class KeyedParameters(Parameters):
    """``purpose`` is one of the pack's: each has a key of its own, so purposes cannot be joined."""

    purpose: str


class TokenParameters(KeyedParameters):
    """``purpose`` is one of the pack's: each has tokens of its own. They do not change with the epoch."""


Run = Callable[[Sequence[pa.Array], Any, Context], pa.Array]
Nulls = Literal["as the input", "never", "possible"]


@dataclass(frozen=True)
class Operator:
    """A signature and its function.

    ``meaning``: one sentence for the reader of a pack. ``takes``: tags (or their ancestors) it discharges.
    ``gives``: tags of the result, from the parameters and the tags taken; ``gives_words`` says the same to a
    person. ``accepts``: the column types. ``run`` is None only for drop. ``result``: Arrow and Avro type,
    None for the column's own. ``roles``: fields it takes together, in that order; empty for one field.
    ``output``: the result's name; empty: the field's own. ``nulls``: when the result can be null.
    ``bound``: what becomes of the field's declared minimum and maximum. ``effect``: for the reader of the
    curated schema. ``deterministic``: whether the same input (and keys, and vault) gives the same result.
    """

    name: str
    meaning: str
    takes: Tags
    gives: Callable[[Any, Tags], Tags]
    gives_words: str
    accepts: Callable[[pa.DataType, Any], bool]
    expects: str
    run: Run | None
    parameters: type[Parameters] = Parameters
    result: Callable[[Any], tuple[pa.DataType, str] | None] = lambda parameters: None
    roles: tuple[str, ...] = ()
    output: str = ""
    nulls: Nulls = "as the input"
    bound: Callable[[Any, float], float] = lambda parameters, value: value
    effect: Callable[[Any], str] = lambda parameters: ""
    deterministic: bool = True


def what_it_took(parameters: Any, taken: Tags) -> Tags:
    """The result is what the input was."""
    return taken


def always(*tags: str) -> Callable[[Any, Tags], Tags]:
    """The result has these tags, whatever was taken."""
    return lambda parameters, taken: frozenset(tags)


def is_flat(column: pa.DataType, parameters: Any) -> bool:
    """Not nested: the parts of a nested field have tags of their own."""
    return not pa.types.is_nested(column)


def is_text(column: pa.DataType, parameters: Any) -> bool:
    """Strings and enums."""
    return bool(pa.types.is_string(column))


def as_text(parameters: Any) -> tuple[pa.DataType, str]:
    """The result is text, also where the field was an enum."""
    return pa.string(), "string"


def over_uniques(column: pa.Array, make: Callable[[str], str | None]) -> pa.Array:
    """``make`` of every text, asked once per different one; null stays null."""
    coded = column.dictionary_encode()
    made = pa.array([make(value) for value in coded.dictionary.to_pylist()], pa.string())
    return made.take(coded.indices)
