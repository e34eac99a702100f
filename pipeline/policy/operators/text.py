"""Operators that shorten or group text: mask, truncate, generalise_category, truncate_ip, redact_text.

Each works on the different values of a column. What a short form still says about a person decides its tag: a
part of an identifier is a quasi-identifier, not less.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import Annotated

import pyarrow as pa
from pydantic import Field, field_validator

from pipeline.policy.operators.signature import (
    Context,
    Operator,
    Parameters,
    Run,
    Tags,
    always,
    as_text,
    is_text,
    over_uniques,
)
from pipeline.policy.redaction import KINDS, PATTERNS, redact

_MASK_CHARACTERS = 4  # always as many, so that the mask does not tell the length


class MaskParameters(Parameters):
    """``keep_first``, ``keep_last``: characters that stay. ``hidden_min``: where fewer would be hidden, all
    are. ``character``: what the mask is made of."""

    keep_first: Annotated[int, Field(ge=0, le=8)] = 0
    keep_last: Annotated[int, Field(ge=0, le=8)] = 0
    hidden_min: Annotated[int, Field(ge=4, le=64)] = 4
    character: Annotated[str, Field(min_length=1, max_length=1)] = "*"


class TruncateParameters(Parameters):
    """``characters``: how many stay at most. ``cut_min``: how many go at least, also from a short value."""

    characters: Annotated[int, Field(ge=1, le=16)]
    cut_min: Annotated[int, Field(ge=1, le=64)] = 2


class CategoryParameters(Parameters):
    """``hierarchy``: name of one of the pack's tables."""

    hierarchy: str


class NetworkParameters(Parameters):
    """Bits of an address that stay: ``ipv4_bits`` of 32, ``ipv6_bits`` of 128."""

    ipv4_bits: Annotated[int, Field(ge=8, le=24)] = 24
    ipv6_bits: Annotated[int, Field(ge=16, le=48)] = 48


