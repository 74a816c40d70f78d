"""The door of a device server: slow, silent or many clients, with or without the token, cannot block others."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from amc.deploy.device.door import origin_of
from amc.deploy.device.server import DeviceServer
from tests.deploy.device.served import (
    STUBS,
    TOKEN,
    Answer,
    ask,
    body_for,
    connect,
    everything,
    measured,
    new_path,
    no_files,
    parse_answer,
    served,
    until,
)  # fmt: skip
from tests.deploy.device.stubs import model


@pytest.fixture(scope="module")
def server() -> Iterator[DeviceServer]:
    with served() as device:
        yield device


def test_slow_clients_do_not_hold_up_others(server: DeviceServer) -> None:
    """Sixty connections that stop in the middle of a head, or, with the token, in the middle of a body."""
    request = f"PUT {new_path()} HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 1000\r\n\r\n".encode()
    slow = [connect(server) for _ in range(60)]
    for number, connection in enumerate(slow):
        connection.sendall(request if number % 2 and number < 40 else request[:20])
    measured(server, model())
    for connection in slow:
        connection.close()
    measured(server, model())
    until(lambda: no_files(server))


def dripped(connection: socket.socket, data: bytes) -> Answer:
    """The answer to a client that sends single bytes, so that it is never idle."""
    connection.settimeout(0.05)
    for byte in data:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(bytes([byte]))
        with suppress(TimeoutError):
            return parse_answer(connection.recv(1 << 16) + everything(connection))
    pytest.fail("no answer to the last byte")


def test_head_has_a_time_limit_even_if_bytes_keep_arriving() -> None:
    head = f"GET /v1/device HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n".encode() + b"X: a\r\n" * 1000
    with served(head_seconds=0.5) as device:
        with connect(device) as connection:
            answer = dripped(connection, head)
        assert (answer.status, answer.kind) == (408, "slow")
        assert answer.record["error"]["message"] == "the head did not arrive within 0.5 s"
        with connect(device) as connection:
            assert connection.recv(1) == b""  # a client that sends nothing gets no answer


def test_body_has_a_time_limit_even_if_bytes_keep_arriving() -> None:
    body = body_for(model(size=5000))
    head = f"PUT {new_path()} HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
    with served(request_seconds=0.5) as device:
        with connect(device) as connection:
            connection.sendall(head.encode())
            answer = dripped(connection, body)
        assert (answer.status, answer.kind) == (408, "slow")
        until(lambda: no_files(device))


def test_places_of_token_holders_are_limited() -> None:
    with served(connections=2) as device:
        path, request = new_path(), f"Authorization: Bearer {TOKEN}\r\n\r\n"
        assert ask(device, "PUT", path, body_for(model("hang"))).status == 202
        waiting = [connect(device) for _ in range(2)]
        for connection in waiting:
            connection.sendall(f"GET {path}?wait=30 HTTP/1.1\r\n{request}".encode())
        until(lambda: len(device._guests._here) == 2)
        refused = ask(device, "GET", "/v1/device")
        assert (refused.status, refused.kind, refused.headers["retry-after"]) == (503, "busy", "1")
        waiting.pop().close()
        device.measurements.cancel(path.rsplit("/", 1)[1])
        measured(device, model())  # the client retries until a place is free
        assert parse_answer(everything(waiting[0])).record["state"] == "cancelled"
        waiting[0].close()


def test_first_of_those_without_the_token_makes_room() -> None:
    with served(visitors=3) as device:
        held = [connect(device) for _ in range(3)]
        until(lambda: len(device._door._visitors) == 3)
        with connect(device):
            gone = parse_answer(everything(held[0]))
            assert (gone.status, gone.kind, gone.headers["retry-after"]) == (503, "busy", "1")
            for connection in held[1:]:  # the others are still heard
                connection.sendall(b"GET /v1/device HTTP/1.1\r\n\r\n")
                assert parse_answer(everything(connection)).status == 401
        for connection in held:
            connection.close()


def test_address_with_the_most_connections_makes_room() -> None:
    """A slow client keeps its place although another address repeatedly takes all other places."""
    with served(visitors=3) as device, connect(device, source="127.0.0.2") as patient:
        until(lambda: len(device._door._visitors) == 1)
        others = [connect(device) for _ in range(10)]
        assert [parse_answer(everything(one)).status for one in others[:8]] == [503] * 8
        patient.sendall(f"GET /v1/device HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        assert parse_answer(everything(patient)).status == 200
        for connection in others:
            connection.close()


def test_token_is_read_at_once_even_if_every_place_is_taken() -> None:
    with served(visitors=1) as device, connect(device) as silent:
        until(lambda: len(device._door._visitors) == 1)
        for _ in range(20):
            assert ask(device, "GET", "/v1/device").status == 200
        silent.sendall(b"\r\n\r\n")
        assert parse_answer(everything(silent)).status in (400, 503)


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("192.168.1.5", "192.168.1.5"),
        ("::ffff:192.168.1.5", "192.168.1.5"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_addresses_that_one_client_can_choose_from_share_places(address: str, origin: str) -> None:
    assert origin_of(address) == origin


@pytest.mark.parametrize(
    ("host", "is_private"),
    [("127.0.0.1", True), ("localhost", True), ("127.0.0.9", True), ("0.0.0.0", False), ("0", False)],
)
def test_server_knows_whether_other_machines_can_reach_it(host: str, is_private: bool) -> None:
    device = DeviceServer(TOKEN, host=host, port=0, describe=f"{STUBS}:describe")
    assert device.is_private is is_private
    device.close()


def test_connections_leave_half_of_the_descriptors_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for allowed, places in ((256, 64), (1 << 20, 128), (resource.RLIM_INFINITY, 128)):
        with monkeypatch.context() as patch:
            patch.setattr(resource, "getrlimit", lambda kind, allowed=allowed: (allowed, allowed))
            device = DeviceServer(TOKEN, port=0, describe=f"{STUBS}:describe")
        assert (device.limits.visitors, device.limits.connections) == (places, places)
        device.close()
