"""Presidio as a recogniser: names and places in text, found by a spaCy model.

Comes in: text. Goes out: spans for :mod:`pipeline.policy.recognisers`. Invariants: nothing is fetched from
anywhere (a model that is missing is a ConfigError, never a download; the one recogniser of Presidio that asks
the network is not used); nothing of a text is logged.

Optional: ``pip install edge-to-core-pipeline[presidio]``. The core does not know this module; the join makes
one when a pack asks for it. A text longer than spaCy's limit (a million characters) raises: the batch stops.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.policy.redaction import Span

NAME = "presidio"  # in a pack
_ASKS_THE_NETWORK = "EmailRecognizer"  # looks the list of public suffixes up; e-mail is found by the patterns


@dataclass(frozen=True)
class PresidioOptions:
    """``language``: ISO 639-1. ``model``: a spaCy package or a folder with a model. ``entities``: what to
    look for, in Presidio's names; the forms that the patterns find need not be among them."""

    language: str = "en"
    model: str = "en_core_web_lg"
    entities: tuple[str, ...] = ("PERSON", "LOCATION", "NRP")


class Presidio:
    """A :class:`pipeline.policy.recognisers.Recogniser`; kinds are Presidio's in lower case.

    Loads its model at once (seconds, and hundreds of megabytes for a large one). Not for two threads.
    """

    def __init__(self, options: PresidioOptions | None = None) -> None:
        """Raises ConfigError when the extra or the model is not installed, or an entity is not known."""
        self._options = options or PresidioOptions()
        for module in ("presidio_analyzer", "spacy"):
            if find_spec(module) is None:
                raise _refusal(f"{module} is not installed", "pip install 'edge-to-core-pipeline[presidio]'")
        self._engine = _engine(self._options)
        known = self._engine.get_supported_entities(self._options.language)
        if unknown := sorted(set(self._options.entities) - set(known)):
            raise _refusal(
                f"no entity {', '.join(unknown)} in {self._options.language}",
                f"choose from {', '.join(sorted(known))}",
            )

    def find(self, text: str) -> Iterator[Span]:
        """See :class:`pipeline.policy.recognisers.Recogniser`."""
        found = self._engine.analyze(
            text, language=self._options.language, entities=list(self._options.entities)
        )
        for result in found:
            yield Span(result.start, result.end, result.entity_type.lower(), result.score)


def _engine(options: PresidioOptions) -> Any:
    # Its own voice: a line per recogniser while loading, and below that what it found.
    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import SpacyNlpEngine
    from spacy.util import is_package

    if not is_package(options.model) and not Path(options.model).is_dir():
        raise _refusal(
            f"the spaCy model {options.model} is not installed", f"python -m spacy download {options.model}"
        )
    nlp = SpacyNlpEngine(models=[{"lang_code": options.language, "model_name": options.model}])
    nlp.load()
    registry = RecognizerRegistry(supported_languages=[options.language])
    registry.load_predefined_recognizers(languages=[options.language], nlp_engine=nlp)
    registry.remove_recognizer(_ASKS_THE_NETWORK)
    return AnalyzerEngine(registry=registry, nlp_engine=nlp, supported_languages=[options.language])


def _refusal(problem: str, remedy: str) -> ConfigError:
    return ConfigError(problem, operation="recogniser", place=NAME, remedy=remedy)
