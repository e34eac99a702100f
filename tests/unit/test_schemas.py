"""The registry: what may be locked, and that an id means one text for ever."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.events import ENVELOPE, TAGS, text_digest
from pipeline.lint import evolution, lint
from pipeline.policy import derived_schemas, load_packs
from pipeline.schemas import SchemaStore, avro_fingerprint, lock, source_schemas
from tests.shared_data import shared_data
from tests.unit.schema_samples import SCHEMAS, event_schema, every_type, random_batch, tagged


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the project's schemas without the curated ones, to bend."""
    for part in ("events", "control"):
        shutil.copytree(SCHEMAS / part, tmp_path / part)
    shutil.copy(SCHEMAS / "envelope.avsc", tmp_path)
    lock(tmp_path, {})
    return tmp_path


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


# -- the project's own schemas


def test_the_projects_schemas_are_locked_and_pass_the_linter() -> None:
    store = SchemaStore.load(SCHEMAS)
    assert set(store.events) == {
        "vehicle_telemetry", "machine_reading", "meter_reading", "object_detection", "inference_output",
    }  # fmt: skip
    for name, event in store.events.items():
        assert tuple(f.name for f in event.fields[:7]) == ENVELOPE
        assert event.own_fields == event.fields[7:]
        assert store.event_of(event.schema_id) == name
        assert store.latest(name).id == event.schema_id
    for entry in store.entries():
        assert lint(entry.schema) == []
        assert store.by_id(entry.id) is entry


def test_every_field_says_what_it_is_and_in_which_unit() -> None:
    event = SchemaStore.load(SCHEMAS).events["vehicle_telemetry"]
    latitude = event.field("latitude")
    assert (latitude.role, latitude.unit, latitude.minimum, latitude.maximum) == ("latitude", "deg", -90, 90)
    assert latitude.tags == {"location.precise"}
    assert latitude.nullable
    assert event.field("vin").tags == {"identifier.device"}
    assert event.field("driver").tags == {"identifier.direct"}
    for found in SchemaStore.load(SCHEMAS).events.values():
        for field in found.fields:
            assert field.doc
            assert field.tags <= TAGS.keys()
            if field.kind in ("double", "long", "int"):
                assert field.unit


def test_ids_that_are_not_events_have_no_event() -> None:
    store = SchemaStore.load(SCHEMAS)
    assert store.event_of(store.latest("control.stats").id) is None
    assert store.event_of(2**31 - 1) is None
    with pytest.raises(KeyError):
        store.by_id(2**31 - 1)
    with pytest.raises(ConfigError, match="no_such is not in the lock"):
        store.latest("no_such")


def test_the_curated_schemas_that_the_packs_give_are_locked() -> None:
    store = SchemaStore.load(SCHEMAS)
    packs = load_packs(SCHEMAS / "policies", store.events)
    for subject, schema in derived_schemas(packs, store.events).items():
        assert store.latest(subject).schema == schema


# -- the lock


def test_locking_again_changes_nothing(folder: Path) -> None:
    before = (folder / "lock.json").read_bytes()
    assert lock(folder, {}) == []
    assert (folder / "lock.json").read_bytes() == before


def test_a_changed_file_is_refused_until_it_is_locked_and_then_gets_a_new_id(folder: Path) -> None:
    old = SchemaStore.load(folder).events["meter_reading"]
    edit(folder / "events" / "meter_reading.avsc", '"identifier.direct"', '"pseudonym"')  # a tag alone
    with pytest.raises(ConfigError, match=r"meter_reading is not in the lock .*pipeline schema lock"):
        SchemaStore.load(folder)
    before = (folder / "lock.json").read_text(encoding="utf-8")
    (added,) = lock(folder, {})
    assert (added.subject, added.version) == ("meter_reading", 2)
    assert (folder / "lock.json").read_text(encoding="utf-8").startswith(before.removesuffix("\n]}\n"))
    store = SchemaStore.load(folder)
    assert store.events["meter_reading"].schema_id == added.id != old.schema_id
    assert store.by_id(old.schema_id).schema == old.schema
    assert store.by_id(old.schema_id).fingerprint == added.fingerprint  # Avro's fingerprint does not see tags
    batch = random_batch(old, 5, 1)
    framed = store.codec(old.schema_id).encode_bare(batch)
    assert store.codec(old.schema_id).decode(framed)[0].equals(batch)


