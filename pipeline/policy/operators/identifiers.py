"""Operators for what leads to a person: pseudonymise, deterministic_encrypt, tokenise."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipeline.policy.operators.signature import (
    Context,
    KeyedParameters,
    Operator,
    TokenParameters,
    always,
    as_text,
    is_text,
)
from pipeline.policy.pseudonyms import EpochKeyed
from pipeline.policy.tokens import TOKENISED


def _pseudonymise(columns: Sequence[pa.Array], parameters: KeyedParameters, context: Context) -> pa.Array:
    return _named(context.pseudonyms, columns[0], parameters, context)


def _encrypt(columns: Sequence[pa.Array], parameters: KeyedParameters, context: Context) -> pa.Array:
    return _named(context.encrypter, columns[0], parameters, context)


def _named(
    names: EpochKeyed | None, column: pa.Array, parameters: KeyedParameters, context: Context
) -> pa.Array:
    if names is None or context.epochs is None:
        raise ValueError("no keys, or no epoch")
    return names.column(column, parameters.purpose, context.domain, context.epochs)


def _tokenise(columns: Sequence[pa.Array], parameters: TokenParameters, context: Context) -> pa.Array:
    if context.tokens is None:
        raise ValueError("no vault")
    return context.tokens.column(columns[0], parameters.purpose, context.domain)


IDENTIFIERS = (
    Operator(
        name="pseudonymise",
        meaning="A keyed hash; not reversible, but who holds the key can test a guess.",
        takes=frozenset({"identifier", "pseudonym"}),
        gives=always("pseudonym"),
        gives_words="pseudonym",
        accepts=is_text,
        expects="text",
        run=_pseudonymise,
        parameters=KeyedParameters,
        result=as_text,
        effect=lambda parameters: f"keyed hash for {parameters.purpose}, another one in each epoch",
    ),
    Operator(
        name="deterministic_encrypt",
        meaning="AES-SIV, one text per identifier and epoch; reversible: who holds the key gets it back.",
        takes=frozenset({"identifier"}),
        gives=always("pseudonym"),
        gives_words="pseudonym",
        accepts=is_text,
        expects="text",
        run=_encrypt,
        parameters=KeyedParameters,
        result=as_text,
        effect=lambda parameters: (
            f"encrypted for {parameters.purpose}, reversible with its key, another text in each epoch"
        ),
    ),
    Operator(
        name="tokenise",
        meaning="A random token from the region's vault; deleting its entry there unlinks it for ever.",
        takes=TOKENISED,
        gives=always("pseudonym"),
        gives_words="pseudonym",
        accepts=is_text,
        expects="text",
        run=_tokenise,
        parameters=TokenParameters,
        result=as_text,
        effect=lambda parameters: f"random token for {parameters.purpose}, the same in every epoch",
    ),
)
