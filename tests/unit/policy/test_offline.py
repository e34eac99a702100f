"""policy apply: the plan's own answer from every kind of file, whole files or none, every row accounted."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from connectors.file_sink import ROW_GROUP_ROWS, FileSink
from pipeline.errors import ConfigError, RecordError, TransientError
from pipeline.policy import Plan
from pipeline.policy.offline import ByName
from pipeline.policy.standalone import Standalone
from tests.unit.policy.policy_files import CANARY, EVENT, PolicyFiles


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> PolicyFiles:
    return PolicyFiles(tmp_path_factory.mktemp("files"))


def apply(files: PolicyFiles, file: Path, out: Path, *more: str | Path, event: str = EVENT) -> dict:
    return files.json("policy", "apply", file, "--event", event, "--region", "eu", "--out", out, *more)


def written(files: PolicyFiles, tmp_path: Path, form: str) -> Path:
    """The raw events in another format."""
    table = pa.Table.from_batches([files.batch])
    file = tmp_path / f"raw.{form}"
    if form == "parquet":
        pq.write_table(table, file)
    elif form.startswith("csv"):
        pa.csv.write_csv(table, tmp_path / "raw.csv")
        if form == "csv.gz":
            file.write_bytes(gzip.compress((tmp_path / "raw.csv").read_bytes()))
    else:
        lines = (json.dumps(row, default=lambda moment: moment.isoformat()) for row in table.to_pylist())
        file.write_text("\n".join(lines))
    return file


@pytest.mark.parametrize("form", ["parquet", "csv", "csv.gz", "jsonl"])
def test_a_file_of_any_kind_gives_what_the_plan_gives(files, tmp_path, form):
    plan = files.project.plan("eu", "eu", files.event)
    applied = plan.apply(files.batch)
    told = apply(files, written(files, tmp_path, form), tmp_path / "out.parquet")
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.cast(plan.arrow).equals(pa.Table.from_batches([applied.batch]))
    filtered = {name: len(rows) for name, rows in applied.filtered.items()}
    assert filtered
    assert told["filtered"] == filtered
    assert (told["read"], told["passed"], told["rejected"]) == (3_000, len(applied.kept), [])


def test_parquet_keeps_the_tags_of_every_column_and_the_policys_hash(files, tmp_path):
    apply(files, files.raw, tmp_path / "out.parquet")
    schema = pq.read_schema(tmp_path / "out.parquet")
    plan = files.project.plan("eu", "eu", files.event)
    wanted = {column["name"]: column["confluent:tags"] for column in plan.schema["fields"]}
    for column in schema:
        assert json.loads(column.metadata[b"confluent:tags"]) == wanted[column.name] != []
    assert schema.metadata[b"policy_hash"].decode() == plan.policy_hash
    assert CANARY.encode() not in (tmp_path / "out.parquet").read_bytes()


def test_csv_out_holds_the_same_rows(files, tmp_path):
    apply(files, files.raw, tmp_path / "out.csv")
    apply(files, files.raw, tmp_path / "out.parquet")
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    table = pq.read_table(tmp_path / "out.parquet")
    assert [row["camera"] for row in rows] == table["camera"].to_pylist()
    assert list(rows[0]) == table.column_names


def test_rows_that_fail_are_listed_by_number_field_and_reason_and_never_by_value(files, tmp_path):
    file = tmp_path / "raw.csv"
    pa.csv.write_csv(pa.Table.from_batches([files.batch.slice(0, 8)]), file)
    header, *lines = [line.split(",") for line in file.read_text().splitlines()]
    place = {name.strip('"'): index for index, name in enumerate(header)}
    lines[1][place["score"]] = f'"{CANARY}"'
    lines[2][place["jurisdiction"]] = '"US-CA"'
    lines[3][place["score"]] = "7.5"
    lines[4][place["camera"]] = ""
    lines[5] = lines[5][:-2]
    file.write_text("\n".join(",".join(line) for line in [header, *lines]) + "\n")
    told = apply(files, file, tmp_path / "out.parquet", "--rejects", tmp_path / "bad.csv")
    text = (tmp_path / "bad.csv").read_text()
    assert CANARY not in text
    assert [tuple(row.values()) for row in csv.DictReader(text.splitlines())] == [
        ("2", "score", "type"), ("3", "jurisdiction", "jurisdiction_elsewhere"), ("4", "score", "range"),
        ("5", "camera", "field_missing"), ("6", "", "undecodable"),
    ]  # fmt: skip
    assert told["read"] == 8 == told["passed"] + sum(told["filtered"].values()) + 5
    assert sum(row["rows"] for row in told["rejected"]) == 5


def test_a_curated_file_crosses_the_border_with_origin_and_raw_position(files, tmp_path):
    apply(files, files.raw, tmp_path / "eu.parquet")
    curated = pq.read_table(tmp_path / "eu.parquet")
    count = len(curated)
    elsewhere = pa.array(["BR", *curated["jurisdiction"].to_pylist()[1:]])
    curated = curated.set_column(curated.schema.get_field_index("jurisdiction"), "jurisdiction", elsewhere)
    curated = curated.append_column("raw_partition", pa.array([1] * count, pa.int32()))
    curated = curated.append_column("raw_offset", pa.array(range(count), pa.int64()))
    pq.write_table(curated, tmp_path / "stored.parquet")
    told = apply(files, tmp_path / "stored.parquet", tmp_path / "core.parquet", "--to", "core")
    found = pq.read_table(tmp_path / "core.parquet")
    assert (told["read"], told["passed"]) == (count, count - 1)
    assert set(found["origin"].to_pylist()) == {"eu"}
    assert found["raw_offset"].to_pylist() == list(range(1, count))
    assert pq.read_schema(tmp_path / "core.parquet").metadata[b"destination"] == b"core"


def test_a_declared_mapping_serves_as_in_replay(files, tmp_path):
    file = tmp_path / "temperatures.csv"
    file.write_text("timestamp,value\n2026-03-14 09:26:53,32.0\n2026-03-14 09:31:53,warm\n")
    told = apply(
        files, file, tmp_path / "out.parquet", "--mapping", "nab_machine_temperature",
        "--jurisdiction", "DE", event="machine_reading",
    )  # fmt: skip
    assert (told["read"], told["passed"]) == (2, 1)
    assert told["rejected"] == [{"field": "sensor_1", "reason": "type", "rows": 1}]
    assert pq.read_table(tmp_path / "out.parquet")["sensor_1"].to_pylist() == [0.0]


def test_a_plan_that_fails_leaves_neither_a_file_nor_a_piece_of_one(files, tmp_path, monkeypatch):
    out = tmp_path / "out.parquet"
    out.write_bytes(b"what was there")
    big = written(files, tmp_path, "csv")
    sound, calls = Plan.transform, []

    def fails_later(self: Plan, batch: pa.RecordBatch) -> pa.RecordBatch:
        calls.append(len(batch))
        if len(calls) > 1:
            raise TransientError("the key store is away, says the test")
        return sound(self, batch)

    monkeypatch.setattr(Plan, "transform", fails_later)
    monkeypatch.setattr("connectors.files.BLOCK_BYTES", 1 << 16)
    result = files.call("policy", "apply", big, "--event", EVENT, "--region", "eu", "--out", out,
                        "--rejects", tmp_path / "bad.csv")  # fmt: skip
    assert isinstance(result.exception, TransientError)
    assert len(calls) == 2
    assert out.read_bytes() == b"what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "raw.csv"]


def test_a_file_that_breaks_off_leaves_no_output(files, tmp_path):
    whole = written(files, tmp_path, "csv.gz")
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    result = files.call("policy", "apply", whole, "--event", EVENT, "--region", "eu",
                        "--out", tmp_path / "out.parquet")  # fmt: skip
    assert isinstance(result.exception, RecordError)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(("changes", "says"), [
    ({"--region": "us-ca"}, "no key"),
    ({"--out": "raw.parquet"}, "different files"),
    ({"--out": "out.json"}, "no format known"),
    ({"--event": "nothing"}, "unknown event"),
    ({"--to": "us-ca"}, "no leg from eu to us-ca"),
    ({"--jurisdiction": "BR"}, "does not belong"),
    ({"--region": "cn", "--event": "vehicle_telemetry"}, "column|consent|key"),
])  # fmt: skip
def test_wrong_use_is_told_before_anything_is_written(files, tmp_path, changes, says):
    options = {"--region": "eu", "--event": EVENT, "--out": "out.parquet"} | changes
    before = {path.name for path in files.folder.iterdir()}
    options["--out"] = str(files.folder / options["--out"])
    result = files.call("policy", "apply", files.raw, *[part for pair in options.items() for part in pair])
    assert isinstance(result.exception, ConfigError)
    assert re.search(says, str(result.exception)), result.exception
    assert {path.name for path in files.folder.iterdir()} == before


def test_a_leg_that_asks_for_consent_does_not_run_on_a_file(files):
    files.project.create_keys(["cn"])
    plan = files.project.plan("cn", "cn", files.project.schemas.events["vehicle_telemetry"])
    with pytest.raises(ConfigError, match="people's choices are not known here"):
        Standalone(plan)


def test_a_file_without_a_column_that_must_be_there_is_refused_with_its_name(files):
    columns = pa.schema([f for f in files.event.arrow if f.name not in ("camera", "spool", "model")])
    with pytest.raises(ConfigError, match="the file has no column camera"):
        ByName(files.event, columns)


def test_text_that_is_not_utf8_is_no_value(files):
    given = {name: files.batch.column(name).slice(0, 2) for name in files.batch.schema.names}
    given["camera"] = pa.array([b"fine", b"\xff\xfe"], pa.binary()).view(pa.string())
    batch = pa.RecordBatch.from_pydict(given)
    conformed = ByName(files.event, batch.schema).apply(batch, None)
    assert conformed.bad == {1: ("camera", "type")}
    conformed.batch.take(pa.array([0])).validate(full=True)


def test_a_sink_holds_no_more_than_a_row_group(tmp_path):
    batch = pa.RecordBatch.from_pydict({"a": list(range(50_000))})
    with FileSink(tmp_path / "out.parquet", batch.schema) as sink:
        for _ in range(8):
            sink.write(batch)
            assert sink._pending_rows < ROW_GROUP_ROWS
    assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups > 1
    assert pq.read_metadata(tmp_path / "out.parquet").num_rows == 400_000
