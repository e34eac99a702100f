"""The bridge with a real broker: acknowledged after the commit, bounded, and stopped by no message."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import hashlib
import ipaddress
import json
import signal
import sys
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import connectors.mqtt_bridge as mqtt_bridge
from connectors.wire.sparkplug_b_pb2 import Payload
from pipeline.edge import Receipt
from pipeline.errors import ConfigError, TransientError
from tests.edge_world import EVENT, open_spool, until, vehicles
from tests.mosquitto import Mosquitto
from tests.mqtt_world import CLOUD, ROUTE, Bridge, Device, Held, as_message, config, stored_rows
from tests.shared_data import PROJECT

SECRET = "value-that-must-not-be-told"
LARGE = 1_000_000


@pytest.fixture
def broker(tmp_path):
    with Mosquitto(tmp_path / "broker") as running:
        yield running


@pytest.fixture
def spool(tmp_path):
    with open_spool(tmp_path / "spool.sqlite") as opened:
        yield opened


def drivers(rows):
    return sorted(row["driver"] for row in rows)


def numbered(count, seed=1):
    return [row | {"driver": f"{number:05d}"} for number, row in enumerate(vehicles(count, seed))]


async def publish(device, rows, qos=1):
    await asyncio.to_thread(device.vehicles, rows, qos)


# -- what arrives


async def test_messages_become_events(broker, spool):
    rows = numbered(50)
    async with Bridge(spool, config(broker.port)) as bridge:
        with Device(broker.port) as device:
            await publish(device, rows)
            await publish(device, numbered(3, seed=2), qos=0)
            device.publish(ROUTE["filter"].replace("+", "many"), [as_message(row)[1] for row in rows[:20]])
            await until(lambda: bridge.taken() == 54)
    found = stored_rows(spool)
    assert len(found) == 73
    assert [row["latitude"] for row in found[:50]] == [row["latitude"] for row in rows]
    assert [row["source"] for row in found[:50]] == [row["source"] for row in rows]
    assert {row["source"] for row in found[53:]} == {"many"}
    assert bridge.count("mqtt_in_flight_messages") == 0


async def test_cloud_events_in_both_modes(broker, spool):
    row = numbered(1)[0]
    attributes = {
        "specversion": "1.0", "id": "1", "source": "vehicle-7", "type": EVENT, "jurisdiction": "FR",
        "time": datetime.datetime.now(datetime.UTC).isoformat(),
    }  # fmt: skip
    data = {name: value for name, value in as_message(row)[1].items() if name != "event_time"}
    route = CLOUD["filter"]
    async with Bridge(spool, config(broker.port, CLOUD)) as bridge:
        with Device(broker.port) as device:
            structured = "application/cloudevents+json; charset=utf-8"
            device.publish("cloud/1", attributes | {"data": data}, content_type=structured)
            device.publish("cloud/1", attributes | {"data": data})  # as MQTT 3.1.1 sends it
            device.publish("cloud/2", data, content_type="application/json", **attributes, trace="x")
            await until(lambda: bridge.taken(route) == 3)
            device.publish("cloud/3", data, content_type="application/json", **attributes | {"id": ""})
            device.publish("cloud/3", data, content_type="application/avro", **attributes)
            device.publish("cloud/3", [], content_type="application/cloudevents-batch+json")
            device.publish(
                "cloud/3", data, content_type="application/json", dataclassification="x", **attributes
            )
            await until(lambda: bridge.rejected("content_type", route) == 2)
            await until(lambda: bridge.rejected("field_unknown", route) == 1)
    assert bridge.rejected("field_missing", route) == 1
    assert [(row["source"], row["jurisdiction"]) for row in stored_rows(spool)] == [("vehicle-7", "FR")] * 3


async def test_a_route_that_fixes_the_jurisdiction_refuses_another(broker, spool):
    route = CLOUD | {"jurisdiction": {"value": "DE"}}
    event = {
        "specversion": "1.0", "id": "1", "source": "v", "type": EVENT, "data": as_message(numbered(1)[0])[1],
        "time": datetime.datetime.now(datetime.UTC).isoformat(),
    }  # fmt: skip
    del event["data"]["event_time"]
    async with Bridge(spool, config(broker.port, route)) as bridge:
        with Device(broker.port) as device:
            device.publish("cloud/a", event | {"jurisdiction": "FR"})
            device.publish("cloud/a", event)
            await until(lambda: bridge.taken(CLOUD["filter"]) == 1)
    assert bridge.rejected("jurisdiction_elsewhere", CLOUD["filter"]) == 1
    assert [row["jurisdiction"] for row in stored_rows(spool)] == ["DE"]


async def test_sparkplug_nodes_are_asked_for_their_births(broker, spool):
    route = {
        "filter": "spBv1.0/#", "payload": "sparkplug-b", "event": "machine_reading",
        "jurisdiction": {"value": "DE"}, "sparkplug": {"rebirth": True},
        "fields": {"machine": {"topic_level": 3}, "sensor_1": "Temperature"},
    }  # fmt: skip
    now_ms = int(datetime.datetime.now().timestamp() * 1000)
    birth, data = Payload(timestamp=now_ms, seq=0), Payload(timestamp=now_ms, seq=1)
    birth.metrics.add(name="Temperature", alias=3, datatype=10, double_value=20.0)
    data.metrics.add(alias=3, double_value=21.0)
    async with Bridge(spool, config(broker.port, route)) as bridge:
        with Device(broker.port, "spBv1.0/plant/NCMD/press") as node:
            node.publish("spBv1.0/plant/NDATA/press", data.SerializeToString(), qos=0)
            await until(lambda: len(node.heard) == 1)
            assert Payload.FromString(node.heard[0].payload).metrics[0].name == "Node Control/Rebirth"
            node.publish("spBv1.0/plant/NBIRTH/press", birth.SerializeToString(), qos=0)
            node.publish("spBv1.0/plant/NDATA/press", data.SerializeToString(), qos=0)
            await until(lambda: spool.ledger() and sum(lane.accepted for lane in spool.ledger()) == 2)
    assert [row["sensor_1"] for row in stored_rows(spool)] == [20.0, 21.0]
    assert bridge.rejected("before_birth", "spBv1.0/#") == 1


# -- what is no event


HOSTILE = {
    "undecodable": [b"", b"\xff\xfe{", b"{" * 50_000, b"[" * 100_000, b'{"a":' * 20_000,
                    b'{"a": 1' + b"0" * 5000 + b"}",
                    b'{"latitude": NaN}', b"\x00" * 3000],
    "type": [b"7", b'"x"', b"[1]", b'{"event_time": true}', b'{"event_time": "x"}'],
    "field_unknown": [json.dumps({"event_time": 1_790_000_000_000_000, "vin": "v", SECRET: 1}).encode()],
    "range": [b'{"vin": "v", "event_time": 1e308}', b'{"vin": "v", "event_time": 99999999999999999999999}'],
    "field_missing": [b"{}", b'{"event_time": 1790000000000000}'],
    "oversize": [b"[" + b" " * 150_000 + b"]", b"[" + b"{}," * 20_000 + b"{}]"],
}  # fmt: skip


async def test_no_message_stops_the_bridge_and_each_refusal_is_told(broker, spool, caplog):
    configured = config(broker.port, message_bytes_max=140_000, rejects_topic="refused/edge")
    sent = [(reason, body) for reason, bodies in HOSTILE.items() for body in bodies]
    whole = [body for _, body in sent if len(body) <= configured.message_bytes_max]
    async with Bridge(spool, configured) as bridge:
        with Device(broker.port, "refused/#") as device:
            for _, body in sent:
                device.publish(f"vehicles/{SECRET}/telemetry", body, note="kept")
            good = numbered(5)
            await publish(device, good)
            await until(lambda: bridge.taken() == 5)
            await until(lambda: len(device.heard) == len(sent))
    for reason in HOSTILE:
        assert bridge.rejected(reason) == sum(one == reason for one, _ in sent), reason
    assert sorted(bytes(one.payload) for one in device.heard if one.payload) == sorted(filter(None, whole))
    told = dict(device.heard[0].properties.UserProperty)
    assert told == {
        "note": "kept", "rejected-reason": "undecodable", "rejected-topic": f"vehicles/{SECRET}/telemetry"
    }  # fmt: skip
    assert drivers(stored_rows(spool)) == drivers(good)
    assert SECRET not in caplog.text
    assert "undecodable" in caplog.text


async def test_large_messages_keep_no_place_and_no_memory(broker, spool):
    async with Bridge(spool, config(broker.port, message_bytes_max=1000, receive_max=5)) as bridge:
        with Device(broker.port) as device:
            for _ in range(20):  # more than may be in hand
                await asyncio.to_thread(
                    device.publish("vehicles/v/telemetry", b"x" * LARGE).wait_for_publish, 10
                )
            await publish(device, numbered(20))
            await until(lambda: bridge.taken() == 20)
    assert bridge.rejected("oversize") == 20


async def test_messages_that_no_route_takes_any_more_are_counted(broker, spool):
    async with Bridge(spool, config(broker.port, ROUTE, CLOUD)):
        pass
    with Device(broker.port) as device:
        device.publish("cloud/left", {}).wait_for_publish(10)
        async with Bridge(spool, config(broker.port)) as bridge:
            await until(lambda: bridge.rejected("no_route", "none") == 1)
            await publish(device, numbered(1))
            await until(lambda: bridge.taken() == 1)


# -- what is durable


@pytest.mark.parametrize("where", ["submitted", "committed"])
async def test_a_kill_before_the_acknowledgement_loses_nothing(broker, tmp_path, where):
    rows, path = numbered(300), tmp_path / "spool.sqlite"
    with open_spool(path) as spool:
        async with Bridge(spool, config(broker.port)):
            pass  # the session exists from here on
    with Device(broker.port) as device:
        await publish(device, rows)
    argv = ["-m", "tests.mqtt_world", str(broker.port), str(path), where, "120"]
    child = await asyncio.create_subprocess_exec(sys.executable, *argv, cwd=PROJECT)
    assert await asyncio.wait_for(child.wait(), 20) == -signal.SIGKILL
    with open_spool(path) as spool:
        before = len(stored_rows(spool))
        assert before <= len(rows)
        async with Bridge(spool, config(broker.port)):
            await until(lambda: set(drivers(stored_rows(spool))) == set(drivers(rows)))
        found = stored_rows(spool)
        (lane,) = [one for one in spool.ledger() if one.accepted]
        assert lane.accepted == lane.pending == len(found)
        # At least once: what was committed and not acknowledged came again.
        assert len(rows) + (where == "committed") <= len(found) <= len(rows) + before


async def test_what_comes_while_the_bridge_is_down_waits_for_it(broker, spool):
    async with Bridge(spool, config(broker.port)):
        pass
    rows = numbered(1000)
    with Device(broker.port) as device:
        await publish(device, rows)
        async with Bridge(spool, config(broker.port)) as bridge:
            await until(lambda: bridge.taken() == 1000)
    assert drivers(stored_rows(spool)) == drivers(rows)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_broker_that_starts_again_is_found_again(broker, spool, how):
    first, second = numbered(100), numbered(100, seed=2)
    async with Bridge(spool, config(broker.port)) as bridge:
        with Device(broker.port) as device:
            await publish(device, first)
            await until(lambda: bridge.taken() == 100)
        broker.stop(how)
        await until(lambda: not bridge.bridge.subscribed.is_set())
        broker.start()
        await asyncio.wait_for(bridge.bridge.subscribed.wait(), 10)
        with Device(broker.port) as device:
            await publish(device, second)
            await until(lambda: bridge.taken() >= 200)
    assert set(drivers(stored_rows(spool))) == set(drivers(first + second))


async def test_no_acknowledgement_before_the_commit(broker):
    held = Held()
    async with Bridge(held, config(broker.port)) as bridge:
        with Device(broker.port) as device:
            await publish(device, numbered(10))
            await until(lambda: len(held.futures) == 10)
        for future in held.futures[1:]:
            future.set_result(Receipt(1, 1, 1, 1))
        await asyncio.sleep(0.1)  # time in which one would be settled, did it not wait for the first
        assert (bridge.taken(), bridge.count("mqtt_in_flight_messages")) == (0, 10)
        bridge.bridge._task.cancel()  # as if it died here
    again = Held()
    async with Bridge(again, config(broker.port)):
        await until(lambda: len(again.futures) == 10)
        for future in again.futures:
            future.set_result(Receipt(1, 1, 1, 1))
    assert held.futures[0].cancelled() or not held.futures[0].done()


async def test_a_commit_that_failed_is_made_again(broker):
    held = Held()
    async with Bridge(held, config(broker.port)) as bridge:
        with Device(broker.port) as device:
            await publish(device, numbered(3))
            await until(lambda: len(held.futures) == 3)
            for future in held.futures:
                future.set_exception(TransientError("disk"))
            await until(lambda: len(held.futures) == 4)
            assert bridge.taken() == 0
            await _settle(held, lambda: bridge.taken() == 3)
    assert len(held.futures) == 6


async def _settle(held, condition):
    async with asyncio.timeout(10):
        while not condition():
            for future in held.waiting():
                future.set_result(Receipt(1, 1, 1, 1))
            await asyncio.sleep(0.01)


# -- bounds


async def test_a_slow_spool_bounds_what_is_in_hand(broker):
    held, most = Held(), 0
    async with Bridge(held, config(broker.port, receive_max=10)) as bridge:
        with Device(broker.port) as device:
            await publish(device, numbered(200))
            await until(lambda: len(held.futures) == 10)
            await asyncio.sleep(0.2)  # time in which more would come, were it not bounded
            assert bridge.count("mqtt_in_flight_messages") == 10
            async with asyncio.timeout(20):
                while bridge.taken() < 200:
                    waiting = held.waiting()
                    most = max(most, len(waiting))
                    for future in waiting[:3]:
                        future.set_result(Receipt(1, 1, 1, 1))
                    await asyncio.sleep(0.001)
    assert most <= 10
    assert len(held.futures) == 200


async def test_messages_without_acknowledgement_are_bounded_too(broker):
    held = Held()
    async with Bridge(held, config(broker.port, receive_max=10, keepalive_s=1)) as bridge:
        with Device(broker.port) as device:
            await publish(device, numbered(50), qos=0)
            await until(lambda: len(held.futures) == 10)
            await asyncio.sleep(2.5)  # longer than a silent connection lives: this one rests, and stays
            assert len(held.futures) == 10
            await _settle(held, lambda: bridge.taken() == 50)
    assert bridge.count("mqtt_connects_total", outcome="subscribed") == 1


async def test_a_full_spool_holds_the_broker_back(broker):
    held = Held()
    held.full = True
    async with Bridge(held, config(broker.port, receive_max=5)) as bridge:
        with Device(broker.port) as device:
            await publish(device, numbered(50))
            await until(lambda: bridge.count("mqtt_retries_total") > 3)
            assert (bridge.taken(), held.futures) == (0, [])
            held.full = False
            await _settle(held, lambda: bridge.taken() == 50)


async def test_the_stop_settles_what_is_in_hand(broker):
    held = Held()
    bridge = Bridge(held, config(broker.port))
    async with bridge:
        with Device(broker.port) as device:
            await publish(device, numbered(20))
            await until(lambda: len(held.futures) == 20)
        stopping = asyncio.create_task(bridge.bridge.stop())
        await asyncio.sleep(0.05)
        assert not stopping.done()
        for future in held.futures:
            future.set_result(Receipt(1, 1, 1, 1))
        await asyncio.wait_for(stopping, 10)
    assert bridge.taken() == 20
    await until(lambda: "Client pipeline-edge disconnected" in broker.log.read_text())
    again = Held()
    async with Bridge(again, config(broker.port)) as second:
        with Device(broker.port) as device:
            await publish(device, numbered(1))
            await _settle(again, lambda: second.taken() == 1)
    assert len(again.futures) == 1  # nothing of the first came again


async def test_a_stop_does_not_wait_for_a_stuck_spool_and_the_broker_keeps_what_is_left(broker, monkeypatch):
    monkeypatch.setattr(mqtt_bridge, "STOP_S", 0.2)
    stuck = Held()
    async with Bridge(stuck, config(broker.port, receive_max=10)) as bridge:
        with Device(broker.port) as device:
            await publish(device, numbered(30))
            await until(lambda: len(stuck.futures) == 10)
        began = time.monotonic()
        await bridge.bridge.stop()
        assert time.monotonic() - began < 3
        assert bridge.taken() == 0
    held = Held()
    async with Bridge(held, config(broker.port)) as second:
        await _settle(held, lambda: second.taken() == 30)


async def test_a_commit_that_was_called_off_is_no_end(broker):
    held = Held()
    async with Bridge(held, config(broker.port)) as bridge:
        with Device(broker.port) as device:
            await publish(device, numbered(3))
            await until(lambda: len(held.futures) == 3)
        for future in held.futures:  # as a spool that is closed does
            future.cancel()
        await _settle(held, lambda: bridge.taken() == 3)
    assert len(held.futures) == 6


# -- who may


def _password_line(user: str, password: str) -> str:
    salt = b"twelve bytes"
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 101)
    return f"{user}:$7$101${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}\n"


async def test_a_login_that_is_refused_is_tried_again_and_told(tmp_path, spool, caplog):
    (tmp_path / "passwords").write_text(_password_line("edge", SECRET))
    (tmp_path / "passwords").chmod(0o600)
    extra = f"allow_anonymous false\npassword_file {tmp_path / 'passwords'}\n"
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    with Mosquitto(tmp_path / "broker", extra) as broker:
        wrong = Bridge(spool, config(broker.port, username="edge", password="wrong"))
        await wrong.bridge.start()
        await until(lambda: wrong.count("mqtt_connects_total", outcome="failed") >= 2)
        await wrong.bridge.stop()
        login = config(broker.port, username="edge", password_file=tmp_path / "secret")
        async with Bridge(spool, login) as bridge:
            with Device(broker.port, username="edge", password=SECRET) as device:
                await publish(device, numbered(2))
                await until(lambda: bridge.taken() == 2)
    assert "ot authorized" in caplog.text
    assert SECRET not in caplog.text


async def _deny(reader, writer) -> None:
    """A broker that lets everyone in and nobody subscribe (mosquitto's access list has no such refusal)."""
    await reader.readexactly(1)
    await reader.readexactly((await reader.readexactly(1))[0])
    writer.write(b"\x20\x03\x00\x00\x00")  # CONNACK
    _, size = await reader.readexactly(2)
    subscribe = await reader.readexactly(size)
    writer.write(b"\x90\x04" + subscribe[:2] + b"\x00\x87")  # SUBACK: not authorised
    with contextlib.suppress(ConnectionError):
        await reader.read()
    writer.close()


async def test_a_subscription_that_is_refused_is_told_and_tried_again(spool, caplog):
    server = await asyncio.start_server(_deny, "127.0.0.1", 0)
    async with server:
        bridge = Bridge(spool, config(server.sockets[0].getsockname()[1]))
        await bridge.bridge.start()
        await until(lambda: bridge.count("mqtt_connects_total", outcome="failed") >= 2)
        await bridge.bridge.stop()
    assert f"the broker refuses {ROUTE['filter']}" in caplog.text
    assert not bridge.bridge.subscribed.is_set()


async def test_tls_is_checked(tmp_path, spool):
    _certificate(tmp_path)
    extra = f"certfile {tmp_path / 'cert.pem'}\nkeyfile {tmp_path / 'key.pem'}\n"
    with Mosquitto(tmp_path / "broker", extra) as broker:
        stranger = Bridge(spool, config(broker.port, tls=True))
        await stranger.bridge.start()
        await until(lambda: stranger.count("mqtt_connects_total", outcome="failed") >= 1)
        await stranger.bridge.stop()
        assert not stranger.count("mqtt_connects_total", outcome="subscribed")
        async with Bridge(spool, config(broker.port, tls=True, tls_ca=tmp_path / "cert.pem")) as bridge:
            assert bridge.count("mqtt_connected") == 1
    with pytest.raises(ConfigError, match="TLS files"):
        await Bridge(spool, config(1, tls=True, tls_ca=tmp_path / "absent.pem")).bridge.start()


def _certificate(folder) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1)).add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))


async def test_a_broker_that_is_away_is_waited_for_and_the_stop_does_not_wait(tmp_path, spool):
    broker = Mosquitto(tmp_path / "broker")
    bridge = Bridge(spool, config(broker.port))
    await bridge.bridge.start()
    await until(lambda: bridge.count("mqtt_connects_total", outcome="failed") >= 2)
    before = bridge.count("mqtt_connects_total", outcome="failed")
    await asyncio.sleep(0.5)  # with pauses of 0.1 to 0.2 s
    assert bridge.count("mqtt_connects_total", outcome="failed") - before <= 6
    with broker:
        await asyncio.wait_for(bridge.bridge.subscribed.wait(), 10)
    await asyncio.wait_for(bridge.bridge.stop(), 5)
