"""Property-based: for any bytes, the server answers properly or closes, leaves no files behind and keeps serving."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amc.deploy.device.protocol import encode
from amc.deploy.device.server import DeviceServer
from tests.deploy.device.served import (
    TOKEN,
    ask,
    body_for,
    client,
    connect,
    everything,
    frame,
    new_path,
    parse_answer,
    request_for,
    send,
    served,
)  # fmt: skip
from tests.deploy.device.stubs import model
from tests.deploy.device.test_protocol import JSON

UNKNOWN = "/v1/measurements/0123456789abcdef0123456789abcdef"

AUTHORIZED = f"Authorization: Bearer {TOKEN}".encode()
LINE = st.binary(max_size=40).map(lambda data: data.replace(b"\r", b"").replace(b"\n", b""))
SOME = settings(max_examples=60)


@pytest.fixture(scope="module")
def server() -> Iterator[DeviceServer]:
    with served(body_bytes=1 << 20) as device:
        yield device
        request, files = request_for(model())  # after all of it
        assert client(device).measure(request, files)["networks"]["m0"]["latency_ms"] == 1.5
        assert list(device.spool.iterdir()) == []


@SOME
@given(data=st.binary(max_size=300))
def test_any_bytes(server: DeviceServer, data: bytes) -> None:
    answer = send(server, data, ends=True)
    assert answer is None or 400 <= answer.status < 506


@SOME
@given(
    method=st.sampled_from(["GET", "PUT", "DELETE", "POST", "HEAD", "PATCH", "BREW", "get"]),
    path=st.sampled_from(["/", "/v1/device", "/v1/measurements/", "/v1/measurements/xyz", "//[", "*", UNKNOWN]),
    version=st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2", "HTTP/9.9", "", "FTP"]),
    headers=st.lists(st.tuples(LINE, LINE).map(lambda pair: pair[0] + b": " + pair[1]), max_size=4),
    authorized=st.booleans(),
)
def test_any_request_line_and_headers(
    server: DeviceServer, method: str, path: str, version: str, headers: list[bytes], authorized: bool
) -> None:
    lines = [f"{method} {path} {version}".encode(), *headers, *([AUTHORIZED] if authorized else [])]
    answer = send(server, b"\r\n".join(lines) + b"\r\n\r\n", ends=True)
    fine = method in ("GET", "HEAD") and path == "/v1/device" and authorized
    assert answer is None or answer.status >= 400 or fine


@SOME
@given(header=st.binary(max_size=200) | JSON, payload=st.binary(max_size=50))
def test_any_frame(server: DeviceServer, header: Any, payload: bytes) -> None:
    answer = ask(server, "PUT", new_path(), frame(header, payload))
    assert (answer.status, answer.kind) == (400, "malformed")


@SOME
@given(data=st.data())
def test_good_request_cut_or_changed_anywhere(server: DeviceServer, data: st.DataObject) -> None:
    body = bytearray(body_for(model(size=20)))
    place = data.draw(st.integers(0, len(body) - 1))
    if data.draw(st.booleans()):
        body = body[:place]
    else:
        body[place] = data.draw(st.integers(0, 255))
    path = new_path()
    answer = ask(server, "PUT", path, bytes(body))
    assert answer.status in (202, 400, 409, 422)
    if answer.status == 202:
        assert ask(server, "GET", f"{path}?wait=10").record["state"] in ("done", "failed")


@pytest.mark.parametrize(
    "length", ["-1", "+5", "1e3", "0x10", "", " ", "9" * 30, "5, 5", "١", "5\r\nContent-Length: 6"]
)
def test_content_length_that_is_not_one_number(server: DeviceServer, length: str) -> None:
    head = f"PUT {new_path()} HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {length}\r\n\r\n"
    answer = send(server, head.encode(), b"12345")
    assert answer is not None
    assert answer.status == 400


def test_body_without_length_or_in_chunks_is_411(server: DeviceServer) -> None:
    assert ask(server, "PUT", new_path()).status == 411
    assert ask(server, "PUT", new_path(), headers=["Transfer-Encoding: chunked"]).status == 411


def test_only_token_holders_get_permission_to_send_a_body(server: DeviceServer) -> None:
    """A client with `Expect: 100-continue` waits for permission to send its body."""
    body = body_for(model())
    head = f"PUT {new_path()} HTTP/1.1\r\nContent-Length: {len(body)}\r\nExpect: 100-Continue\r\n"
    with connect(server) as connection:
        connection.sendall(f"{head}Authorization: Bearer {TOKEN}\r\n\r\n".encode())
        leave = b"HTTP/1.1 100 Continue\r\n\r\n"
        assert connection.recv(len(leave), socket.MSG_WAITALL) == leave
        connection.sendall(body)
        assert parse_answer(everything(connection)).status == 202
    refused = send(server, head.encode() + b"\r\n")
    assert refused is not None
    assert refused.status == 401


def test_head_requests_get_no_body(server: DeviceServer) -> None:
    for token, status in ((TOKEN, 405), ("wrong", 401)):
        answer = ask(server, "HEAD", "/v1/device", token=token)
        assert (answer.status, answer.record) == (status, None)


def test_answer_arrives_though_the_client_goes_on_sending(server: DeviceServer) -> None:
    """If the server closed the connection at once, a reset would destroy the answer."""
    for token, status in (("wrong", 401), (TOKEN, 413)):
        head = f"PUT {new_path()} HTTP/1.1\r\nAuthorization: Bearer {token}\r\nContent-Length: {8 << 20}\r\n\r\n"
        answer = send(server, head.encode(), bytes(8 << 20))
        assert answer is not None
        assert answer.status == status


@pytest.mark.parametrize("change", [-1, 1, 1000])
def test_files_of_another_size_than_said(server: DeviceServer, change: int) -> None:
    request, _ = request_for(model(size=10))
    answer = ask(server, "PUT", new_path(), encode(request) + model(size=10 + change))
    assert (answer.status, answer.kind) == (400, "malformed")
    assert "bytes of files, but the header says" in answer.record["error"]["message"]


@pytest.mark.parametrize(
    "query", ["wait=-1", "wait=nan", "wait=1e9", "wait=", "other=1", "wait=1&wait=2", "wait=9999999"]
)
def test_query_is_read_strictly(server: DeviceServer, query: str) -> None:
    answer = ask(server, "GET", f"{new_path()}?{query}")
    assert (answer.status, answer.kind) == (400, "malformed")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404), ("GET", "/v1/devices", 404), ("GET", "/v1/measurements/../device", 404),
        ("PUT", "/v1/device", 405), ("POST", UNKNOWN, 405), ("PATCH", UNKNOWN, 405),
        ("GET", UNKNOWN, 404), ("DELETE", UNKNOWN, 404), ("GET", "/v1/measurements/" + "G" * 32, 400),
    ],
)  # fmt: skip
def test_wrong_places_and_methods(server: DeviceServer, method: str, path: str, status: int) -> None:
    answer = ask(server, method, path)
    assert answer.status == status
    assert json.dumps(answer.record).isascii()


def test_very_long_lines_and_many_headers(server: DeviceServer) -> None:
    long_path = send(server, b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n")
    long_header = send(server, b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n")
    many = send(server, b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 200 + b"\r\n")
    assert [answer and answer.status for answer in (long_path, long_header, many)] == [414, 431, 431]