class RedactParameters(Parameters):
    """``recognisers``: who looks at the text, ``patterns`` always among them. ``score_min``: how sure the
    others have to be, 0 to 1."""

    recognisers: tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,40}$")], ...] = (PATTERNS,)
    score_min: Annotated[float, Field(ge=0, le=1)] = 0.5

    @field_validator("recognisers")
    @classmethod
    def _with_patterns(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if PATTERNS not in names:
            raise ValueError(f"{PATTERNS} has to be among them: it is what text.redacted means; add it")
        if len(set(names)) < len(names):
            raise ValueError("one is named twice; name each once")
        return names


def _mask(columns: Sequence[pa.Array], parameters: MaskParameters, context: Context) -> pa.Array:
    hidden = parameters.character * _MASK_CHARACTERS
    first, last = parameters.keep_first, parameters.keep_last

    def masked(value: str) -> str:
        if len(value) < first + last + parameters.hidden_min:
            return hidden
        return value[:first] + hidden + value[len(value) - last :]

    return over_uniques(columns[0], masked)


def _truncate(columns: Sequence[pa.Array], parameters: TruncateParameters, context: Context) -> pa.Array:
    def cut(value: str) -> str:
        return value[: max(0, min(parameters.characters, len(value) - parameters.cut_min))]

    return over_uniques(columns[0], cut)


def _generalise_category(
    columns: Sequence[pa.Array], parameters: CategoryParameters, context: Context
) -> pa.Array:
    return over_uniques(columns[0], context.hierarchies[parameters.hierarchy].group)


def _grouped(parameters: CategoryParameters, taken: Tags) -> Tags:
    """A group of a person's trait is still a trait, and a group of a model's conclusions a conclusion."""
    return frozenset("quasi.coarse" if tag.startswith("quasi") else tag for tag in taken)


def _truncate_ip(columns: Sequence[pa.Array], parameters: NetworkParameters, context: Context) -> pa.Array:
    def network(value: str) -> str | None:
        try:
            address = ipaddress.ip_address(value.strip())
        except ValueError:
            return None  # one odd value must not stop the stage, and must not pass either
        if isinstance(address, ipaddress.IPv6Address):
            if address.ipv4_mapped is None:
                return _network(int(address), 128, parameters.ipv6_bits)
            address = address.ipv4_mapped
        return _network(int(address), 32, parameters.ipv4_bits)

    return over_uniques(columns[0], network)


def _network(address: int, width: int, bits: int) -> str:
    """The first bits of an address in CIDR spelling; a zone (``%eth0``) is no part of the number."""
    first = address >> (width - bits) << (width - bits)
    whole = ipaddress.IPv4Address(first) if width == 32 else ipaddress.IPv6Address(first)
    return f"{whole}/{bits}"


def _redact_text(columns: Sequence[pa.Array], parameters: RedactParameters, context: Context) -> pa.Array:
    if parameters.recognisers != (PATTERNS,):
        raise ValueError("asks for recognisers, and none is plugged in")
    return over_uniques(columns[0], redact)


def redacting(redact: Callable[[str], str]) -> Run:
    """redact_text's function with another way to redact: see :mod:`pipeline.policy.recognisers`."""
    return lambda columns, parameters, context: over_uniques(columns[0], redact)


def _redact_effect(parameters: RedactParameters) -> str:
    others = [name for name in parameters.recognisers if name != PATTERNS]
    found = f", and what {' and '.join(others)} found" if others else ""
    return f"without {', '.join(KINDS)}{found}"


TEXT = (
    Operator(
        name="mask",
        meaning="All but the first and last characters hidden; a value too short for that is hidden whole.",
        takes=frozenset({"identifier", "quasi"}),
        gives=always("quasi"),
        gives_words="quasi: a part of an identifier still singles out",
        accepts=is_text,
        expects="text",
        run=_mask,
        parameters=MaskParameters,
        result=as_text,
        effect=lambda p: f"first {p.keep_first} and last {p.keep_last} characters",
    ),
    Operator(
        name="truncate",
        meaning="The first characters. Not for text.free: a name has few letters.",
        takes=frozenset({"identifier", "quasi"}),
        gives=always("quasi"),
        gives_words="quasi",
        accepts=is_text,
        expects="text",
        run=_truncate,
        parameters=TruncateParameters,
        result=as_text,
        effect=lambda p: f"first {p.characters} characters, at least {p.cut_min} gone",
    ),
    Operator(
        name="generalise_category",
        meaning="The group of a value in one of the pack's tables; what no table knows is its `other`.",
        takes=frozenset({"category", "inference", "quasi"}),
        gives=_grouped,
        gives_words="quasi.coarse of quasi, else what it took",
        accepts=is_text,
        expects="text",
        run=_generalise_category,
        parameters=CategoryParameters,
        result=as_text,
        effect=lambda p: f"groups of the table {p.hierarchy}",
    ),
    Operator(
        name="truncate_ip",
        meaning="The network of an address; what is none becomes null. An IPv6 /48 is often one customer.",
        takes=frozenset({"identifier", "quasi"}),
        gives=always("quasi"),
        gives_words="quasi",
        accepts=is_text,
        expects="text",
        run=_truncate_ip,
        parameters=NetworkParameters,
        result=as_text,
        nulls="possible",
        effect=lambda p: f"IPv4 /{p.ipv4_bits}, IPv6 /{p.ipv6_bits}",
    ),
    Operator(
        name="redact_text",
        meaning=f"Patterns replaced by their kind: {', '.join(KINDS)}. Names and stories remain.",
        takes=frozenset({"text.free"}),
        gives=always("text.redacted"),
        gives_words="text.redacted: personal data still",
        accepts=is_text,
        expects="text",
        run=_redact_text,
        parameters=RedactParameters,
        result=as_text,
        effect=_redact_effect,
    ),
)
