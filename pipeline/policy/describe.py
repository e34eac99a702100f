"""The signatures as tables for people: what ``docs/policies.md`` shows.

Comes in: the vocabulary of tags and the table of operators. Goes out: Markdown. A test compares the page with
it, so the page cannot drift from the code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.events import TAGS
from pipeline.policy.operators import OPERATORS, Operator

_LIMITS = (("minimum", "≥ "), ("exclusiveMinimum", "> "), ("maximum", "≤ "), ("exclusiveMaximum", "< "))


def tags_table() -> str:
    """Every tag and what it says a value is."""
    return _table(("tag", "what the value is"), ((f"`{tag}`", meaning) for tag, meaning in TAGS.items()))


def operators_table(operators: Mapping[str, Operator] = OPERATORS) -> str:
    """Every operator's signature, in the order of the table."""
    headings = ("operator", "takes", "gives", "works on", "with", "what it does")
    return _table(headings, (_row(operator) for operator in operators.values()))


def parameters_words(operator: Operator) -> list[str]:
    """One phrase per parameter: its name, what it may be, its default."""
    properties: dict[str, dict[str, Any]] = operator.parameters.model_json_schema().get("properties", {})
    return [_parameter(name, content) for name, content in properties.items()]


def _row(operator: Operator) -> tuple[str, ...]:
    takes = ", ".join("anything" if tag == "*" else f"`{tag}`" for tag in sorted(operator.takes))
    return (
        f"`{operator.name}`",
        takes,
        operator.gives_words,
        operator.expects,
        "; ".join(parameters_words(operator)) or "-",
        operator.meaning,
    )


def _parameter(name: str, content: Mapping[str, Any]) -> str:
    if "enum" in content:
        allowed = " " + ", ".join(map(str, content["enum"]))
    elif {"minimum", "maximum"} <= content.keys():
        allowed = f" {content['minimum']:g} … {content['maximum']:g}"
    else:
        allowed = "".join(f" {sign}{content[key]:g}" for key, sign in _LIMITS if key in content)
    default = f" (default {content['default']})" if "default" in content else ""
    return f"`{name}`{allowed}{default}"


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    headings = tuple(headings)
    lines = [headings, ("---",) * len(headings), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