def test_the_id_of_a_removed_event_is_never_given_again(folder: Path) -> None:
    gone = SchemaStore.load(folder).events["object_detection"]
    (folder / "events" / "object_detection.avsc").unlink()
    schema = event_schema(tagged("word", "string"), name="word_seen")
    (folder / "events" / "word_seen.avsc").write_text(json.dumps(schema), encoding="utf-8")
    (added,) = lock(folder, {})
    store = SchemaStore.load(folder)
    assert "object_detection" not in store.events
    assert store.by_id(gone.schema_id).schema == gone.schema
    assert added.id == max(entry.id for entry in store.entries())


def test_going_back_to_an_older_text_is_a_new_version(folder: Path) -> None:
    file = folder / "events" / "meter_reading.avsc"
    original = file.read_text(encoding="utf-8")
    edit(file, "Mean voltage", "Average voltage")
    lock(folder, {})
    file.write_text(original, encoding="utf-8")
    with pytest.raises(ConfigError, match="not in the lock"):
        SchemaStore.load(folder)
    (added,) = lock(folder, {})
    assert added.version == 3


def test_a_breaking_change_is_refused_and_nothing_is_written(folder: Path) -> None:
    before = (folder / "lock.json").read_bytes()
    schema = json.loads((folder / "events" / "meter_reading.avsc").read_text(encoding="utf-8"))
    schema["fields"] = [f for f in schema["fields"] if f["name"] != "energy_kwh"]
    (folder / "events" / "meter_reading.avsc").write_text(json.dumps(schema), encoding="utf-8")
    with pytest.raises(ConfigError, match="meter_reading: energy_kwh: only a nullable field can be dropped"):
        lock(folder, {})
    assert (folder / "lock.json").read_bytes() == before
    (added,) = lock(folder, {}, breaking=True)
    assert added.version == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version": 1', '"version": 9', None),
        ('"doc":"', '"doc":"bent ', "the text of id 1 .* was changed"),
        ('"id": 2,', '"id": 1,', "id 1 .* occurs twice"),
        ('"fingerprint": "', '"fingerprint": "0', "was changed"),
        ('"subject"', '"topic"', "not a lock"),
        ("{", "", "not JSON"),
    ],
)
def test_a_bent_lock_is_noticed(folder: Path, old: str, new: str, message: str | None) -> None:
    edit(folder / "lock.json", old, new)
    if message is None:
        assert SchemaStore.load(folder)
        return
    with pytest.raises(ConfigError, match=message):
        SchemaStore.load(folder)


def test_a_missing_lock_says_what_to_run(folder: Path) -> None:
    (folder / "lock.json").unlink()
    with pytest.raises(ConfigError, match="pipeline schema lock"):
        SchemaStore.load(folder)


def test_derived_schemas_are_locked_by_subject_and_belong_to_no_raw_event(folder: Path) -> None:
    curated = curated_sample()
    (added,) = lock(folder, {"eu.curated.sample": curated})
    store = SchemaStore.load(folder)
    assert store.latest("eu.curated.sample").id == added.id
    assert store.event_of(added.id) is None
    (again,) = lock(folder, {"eu.curated.sample": curated | {"doc": "Another."}})
    assert (again.id, again.version) == (added.id + 1, 2)
    with pytest.raises(ConfigError, match=r"eu\.curated\.sample: .*ends with raw_partition"):
        lock(folder, {"eu.curated.sample": curated | {"fields": curated["fields"][:-1]}})


def curated_sample() -> dict[str, Any]:
    position = [
        tagged("raw_partition", "int", unit="1") | {"confluent:tags": ["transport"]},
        tagged("raw_offset", "long", unit="1") | {"confluent:tags": ["transport"]},
    ]
    return {
        "type": "record", "name": "sample", "namespace": "pipeline.curated.eu", "doc": "A sample.",
        "fields": [tagged("word", "string"), *position],
    }  # fmt: skip


