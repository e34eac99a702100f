"""Security settings reach every aiokafka class through one function, and record bytes never reach a log."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

import pytest

from connectors.kafka_client import WireError, backoff_s, check_code, connection_options
from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError


def test_plain_text_has_no_security_settings() -> None:
    options = connection_options(ClusterConfig(bootstrap="a:1,b:2", request_timeout_s=2.5))
    assert options["bootstrap_servers"] == "a:1,b:2"
    assert options["request_timeout_ms"] == 2500
    assert options["security_protocol"] == "PLAINTEXT"
    assert not {name for name in options if name.startswith(("ssl", "sasl"))}


def test_sasl_over_tls_has_all_of_them() -> None:
    cluster = ClusterConfig(
        bootstrap="a:1", security_protocol="SASL_SSL", sasl_username="edge", sasl_password="secret"
    )
    options = connection_options(cluster)
    assert options["sasl_mechanism"] == "SCRAM-SHA-512"
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("edge", "secret")
    context = options["ssl_context"]
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize("field", ["ssl_cafile", "ssl_certfile"])
@pytest.mark.parametrize("content", [None, "sesame"])
def test_an_unusable_certificate_is_named_not_shown(tmp_path: Path, field: str, content: str | None) -> None:
    path = tmp_path / "file.pem"
    if content is not None:
        path.write_text(content)
    cluster = ClusterConfig.model_validate({"bootstrap": "a:1", "security_protocol": "SSL", field: path})
    with pytest.raises(ConfigError, match=field) as caught:
        connection_options(cluster)
    assert "sesame" not in str(caught.value)


def test_no_address_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="bootstrap"):
        connection_options(ClusterConfig())


def test_loggers_that_print_records_stay_above_debug() -> None:
    for name in ("aiokafka.conn", "aiokafka.producer.producer"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    connection_options(ClusterConfig(bootstrap="a:1"))
    assert not any(
        logging.getLogger(name).isEnabledFor(logging.DEBUG)
        for name in ("aiokafka.conn", "aiokafka.producer.producer")
    )


def test_backoff_grows_to_its_cap_and_is_spread() -> None:
    assert all(0.05 <= backoff_s(attempt) <= 2 for attempt in range(1, 200))
    assert max(backoff_s(1) for _ in range(100)) <= 0.1
    assert len({backoff_s(9) for _ in range(20)}) > 10


def test_error_codes_have_names() -> None:
    check_code(0)
    with pytest.raises(WireError, match="NotLeaderForPartitionError"):
        check_code(6)
    with pytest.raises(WireError, match="error code 31000"):
        check_code(31_000)
