"""What a schema must be before anything may use it.

Comes in: an Avro schema as parsed JSON. Goes out: sentences, one per fault, each naming the field. Three
kinds, told apart by the namespace: events (``pipeline.events``), control records (``pipeline.control``),
and curated schemas (any other). The structural rules keep the decoder safe: no recursion, no item of zero
bytes, bounded depth. The rules on tags make the policy's type check possible: a value without a tag has no
type.
"""

from __future__ import annotations

import re
from typing import Any

from pipeline.events import ENVELOPE, TAGS, kind_of, split_null

EVENT_NAMESPACE = "pipeline.events"
CONTROL_NAMESPACE = "pipeline.control"
DEPTH_MAX = 4
FIELDS_MAX = 200
NUMBERS = {"int", "long", "float", "double"}
_LOGICAL = {"timestamp-micros": "long", "timestamp-millis": "long", "date": "int"}
_SCALARS = NUMBERS | {"boolean", "string"}
# Numbers under these tags are codes (an H3 cell, a customer number): without unit and order.
_CODES = {t for t in TAGS if t.startswith("identifier.")} | {
    "location.coarse",
    "pseudonym",
    "quasi",
    "quasi.coarse",
    "quasi.crowd",
    "category",
}
_RANGED = {"measurement", "location.precise"}
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_RAW_POSITION = ("raw_partition", "raw_offset")
# Virtual columns of DuckDB and DuckLake: a field of that name could not be queried.
_VIRTUAL = {"rowid", "filename", "file_row_number", "file_index", "snapshot_id"}
# duckdb_keywords(), category "reserved", version 1.5.5.
_SQL = frozenset(
    """all analyse analyze and any array as asc asymmetric both case cast check collate column constraint
    create default deferrable desc describe distinct do else end except false fetch for foreign from group
    having in initially intersect into lambda lateral leading limit not null offset on only or order pivot
    pivot_longer pivot_wider placing primary qualify references returning select show some summarize
    symmetric table then to trailing true union unique unpivot using variadic when where window with
    """.split()  # noqa: SIM905
)


def lint(schema: dict[str, Any], envelope: dict[str, Any] | None = None) -> list[str]:
    """Every fault of the schema; an empty list means it may be locked.

    With ``envelope`` given, an event's first seven fields must equal that record's to the letter.
    """
    if not isinstance(schema, dict) or schema.get("type") != "record" or not schema.get("fields"):
        return ["expected a record with fields"]
    namespace = str(schema.get("namespace", ""))
    control = namespace.startswith(CONTROL_NAMESPACE)
    faults = [] if schema.get("doc") else ["the record has no doc"]
    if not namespace:
        faults.append("the record has no namespace")
    faults += _lint_record(schema, Path(tagged=not control))
    if namespace == EVENT_NAMESPACE:
        faults += _lint_envelope(schema, envelope)
    elif not control:
        faults += _lint_raw_position(schema)
    return faults


class Path:
    """Where the walk is: field names so far, open record names (recursion), whether fields need tags."""

    def __init__(
        self, names: tuple[str, ...] = (), open_: frozenset[str] = frozenset(), *, tagged: bool
    ) -> None:
        self.names, self.open, self.tagged = names, open_, tagged

    def field(self, name: str) -> Path:
        """One field deeper."""
        return Path((*self.names, name), self.open, tagged=self.tagged)

    def record(self, name: str) -> Path:
        """Inside a record of that name."""
        return Path(self.names, self.open | {name}, tagged=self.tagged)

    def __str__(self) -> str:
        return ".".join(self.names) or "the record"


def _lint_record(record: dict[str, Any], path: Path) -> list[str]:
    faults: list[str] = []
    name, fields = str(record.get("name", "")), record.get("fields", [])
    if len(path.names) >= DEPTH_MAX:
        return [f"{path}: nested deeper than {DEPTH_MAX} levels"]
    if len(fields) > FIELDS_MAX:
        faults.append(f"{path}: more than {FIELDS_MAX} fields")
    inside = path.record(name)
    seen: set[str] = set()
    for field in fields:
        if not isinstance(field, dict) or "name" not in field or "type" not in field:
            faults.append(f"{path}: a field without name or type")
            continue
        here = inside.field(str(field["name"]))
        lower = here.names[-1].lower()
        if lower in seen:
            faults.append(f"{here}: the name occurs twice (SQL does not tell case apart)")
        seen.add(lower)
        faults += _lint_name(here) + _lint_attributes(field, here) + _lint_type(field["type"], here)
    return faults