def test_every_fault_of_every_file_is_reported_at_once(folder: Path) -> None:
    edit(folder / "events" / "meter_reading.avsc", '"unit": "kWh"', '"unit": ""')
    edit(
        folder / "events" / "machine_reading.avsc",
        '"confluent:tags": ["measurement"]',
        '"confluent:tags": []',
    )
    (folder / "events" / "misnamed.avsc").write_text(json.dumps(event_schema()), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        source_schemas(folder)
    for expected in ("energy_kwh: a number without unit", "cycle: no tag", "misnamed: the record's name"):
        assert expected in str(caught.value)


# -- the linter


def test_a_schema_of_every_allowed_kind_passes() -> None:
    assert lint(every_type()) == []


def nested(depth: int) -> dict[str, Any]:
    inner: Any = "string"
    for level in range(depth):
        inner = {"type": "record", "name": f"L{level}", "fields": [tagged("next", inner)]}
    return inner


@pytest.mark.parametrize(
    ("field", "fault"),
    [
        ({"name": "a", "type": "string", "doc": "A."}, "a: no tag"),
        (tagged("a", "string") | {"confluent:tags": ["identifer.direct"]}, "a: unknown tag identifer.direct"),
        (tagged("a", "string") | {"confluent:tags": "category"}, "a: no tag"),
        (tagged("a", "string", doc=""), "a: no doc"),
        (tagged("a", "double") | {"confluent:tags": ["measurement"]}, "a: a number without unit"),
        (
            tagged("a", "double", unit="m") | {"confluent:tags": ["measurement"]},
            "a: a measurement needs minimum",
        ),
        (
            tagged("a", "double", unit="deg", minimum=0) | {"confluent:tags": ["location.precise"]},
            "a: a measurement needs minimum and maximum",
        ),
        (tagged("a", "double", unit="1", minimum=2, maximum=1), "a: minimum above maximum"),
        (tagged("a", "double", unit="1", minimum="0", maximum=1), "a: minimum and maximum are numbers"),
        (tagged("a", "string", minimum=1), "a: minimum on a string"),
        (tagged("a", "bytes"), "a: type bytes is not supported"),
        (tagged("a", {"type": "fixed", "name": "F", "size": 4}), "a: type fixed is not supported"),
        (tagged("a", {"type": "map", "values": "long"}), "a: type map is not supported"),
        (tagged("a", ["null", "string", "long"]), "a: the only union allowed"),
        (tagged("a", ["string", "null"]), "a: the only union allowed"),
        (tagged("a", ["null", "null"]), "a: the only union allowed"),
        (
            {"name": "a", "type": ["null", "string"], "doc": "A.", "confluent:tags": ["quasi"]},
            'a: a nullable field needs "default": null',
        ),
        (tagged("a", {"type": "array", "items": "null"}), "a: an array of null takes no bytes"),
        (tagged("a", {"type": "array", "items": {"type": "null"}}), "a: an array of null takes no bytes"),
        (tagged("a", {"type": "record", "name": "R", "fields": []}), "a: an empty record takes no bytes"),
        (
            tagged("a", {"type": "array", "items": {"type": "record", "name": "R", "fields": []}}),
            "a.item: an empty record takes no bytes",
        ),
        (tagged("a", ["null", "sample"]), "a: recursive"),
        (tagged("a", ["null", "pipeline.events.sample"]), "a: recursive"),
        (tagged("a", {"type": "array", "items": "sample"}), "a.item: recursive"),
        (
            tagged("a", {"type": "record", "name": "sample", "fields": [tagged("b", "string")]}),
            "a: recursive",
        ),
        (tagged("a", nested(5)), "nested deeper than 4"),
        (tagged("a", {"type": "enum", "name": "E", "symbols": []}), "a: an enum needs"),
        (tagged("a", {"type": "enum", "name": "E", "symbols": ["A", "A"]}), "a: an enum needs"),
        (tagged("a", {"type": "long", "logicalType": "time-micros"}), "a: logical type time-micros"),
        (tagged("a", {"type": "int", "logicalType": "timestamp-micros"}), "a: logical type timestamp-micros"),
        (tagged("Vin", "string"), "Vin: names are lower case"),
        (tagged("SOURCE", "string"), "SOURCE: the name occurs twice"),
        (tagged("raw_offset", "long", unit="1"), "raw_offset: the name belongs to the raw position"),
        (tagged("order", "string"), "order: the name is reserved in SQL"),
        (tagged("rowid", "string"), "rowid: the name is reserved in SQL"),
        ({"type": "string"}, "a field without name or type"),
    ],
)
def test_the_linter_names_the_field_and_the_fault(field: dict[str, Any], fault: str) -> None:
    faults = lint(event_schema(field))
    assert any(found.startswith(fault) or fault in found for found in faults), faults


def test_the_envelope_must_be_the_same_to_the_letter() -> None:
    envelope = json.loads((SCHEMAS / "envelope.avsc").read_text(encoding="utf-8"))
    schema = event_schema(tagged("a", "string"))
    assert lint(schema, envelope) == []
    bent = copy.deepcopy(schema)
    bent["fields"][0]["confluent:tags"] = ["transport"]
    assert lint(bent, envelope) == ["source: differs from schemas/envelope.avsc"]
    bent["fields"][0], bent["fields"][1] = bent["fields"][1], bent["fields"][0]
    assert lint(bent, envelope)[0].startswith("the first fields must be the envelope: source, spool")


@pytest.mark.parametrize("broken", [{}, {"type": "enum"}, {"type": "record", "name": "a"}, [], "string"])
def test_what_is_no_record_is_no_event(broken: Any) -> None:
    assert lint(broken) == ["expected a record with fields"]


# -- evolution


def changed(**types: Any) -> dict[str, Any]:
    """The sample of every type with fields replaced, or dropped when None."""
    schema = every_type()
    fields = [f for f in schema["fields"] if types.get(f["name"], f) is not None]
    schema["fields"] = [f | {"type": types[f["name"]]} if f["name"] in types else f for f in fields]
    return schema


KIND = {"type": "enum", "name": "Kind", "symbols": ["RED", "GREEN", "BLUE"]}


@pytest.mark.parametrize(
    ("new", "fault"),
    [
        (every_type(), None),
        (every_type() | {"doc": "Another."}, None),
        (every_type() | {"name": "other"}, "the record's name changed"),
        (changed(maybe_word=None), None),
        (changed(word=None), "word: only a nullable field can be dropped"),
        (changed(small="long"), "small: the type changed"),
        (changed(word=["null", "string"]), "word: the type changed"),
        (changed(kind=KIND | {"symbols": ["RED", "GREEN", "BLUE", "GREY"]}), None),
        (changed(kind=KIND | {"symbols": ["GREEN", "RED", "BLUE"]}), "kind: the type changed"),
        (changed(kind=KIND | {"symbols": ["RED", "GREEN"]}), "kind: the type changed"),
        (changed(words={"type": "array", "items": "long"}), "words: the type changed"),
        (changed(millis="long"), "millis: the type changed"),
    ],
)
def test_a_new_version_must_stand_beside_the_old(new: dict[str, Any], fault: str | None) -> None:
    found = evolution(every_type(), new)
    assert found == [] if fault is None else fault in found[0]


def test_new_fields_must_be_nullable() -> None:
    old = event_schema(tagged("a", "string"))
    assert evolution(old, event_schema(tagged("a", "string"), tagged("b", ["null", "string"]))) == []
    faults = evolution(old, event_schema(tagged("a", "string"), tagged("b", "string")))
    assert faults == ["b: a new field must be nullable, older records do not have it"]


# -- fingerprints


def test_fingerprints_agree_with_the_vectors_of_the_avro_project() -> None:
    text = shared_data("vectors", "avro", "data", "schema-tests.txt").read_text(encoding="utf-8")
    cases = re.findall(r"<<INPUT (.*)\n<<canonical .*\n<<fingerprint (-?\d+)", text)
    tried = 0
    for source, expected in cases:
        schema = json.loads(source)
        if isinstance(schema, dict):
            assert int(avro_fingerprint(schema), 16) == int(expected) % 2**64, source
            tried += 1
    assert tried >= 8


def test_the_digest_sees_what_the_fingerprint_does_not() -> None:
    schema = event_schema(tagged("a", "string"))
    other = event_schema(tagged("a", "string") | {"confluent:tags": ["quasi"]})
    assert avro_fingerprint(schema) == avro_fingerprint(other)
    assert text_digest(schema) != text_digest(other)
    assert text_digest(schema) == text_digest(dict(reversed(schema.items())))


@pytest.mark.parametrize(
    "broken", [{"type": "record"}, {"type": "nonsense"}, {"type": "array", "items": "x"}]
)
def test_what_is_no_avro_schema_has_no_fingerprint(broken: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="not an Avro schema"):
        avro_fingerprint(broken)
