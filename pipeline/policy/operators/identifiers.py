"""Operators for what leads to a person: pseudonymise."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipeline.policy.operators.signature import Context, KeyedParameters, Operator, always, as_text, is_text


def _pseudonymise(columns: Sequence[pa.Array], parameters: KeyedParameters, context: Context) -> pa.Array:
    if context.pseudonyms is None or context.epochs is None:
        raise ValueError("no keys, or no epoch")
    return context.pseudonyms.column(columns[0], parameters.purpose, context.domain, context.epochs)


IDENTIFIERS = (
    Operator(
        name="pseudonymise",
        meaning="A keyed hash; not reversible, but who holds the key can test a guess.",
        takes=frozenset({"identifier"}),
        gives=always("pseudonym"),
        gives_words="pseudonym",
        accepts=is_text,
        expects="text",
        run=_pseudonymise,
        parameters=KeyedParameters,
        result=as_text,
        effect=lambda parameters: f"keyed hash for {parameters.purpose}, another one in each epoch",
    ),
)