def _lint_name(path: Path) -> list[str]:
    name = path.names[-1]
    if not _NAME.match(name):
        return [f"{path}: names are lower case letters, digits and _"]
    if path.tagged and (name in _SQL or name in _VIRTUAL):
        return [f"{path}: the name is reserved in SQL"]
    return []


def _lint_attributes(field: dict[str, Any], path: Path) -> list[str]:
    faults = [] if field.get("doc") else [f"{path}: no doc"]
    inner, nullable = split_null(field["type"])
    if nullable and ("default" not in field or field["default"] is not None):
        faults.append(
            f'{path}: a nullable field needs "default": null, or the next version cannot read old records'
        )
    if not path.tagged:
        return faults
    return faults + _lint_tags(field, path) + _lint_range(field, inner, path)


def _lint_tags(field: dict[str, Any], path: Path) -> list[str]:
    tags = field.get("confluent:tags")
    if not isinstance(tags, list) or not tags:
        return [f"{path}: no tag (confluent:tags), so no policy can say what may become of it"]
    return [f"{path}: unknown tag {tag}; known: {', '.join(TAGS)}" for tag in tags if tag not in TAGS]


def _lint_range(field: dict[str, Any], inner: Any, path: Path) -> list[str]:
    """Unit, minimum and maximum; on an array they speak of its items."""
    kind = kind_of(inner)
    while kind == "array":
        inner = split_null(inner.get("items"))[0]
        kind = kind_of(inner)
    if kind not in NUMBERS:
        return [f"{path}: {bound} on a {kind}" for bound in ("minimum", "maximum") if bound in field]
    tags = {str(tag) for tag in field.get("confluent:tags") or []}
    low, high = field.get("minimum"), field.get("maximum")
    faults = []
    if not field.get("unit") and not tags <= _CODES:
        faults.append(f'{path}: a number without unit ("1" for a count or ratio)')
    if any(isinstance(bound, bool) or not isinstance(bound, int | float | None) for bound in (low, high)):
        faults.append(f"{path}: minimum and maximum are numbers")
    elif (low is None or high is None) and tags & _RANGED:
        faults.append(f"{path}: a measurement needs minimum and maximum")
    elif low is not None and high is not None and low > high:
        faults.append(f"{path}: minimum above maximum")
    return faults


def _lint_type(avro_type: Any, path: Path) -> list[str]:
    if isinstance(avro_type, list):
        inner, nullable = split_null(avro_type)
        if not nullable or isinstance(inner, list) or inner == "null":
            return [f'{path}: the only union allowed is ["null", X]']
        return _lint_type(inner, path)
    if isinstance(avro_type, str):
        if avro_type in path.open or avro_type.rpartition(".")[2] in path.open:
            return [f"{path}: recursive; a hostile record could nest without end"]
        return [] if avro_type in _SCALARS else [f"{path}: type {avro_type} is not supported"]
    if not isinstance(avro_type, dict) or "type" not in avro_type:
        return [f"{path}: not an Avro type"]
    return _lint_complex(avro_type, path)


def _lint_complex(avro_type: dict[str, Any], path: Path) -> list[str]:
    kind = avro_type["type"]
    logical = avro_type.get("logicalType")
    if logical is not None:
        return [] if _LOGICAL.get(logical) == kind else [f"{path}: logical type {logical} is not supported"]
    if kind == "enum":
        symbols = avro_type.get("symbols") or []
        good = len(set(symbols)) == len(symbols) > 0 and all(_SYMBOL.match(str(s)) for s in symbols)
        return (
            [] if good and avro_type.get("name") else [f"{path}: an enum needs a name and distinct symbols"]
        )
    if kind == "array":
        return _lint_array(avro_type.get("items"), path)
    if kind == "record":
        name = str(avro_type.get("name", ""))
        if name in path.open:
            return [f"{path}: recursive; a hostile record could nest without end"]
        if not avro_type.get("fields"):
            return [f"{path}: an empty record takes no bytes, so a count alone could fill the memory"]
        return _lint_record(avro_type, path)
    return _lint_type(kind, path)


