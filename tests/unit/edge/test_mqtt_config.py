"""What the bridge's configuration refuses before anything is connected, and how filters meet topics."""

from __future__ import annotations

import tomllib

import aiomqtt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.mqtt_bridge import MqttBridge
from pipeline.config import parse_config
from pipeline.errors import ConfigError
from pipeline.mqtt_config import MqttConfig, filter_levels, matches, overlap
from tests.edge_world import schemas
from tests.mqtt_world import CLOUD, ROUTE
from tests.shared_data import PROJECT

SPARKPLUG = {
    "filter": "spBv1.0/#",
    "payload": "sparkplug-b",
    "event": "machine_reading",
    "jurisdiction": {"value": "DE"},
    "fields": {"machine": {"topic_level": 3}, "sensor_1": "Temperature"},
}
LEVEL = st.sampled_from(["a", "b", "+"])
FILTERS = st.tuples(st.lists(LEVEL, min_size=1, max_size=4), st.booleans()).map(
    lambda made: "/".join(made[0] + ["#"] * made[1])
)
TOPICS = st.lists(st.sampled_from(["a", "b", ""]), min_size=1, max_size=5).map("/".join).filter(bool)


def loaded(*routes, **changes):
    return parse_config({"edge": {"mqtt": {"routes": routes or (ROUTE,)} | changes}}, "test").edge.mqtt


def without(route, *names):
    return {name: value for name, value in route.items() if name not in names}


def test_the_three_payloads():
    configured = loaded(ROUTE, CLOUD, SPARKPLUG, host="broker.example", tls=True, password="x", username="u")
    assert [route.payload for route in configured.routes] == ["json", "cloudevents-json", "sparkplug-b"]
    assert configured.routes[2].fields["sensor_1"].metric == "Temperature"
    assert "x" not in repr(configured.password)
    MqttBridge(None, configured, None, schemas().events)


@pytest.mark.parametrize(
    ("routes", "changes", "names"),
    [
        ([ROUTE], {"host": "broker.example"}, "tls"),
        ([ROUTE], {"password": "x"}, "username"),
        ([ROUTE], {"username": "u", "password": "x", "password_file": "/x"}, "password_file"),
        ([ROUTE], {"tls": True, "tls_cert": "/x"}, "tls_key"),
        ([ROUTE], {"tls_ca": "/x"}, "tls"),
        ([ROUTE], {"rejects_topic": "vehicles/x/telemetry"}, "rejects_topic"),
        ([ROUTE], {"rejects_topic": "refused/#"}, "rejects_topic"),
        ([ROUTE], {"backoff_min_s": 60}, "backoff_min_s"),
        ([ROUTE], {"unheard": 1}, "unheard"),
        ([ROUTE, ROUTE | {"filter": "vehicles/#"}], {}, "same topic"),
        ([ROUTE | {"filter": "a/#/b"}], {}, "filter"),
        ([ROUTE | {"filter": "a+/b"}], {}, "filter"),
        ([ROUTE | {"lane": "nowhere"}], {}, "lanes"),
        ([without(ROUTE, "jurisdiction")], {}, "jurisdiction"),
        ([without(ROUTE, "source")], {}, "source"),
        ([without(ROUTE, "event_time")], {}, "event_time"),
        ([without(ROUTE, "event")], {}, "event"),
        ([ROUTE | {"source": {"topic_level": 1, "value": "x"}}], {}, "exactly one"),
        ([ROUTE | {"fields": {"vin": {"metric": "x"}}}], {}, "metric"),
        ([ROUTE | {"event_time": {"arrival": True, "field": "t"}}], {}, "exactly one"),
        ([CLOUD | {"source": {"value": "x"}}], {}, "CloudEvent"),
        ([SPARKPLUG | {"fields": {"machine": {"topic_level": 3}}}], {}, "at least one metric"),
        ([SPARKPLUG | {"source": {"metric": "Name"}}], {}, "cannot be metrics"),
        ([SPARKPLUG | {"event_time": {"arrival": True}}], {}, "own time"),
        ([SPARKPLUG | {"sparkplug": {"after_gap": "drop"}}], {}, "rebirth"),
    ],
)
def test_faults_are_found_at_load(routes, changes, names):
    with pytest.raises(ConfigError, match=names):
        loaded(*routes, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"event": "nothing"},
        {"fields": {"vin": "v", "nothing": "x"}},
        {"fields": {"latitude": "x"}},  # vin has to have a value
        {"fields": {"vin": "v", "speed_m_s": {"field": "x", "unit": "km"}}},
    ],
)
def test_routes_that_do_not_fit_the_schemas_stop_at_the_start(changes):
    configured = MqttConfig.model_validate({"routes": [ROUTE | changes]})
    with pytest.raises(ConfigError):
        MqttBridge(None, configured, None, schemas().events)


@given(FILTERS, TOPICS)
@settings(max_examples=300, deadline=None)
def test_filters_take_what_another_implementation_says(one, topic):
    assert matches(filter_levels(one), topic.split("/")) == aiomqtt.Topic(topic).matches(one)


def test_topics_of_the_broker_itself_are_not_taken_by_a_leading_wildcard():
    assert not matches(("#",), ["$SYS", "x"])
    assert not matches(("+", "x"), ["$SYS", "x"])
    assert matches(("$SYS", "#"), ["$SYS", "x"])


@given(FILTERS, FILTERS, TOPICS)
@settings(max_examples=500, deadline=None)
def test_filters_that_do_not_overlap_share_no_topic(one, other, topic):
    mine, theirs = filter_levels(one), filter_levels(other)
    assert overlap(mine, theirs) == overlap(theirs, mine)
    if matches(mine, topic.split("/")) and matches(theirs, topic.split("/")):
        assert overlap(mine, theirs)


def test_a_shared_subscription_is_compared_without_its_group():
    assert filter_levels("$share/group/a/+") == ("a", "+")


def test_the_documented_configuration_loads_and_fits_the_schemas():
    text = (PROJECT / "docs" / "edge.md").read_text()
    (block,) = [part for part in text.split("```toml\n")[1:] if part.startswith("[edge.mqtt]")]
    configured = parse_config(tomllib.loads(block.split("```")[0]), "docs").edge.mqtt
    assert len(configured.routes) == 3
    MqttBridge(None, configured, None, schemas().events)
