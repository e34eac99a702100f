"""The registry: schema files, and the lock that gives each version its id.

Comes in: the ``schemas/`` folder. Goes out: :class:`SchemaStore`. Invariants: an id in ``lock.json`` means
one schema text for ever, so every record ever written can be read; what runs is exactly what is locked.
Subjects: ``<event>``, ``<region>.curated.<event>``, ``control.<name>``.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from fastavro.schema import (
    SchemaParseException,
    UnknownType,
    fingerprint,
    parse_schema,
    to_parsing_canonical_form,
)

from pipeline.codec import Codec
from pipeline.control_records import ControlCodec
from pipeline.errors import ConfigError
from pipeline.events import (
    ENVELOPE,
    TAGS,
    EventField,
    EventType,
    LockedSchema,
    arrow_schema,
    text_digest,
)
from pipeline.lint import evolution, lint

__all__ = [
    "ENVELOPE",
    "TAGS",
    "EventField",
    "EventType",
    "LockedSchema",
    "SchemaStore",
    "arrow_schema",
    "avro_fingerprint",
    "evolution",
    "lint",
    "lock",
    "source_schemas",
]

LOCK_FILE = "lock.json"
_REMEDY = "run `pipeline schema lock`"


def avro_fingerprint(schema: dict[str, Any]) -> str:
    """CRC-64-AVRO of the parsing canonical form as 16 hex digits, most significant first (Avro 1.12, "Schema
    Fingerprints"); raises ConfigError for what is not an Avro schema."""
    try:
        parse_schema(json.loads(json.dumps(schema)))
        digest = fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO")
    except (SchemaParseException, UnknownType, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"not an Avro schema: {type(error).__name__}: {error}", operation="schema"
        ) from error
    return bytes.fromhex(digest)[::-1].hex()  # fastavro prints the bytes of the little-endian number


class SchemaStore:
    """All locked schemas, and the events at their current versions. Read-only after :meth:`load`."""

    def __init__(self, entries: list[LockedSchema], event_names: list[str]) -> None:
        self._by_id = {entry.id: entry for entry in entries}
        self._latest: dict[str, LockedSchema] = {}
        for entry in entries:
            known = self._latest.get(entry.subject)
            if known is None or known.version < entry.version:
                self._latest[entry.subject] = entry
        self._event_names = event_names
        self._codecs: dict[int, Codec] = {}
        self._control_codecs: dict[int, ControlCodec] = {}

    @classmethod
    def load(cls, path: Path) -> SchemaStore:
        """Read the folder. Raises ConfigError when a file is not the latest locked version of its subject,
        a locked text was altered, or a schema does not pass the linter."""
        entries = _read_lock(path / LOCK_FILE)
        sources = source_schemas(path)
        latest = {e.subject: e for e in sorted(entries, key=lambda e: e.version)}
        for subject, schema in sources.items():
            if subject not in latest or latest[subject].digest != text_digest(schema):
                raise ConfigError(
                    f"{subject} is not in the lock", operation="schema", place=str(path), remedy=_REMEDY
                )
        return cls(entries, [subject for subject in sources if not subject.startswith("control.")])

    @cached_property
    def events(self) -> dict[str, EventType]:
        """Every event that has a file, by name."""
        found = {}
        for name in self._event_names:
            entry = self._latest[name]
            found[name] = EventType(name, entry.version, entry.id, entry.schema)
        return found

    def by_id(self, schema_id: int) -> LockedSchema:
        """The schema of an id; KeyError for an id that was never given."""
        return self._by_id[schema_id]

    def latest(self, subject: str) -> LockedSchema:
        """The newest version of a subject; ConfigError when there is none."""
        try:
            return self._latest[subject]
        except KeyError:
            raise ConfigError(
                f"{subject} is not in the lock", operation="schema", place=subject, remedy=_REMEDY
            ) from None

    def subjects(self) -> list[str]:
        """Every subject ever locked, sorted."""
        return sorted(self._latest)

    def entries(self) -> list[LockedSchema]:
        """The whole lock, by id."""
        return sorted(self._by_id.values(), key=lambda entry: entry.id)

    def codec(self, schema_id: int) -> Codec:
        """The codec of an id, built once; KeyError for an id that was never given."""
        if schema_id not in self._codecs:
            self._codecs[schema_id] = Codec(self._by_id[schema_id])
        return self._codecs[schema_id]

    def control_codec(self, schema_id: int) -> ControlCodec:
        """The codec of a control schema, built once; KeyError for an id that was never given."""
        if schema_id not in self._control_codecs:
            self._control_codecs[schema_id] = ControlCodec(self._by_id[schema_id])
        return self._control_codecs[schema_id]

    def fingerprints(self, event: str) -> dict[bytes, int]:
        """Ids of the event's raw versions by the 8 bytes of a single-object header; the newest wins."""
        entries = (entry for entry in self.entries() if entry.subject == event)
        return {bytes.fromhex(entry.fingerprint)[::-1]: entry.id for entry in entries}

    def event_of(self, schema_id: int) -> str | None:
        """The event whose raw records carry this id (any version); None for every other id."""
        entry = self._by_id.get(schema_id)
        return entry.subject if entry is not None and "." not in entry.subject else None


def source_schemas(path: Path) -> dict[str, dict[str, Any]]:
    """The schema files as subject → schema: ``events/*.avsc`` and ``control/*.avsc``.

    Raises ConfigError when a file cannot be read, is misnamed or does not pass the linter, with every fault.
    """
    envelope = _read_json(path / "envelope.avsc")
    found: dict[str, dict[str, Any]] = {}
    faults: list[str] = []
    for folder, prefix in (("control", "control."), ("events", "")):
        for file in sorted((path / folder).glob("*.avsc")):
            schema = _read_json(file)
            subject = f"{prefix}{file.stem}"
            if schema.get("name") != file.stem:
                faults.append(f"{subject}: the record's name differs from the file's")
            faults += [
                f"{subject}: {fault}" for fault in lint(schema, envelope if folder == "events" else None)
            ]
            found[subject] = schema
    if faults:
        raise ConfigError("; ".join(faults), operation="schema", place=str(path))
    return found


def lock(path: Path, derived: dict[str, dict[str, Any]], *, breaking: bool = False) -> list[LockedSchema]:
    """Give an id to every schema text that has none; returns the new entries and writes ``lock.json``.

    ``derived``: curated schemas by subject. Ids are never changed or given again, also not after an event's
    file is gone. Raises ConfigError, and writes nothing, when a raw event's new version could not be read
    beside its old one, unless ``breaking``.
    """
    file = path / LOCK_FILE
    entries = _read_lock(file) if file.exists() else []
    latest = {e.subject: e for e in sorted(entries, key=lambda e: e.version)}
    sources = source_schemas(path)
    faults = [f"{subject}: {fault}" for subject, schema in derived.items() for fault in lint(schema)]
    added: list[LockedSchema] = []
    for subject, schema in {**sources, **dict(sorted(derived.items()))}.items():
        old = latest.get(subject)
        if old is not None and old.digest == text_digest(schema):
            continue
        if old is not None and subject in sources and not breaking:
            faults += [f"{subject}: {fault}" for fault in evolution(old.schema, schema)]
        added.append(
            LockedSchema(
                id=1 + max((e.id for e in [*entries, *added]), default=0),
                subject=subject,
                version=1 if old is None else old.version + 1,
                fingerprint=avro_fingerprint(schema),
                digest=text_digest(schema),
                schema=schema,
            )
        )
    if faults:
        raise ConfigError("; ".join(faults), operation="schema lock", place=str(path))
    if added or not file.exists():
        _write_lock(file, [*entries, *added])
    return added


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", operation="schema", place=str(file)) from error
    except ValueError as error:
        raise ConfigError(f"not JSON: {error}", operation="schema", place=str(file)) from error
    if not isinstance(value, dict):
        raise ConfigError("expected a JSON object", operation="schema", place=str(file))
    return value


def _read_lock(file: Path) -> list[LockedSchema]:
    if not file.exists():
        raise ConfigError("there is no lock", operation="schema", place=str(file), remedy=_REMEDY)
    entries: list[LockedSchema] = []
    try:
        for row in _read_json(file)["schemas"]:
            entries.append(
                LockedSchema(
                    row["id"],
                    row["subject"],
                    row["version"],
                    row["fingerprint"],
                    row["digest"],
                    row["schema"],
                )
            )
    except (KeyError, TypeError) as error:
        raise ConfigError(f"not a lock: {error!r}", operation="schema", place=str(file)) from error
    _verify_lock(entries, file)
    return entries


def _verify_lock(entries: list[LockedSchema], file: Path) -> None:
    """A merge or an editor may have bent the file: ids unique, versions unique, texts as they were."""
    ids, versions = set(), set()
    for entry in entries:
        if entry.id in ids or (entry.subject, entry.version) in versions or not 0 < entry.id < 2**31:
            raise ConfigError(
                f"id {entry.id} ({entry.subject} version {entry.version}) occurs twice",
                operation="schema lock",
                place=str(file),
                remedy="restore the file from version control and lock again",
            )
        ids.add(entry.id)
        versions.add((entry.subject, entry.version))
        if text_digest(entry.schema) != entry.digest or avro_fingerprint(entry.schema) != entry.fingerprint:
            raise ConfigError(
                f"the text of id {entry.id} ({entry.subject}) was changed",
                operation="schema lock",
                place=str(file),
                remedy="restore the file from version control; a changed schema gets a new id",
            )


def _write_lock(file: Path, entries: list[LockedSchema]) -> None:
    """One line of heading and one line of schema per entry: a diff shows additions only."""
    rows = []
    for entry in sorted(entries, key=lambda e: e.id):
        head = {k: getattr(entry, k) for k in ("id", "subject", "version", "fingerprint", "digest")}
        schema = json.dumps(entry.schema, ensure_ascii=False, separators=(",", ":"))
        rows.append(f'{json.dumps(head)[:-1]},\n  "schema": {schema}}}')
    temporary = file.with_suffix(".json.new")
    temporary.write_text('{"schemas": [\n' + ",\n".join(rows) + "\n]}\n", encoding="utf-8")
    temporary.replace(file)
