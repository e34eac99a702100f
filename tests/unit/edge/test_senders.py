"""Who may send: what a class may emit, how it is known, and what a configuration must say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import parse_config
from pipeline.edge.senders import Peer, Senders, new_token
from pipeline.errors import ConfigError, RecordError
from pipeline.listen_config import SenderClass

SECRET = "value-that-must-not-be-told"
TOKEN, HASH = new_token()
OTHER, OTHER_HASH = new_token()
VEHICLES = {"token_sha256": [HASH], "sources": ["vehicle-*", "depot"], "events": ["vehicle_telemetry"]}


def senders(refused=None, **classes) -> Senders:
    made = {name: SenderClass.model_validate(one) for name, one in classes.items()}
    return Senders(made, refused.append if refused is not None else lambda _: None)


def may(permission, event="vehicle_telemetry", source="vehicle-1", jurisdiction="DE") -> str | None:
    """None when permitted, else the field that the refusal names."""
    try:
        permission.demand(event, (source,), (jurisdiction,))
    except RecordError as error:
        return error.field if error.reason == "sender" and SECRET not in str(error) else str(error)
    return None


@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        ({}, None),
        ({"source": "depot"}, None),
        ({"source": "depot-2"}, "source"),
        ({"source": "a-vehicle-1"}, "source"),
        ({"source": "VEHICLE-1"}, "source"),
        ({"source": "depot\n"}, "source"),
        ({"source": SECRET}, "source"),
        ({"event": "meter_reading"}, "event"),
        ({"event": SECRET}, "event"),
    ],
)
def test_a_class_emits_its_sources_and_events_and_no_others(asked, refused):
    counted: list[str] = []
    permission = senders(counted, vehicles=VEHICLES).permission(Peer(TOKEN))
    assert may(permission, **asked) == refused
    assert counted == ([refused] if refused else [])


def test_one_foreign_source_refuses_the_batch():
    permission = senders(vehicles=VEHICLES).permission(Peer(TOKEN))
    with pytest.raises(RecordError):
        permission.demand("vehicle_telemetry", ["vehicle-1"] * 500 + ["meter-1"], ["DE"])


def test_jurisdictions_when_they_are_named():
    permission = senders(one=VEHICLES | {"jurisdictions": ["DE", "US-*"]}).permission(Peer(TOKEN))
    assert may(permission) is None
    assert may(permission, jurisdiction="US-CA") is None
    assert may(permission, jurisdiction="BR") == "jurisdiction"
    assert may(permission, jurisdiction=None) == "jurisdiction"


@pytest.mark.parametrize("token", [None, "", OTHER, HASH, TOKEN[:-1], TOKEN + "x", "\udce4"])
def test_whoever_is_not_known_is_refused(token):
    counted: list[str] = []
    with pytest.raises(RecordError) as caught:
        senders(counted, vehicles=VEHICLES).permission(Peer(token))
    assert (caught.value.reason, caught.value.field) == ("sender", "credentials")
    assert counted == ["credentials"]


def test_a_token_in_replacement_has_two_hashes():
    both = senders(vehicles=VEHICLES | {"token_sha256": [OTHER_HASH, HASH]})
    assert may(both.permission(Peer(TOKEN))) is may(both.permission(Peer(OTHER))) is None


def test_a_class_that_names_token_and_certificate_demands_both():
    both = senders(one=VEHICLES | {"certificates": ["*.fleet.example"]})
    assert may(both.permission(Peer(TOKEN, ("a.fleet.example",)))) is None
    for peer in (Peer(TOKEN), Peer(None, ("a.fleet.example",)), Peer(TOKEN, ("a.other.example",))):
        with pytest.raises(RecordError):
            both.permission(peer)


def test_a_source_can_be_the_name_on_the_certificate():
    one = {"certificates": ["*"], "sources": ["{certificate}", "{certificate}/axle-*"], "events": ["*"]}
    permission = senders(one=one).permission(Peer(None, ("v[1]*", "other")))
    assert may(permission, source="v[1]*") is may(permission, source="v[1]*/axle-2") is None
    assert may(permission, source="other") is None
    for foreign in ("v1", "v1x", "{certificate}", "v[1]*/wheel", "x/axle-2"):
        assert may(permission, source=foreign) == "source"  # no pattern comes from a certificate


def test_nothing_named_is_nothing_permitted():
    permission = senders(monitor={"token_sha256": [HASH]}).permission(Peer(TOKEN))
    assert may(permission) == "event"
    assert senders(one=VEHICLES | {"sources": []}).permission(Peer(TOKEN))
    assert may(senders(one=VEHICLES | {"sources": []}).permission(Peer(TOKEN))) == "source"


def test_without_classes_whoever_reaches_the_door_may_send():
    opened = senders()
    assert opened.open
    assert may(opened.permission(Peer()), source=SECRET, event=SECRET) is None


@given(st.text(), st.text(min_size=1))
def test_a_plain_name_permits_itself_alone(asked, name):
    if set(name) & set("*?[") or "{certificate}" in name:
        return
    permission = senders(one=VEHICLES | {"sources": [name]}).permission(Peer(TOKEN))
    assert (may(permission, source=asked) is None) == (asked == name)
    assert may(permission, source=name) is None


@pytest.mark.parametrize(
    ("header", "token"),
    [("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("Basic abc", None), ("Bearer ", None), (None, None)],
)
def test_the_authorization_header(header, token):
    assert Peer.of(header).token == token


def edge(**settings):
    return parse_config({"edge": settings}, "here").edge


def test_on_loopback_nothing_need_be_said():
    assert edge().senders == {}
    assert edge(listen={"host": "::1"}).listen.is_local


TLS = {"certificate": "a.crt", "key": "a.key"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "edge.example"])
def test_beyond_loopback_tls_and_senders_are_demanded(host):
    with pytest.raises(ConfigError, match="give listen"):
        edge(listen={"host": host}, senders={"one": VEHICLES})
    with pytest.raises(ConfigError, match="who may send"):
        edge(listen={"host": host, **TLS})
    assert edge(listen={"host": host, **TLS}, senders={"one": VEHICLES}).listen.host == host


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"senders": {"one": {"sources": ["a"]}}}, "how is the class known"),
        ({"senders": {"one": {"token_sha256": [TOKEN]}}}, "token_sha256"),
        ({"senders": {"one": {"certificates": ["a"]}}}, "client_ca"),
        ({"senders": {"one": VEHICLES | {"sources": ["{certificate}"]}}}, "needs certificates"),
        ({"senders": {"one": VEHICLES, "two": VEHICLES}}, "two classes"),
        ({"senders": {"one": VEHICLES | {"colour": "red"}}}, "colour"),
        ({"listen": {"certificate": "a.crt"}}, "belong together"),
        ({"listen": {"client_ca": "ca.crt"}}, "needs TLS"),
    ],
)
def test_faults_are_found_before_anything_starts(settings, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        edge(**settings)
    assert TOKEN not in str(caught.value)