def _lint_array(items: Any, path: Path) -> list[str]:
    if items == "null" or items == {"type": "null"}:
        return [f"{path}: an array of null takes no bytes, so a count alone could fill the memory"]
    if items is None:
        return [f"{path}: an array without items"]
    if len(path.names) >= DEPTH_MAX:
        return [f"{path}: nested deeper than {DEPTH_MAX} levels"]
    return _lint_type(items, path.field("item"))


def _lint_envelope(schema: dict[str, Any], envelope: dict[str, Any] | None) -> list[str]:
    names = tuple(f.get("name") for f in schema["fields"][: len(ENVELOPE)] if isinstance(f, dict))
    if names != ENVELOPE:
        return [f"the first fields must be the envelope: {', '.join(ENVELOPE)}"]
    faults = []
    for field in schema["fields"][len(ENVELOPE) :]:
        if isinstance(field, dict) and str(field.get("name", "")).lower() in _RAW_POSITION:
            faults.append(f"{field['name']}: the name belongs to the raw position")
    if envelope is not None:
        pairs = zip(schema["fields"], envelope["fields"], strict=False)
        faults += [
            f"{want['name']}: differs from schemas/envelope.avsc" for got, want in pairs if got != want
        ]
    return faults


def _lint_raw_position(schema: dict[str, Any]) -> list[str]:
    last = tuple(f.get("name") for f in schema["fields"][-2:] if isinstance(f, dict))
    if last != _RAW_POSITION:
        return ["a curated schema ends with raw_partition and raw_offset, the identity of the event"]
    return []


def evolution(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Why records of ``old`` and ``new`` could not be stored side by side; empty when they can.

    Allowed: a new field that is nullable, dropping a field that was nullable, more enum symbols at the end,
    and any change of docs, tags and ranges (the policy's type check runs again on the new tags).
    """
    faults = []
    before = {f["name"]: f for f in old["fields"]}
    after = {f["name"]: f for f in new["fields"]}
    if (old.get("name"), old.get("namespace")) != (new.get("name"), new.get("namespace")):
        faults.append("the record's name changed")
    for name in after.keys() - before.keys():
        if not split_null(after[name]["type"])[1]:
            faults.append(f"{name}: a new field must be nullable, older records do not have it")
    for name in before.keys() - after.keys():
        if not split_null(before[name]["type"])[1]:
            faults.append(f"{name}: only a nullable field can be dropped, older readers need it")
    for name in before.keys() & after.keys():
        if not _same_shape(before[name]["type"], after[name]["type"]):
            faults.append(f"{name}: the type changed")
    return sorted(faults)


def _same_shape(old: Any, new: Any) -> bool:
    """Equal up to docs and attributes; enums may grow at the end."""
    if isinstance(old, list) or isinstance(new, list):
        (old_inner, old_null), (new_inner, new_null) = split_null(old), split_null(new)
        return old_null == new_null and _same_shape(old_inner, new_inner)
    if kind_of(old) != kind_of(new):
        return False
    if not isinstance(old, dict) or not isinstance(new, dict):
        return True
    if old["type"] == "enum":
        return old.get("name") == new.get("name") and new["symbols"][: len(old["symbols"])] == old["symbols"]
    if old["type"] == "array":
        return _same_shape(old["items"], new["items"])
    if old["type"] == "record":
        names = [f["name"] for f in old["fields"]], [f["name"] for f in new["fields"]]
        pairs = zip(old["fields"], new["fields"], strict=False)
        return names[0] == names[1] and all(_same_shape(a["type"], b["type"]) for a, b in pairs)
    return True
