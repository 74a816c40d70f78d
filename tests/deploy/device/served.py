"""A device server for tests, in this process, with stubs for the runtimes."""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from amc.deploy.device.client import DeviceClient
from amc.deploy.device.limits import Limits
from amc.deploy.device.protocol import Model, Request, TensorSpec, encode
from amc.deploy.device.server import DeviceServer
from amc.deploy.measure import MeasureSettings

TOKEN = "a-token-for-tests-only"
STUBS = "tests.deploy.device.stubs"
INPUT = TensorSpec((1, 3, 8, 8))


# Generous limits, because this machine may be busy; only a faulty server reaches them. A test of a limit sets its own.
PATIENT = {"run_seconds": 300.0, "head_seconds": 300.0, "request_seconds": 300.0}


@contextmanager
def served(**limits: Any) -> Iterator[DeviceServer]:
    lines: list[str] = []
    server = DeviceServer(
        TOKEN, port=0, limits=Limits(**(PATIENT | limits)),
        measure=f"{STUBS}:measure", describe=f"{STUBS}:describe", log=lines.append,
    )  # fmt: skip
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.close()
        assert not server.spool.exists()
        assert TOKEN not in "".join(lines)
        assert not any(line.startswith("fault") for line in lines), lines
        assert all(line.isascii() and line.isprintable() and len(line) < 300 for line in lines)  # whatever was sent


def client(server: DeviceServer, **options: Any) -> DeviceClient:
    return DeviceClient(server.url, TOKEN, **options)


def measured(server: DeviceServer, data: bytes) -> None:
    """Assert that the server works: it measures a good model."""
    request, files = request_for(data)
    assert client(server).measure(request, files)["networks"]["m0"]["latency_ms"] == 1.5


def request_for(*models: bytes, **fields: Any) -> tuple[Request, list[list[bytes]]]:
    described = tuple(Model(f"m{index}", (INPUT,), (len(data),)) for index, data in enumerate(models))
    request = Request(**({"runtime": "litert", "models": described, "settings": MeasureSettings(rounds=4)} | fields))
    return request, [[data] for data in models]


def body_for(*models: bytes, **fields: Any) -> bytes:
    request, files = request_for(*models, **fields)
    return encode(request) + b"".join(data for model in files for data in model)


def frame(header: Any, payload: bytes = b"") -> bytes:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return b"AMCD" + len(data).to_bytes(4, "little") + data + payload


def new_path() -> str:
    return f"/v1/measurements/{secrets.token_hex(16)}"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    record: Any

    @property
    def kind(self) -> str:
        return str(self.record["error"]["kind"])


def connect(server: DeviceServer, *, source: str = "127.0.0.1") -> socket.socket:
    host, port = server.url.removeprefix("http://").rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=300, source_address=(source, 0))


def no_files(server: DeviceServer) -> bool:
    return list(server.spool.iterdir()) == []


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, without a time limit."""
    while not condition():
        time.sleep(0.01)


def send(server: DeviceServer, *parts: bytes, ends: bool = False) -> Answer | None:
    """Send raw bytes and return the answer; None if the connection closes without an answer."""
    with connect(server) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            if ends:
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            data = everything(connection)
        except ConnectionResetError:
            data = b""
    return parse_answer(data) if data else None


def everything(connection: socket.socket) -> bytes:
    """Read until the other side closes the connection."""
    data = b""
    while piece := connection.recv(1 << 16):
        data += piece
    return data


def parse_answer(data: bytes) -> Answer:
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    version, status, _ = lines[0].split(" ", 2)
    assert version == "HTTP/1.1", lines[0]
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
    assert headers["connection"] == "close"
    assert len(body) in (0, int(headers["content-length"]))  # none after HEAD
    return Answer(int(status), headers, json.loads(body) if body else None)


def ask(
    server: DeviceServer, method: str, path: str, body: bytes | None = None, *,
    token: str | None = TOKEN, headers: Sequence[str] = (),
) -> Answer:  # fmt: skip
    lines = [f"{method} {path} HTTP/1.1", "Host: device", *headers]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    answer = send(server, "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b""))
    assert answer is not None
    return answer
