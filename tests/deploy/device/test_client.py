"""The client: it retries lost connections without measuring twice; other errors are one clear line."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from amc.deploy.device import client as client_module
from amc.deploy.device.client import DeviceClient
from amc.deploy.device.protocol import DeviceError, DeviceInfo, encode_info
from amc.deploy.device.server import DeviceServer
from tests.deploy.device.served import STUBS, TOKEN, client, connect, request_for, served, until
from tests.deploy.device.stubs import MACHINE, STARTED, model

INFO = encode_info(DeviceInfo("0.1.0", MACHINE, {"litert": "2.3.0"}, 1 << 20, 20.0))


@pytest.fixture(scope="module")
def server() -> Iterator[DeviceServer]:
    with served(body_bytes=1 << 20) as device:
        yield device


@contextmanager
def answering(answer: Callable[[int, socket.socket], None]) -> Iterator[str]:
    """URL of a listener that calls `answer` for every connection, with the connection's number from 0."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            for number in itertools.count():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    answer(number, connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            thread.join()


def relay(server: DeviceServer, connection: socket.socket, *, up: int = 1 << 30, down: int = 1 << 30) -> None:
    """Pass one request and its answer on; cut the connection after so many bytes of either."""
    with connect(server) as beyond:

        def back() -> None:
            left = down
            with contextlib.suppress(OSError):
                while left > 0 and (data := beyond.recv(min(left, 4096))):
                    connection.sendall(data)
                    left -= len(data)
                connection.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=back)
        thread.start()
        left = up
        with contextlib.suppress(OSError):
            while left > 0 and (data := connection.recv(min(left, 4096))):
                beyond.sendall(data)
                left -= len(data)
        if left <= 0:
            connection.close()
            beyond.shutdown(socket.SHUT_WR)
        thread.join()


def reply(record: object, status: int = 200, extra: str = "") -> Callable[[int, socket.socket], None]:
    data = record if isinstance(record, bytes) else json.dumps(record).encode()

    def answer(number: int, connection: socket.socket) -> None:
        connection.recv(1 << 16)
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\nConnection: close\r\n{extra}\r\n"
        connection.sendall(head.encode() + data)

    return answer


def test_connections_that_break_anywhere_cost_retries_and_no_second_run(server: DeviceServer, tmp_path: Path) -> None:
    request, files = request_for(model(f"count {tmp_path}", size=100_000))
    waits: list[float] = []

    def broken(number: int, connection: socket.socket) -> None:
        cuts = [{"up": 0}, {"down": 30}, {}, {"up": 60_000}, {"down": 0}, {}, {"down": 0}, {"down": 60}]
        relay(server, connection, **(cuts[number] if number < len(cuts) else {}))

    with answering(broken) as url:
        result = DeviceClient(url, TOKEN, sleep=waits.append, timeout=300).measure(request, files)
    assert result["networks"]["m0"]["bytes"] == 100_000
    assert (tmp_path / "runs").read_text() == "r"
    assert len(waits) == 6  # one for every cut
    assert waits[0] <= 0.5
    assert max(waits) <= 1.0


def test_unreachable_device_is_one_line_after_some_attempts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    waits: list[float] = []
    with pytest.raises(DeviceError, match=rf"device at {url} cannot be reached \(Connection refused\); is `amc device"):
        DeviceClient(url, TOKEN, sleep=waits.append).describe()
    assert len(waits) == 4
    assert all(0.25 * 2**k <= wait <= 0.5 * 2**k for k, wait in enumerate(waits))


def test_name_that_does_not_resolve_is_not_tried_again() -> None:
    with pytest.raises(DeviceError, match="cannot be reached"):
        DeviceClient("http://no-such-host.invalid:1", TOKEN, sleep=lambda seconds: pytest.fail("waited")).describe()


def test_wrong_token_is_one_line(server: DeviceServer) -> None:
    with pytest.raises(DeviceError, match="refuses the token; give the one that `amc device serve` printed"):
        DeviceClient(server.url, "another-token-here").describe()


def test_other_version_of_the_runtime_is_one_line_and_nothing_is_sent(server: DeviceServer) -> None:
    request, files = request_for(model(), version="2.2.0")
    with pytest.raises(DeviceError, match=r"has litert 2\.3\.0, but 2\.2\.0 is required; measure the table again"):
        client(server).measure(request, files)


def test_runtime_that_is_not_there_is_one_line(server: DeviceServer) -> None:
    files = [b"7767517\n2 2\n", b"\0"]
    request, _ = request_for(*files)
    entry = type(request.models[0])("m0", request.models[0].inputs, tuple(len(data) for data in files))
    request, _ = request_for(runtime="ncnn", models=(entry,))
    with pytest.raises(DeviceError, match=r"ncnn is not installed on the device at .*; it has litert, onnxruntime"):
        client(server).measure(request, [files])


def test_too_large_and_wrong_models_are_refused_before_they_are_sent(server: DeviceServer) -> None:
    request, files = request_for(model(size=2 << 20))
    with pytest.raises(DeviceError, match="accepts 1048576; start it with a larger --max-bytes"):
        client(server).measure(request, files)
    data = model(size=(1 << 20) - 200)  # fits, but not with the header before it
    request, files = request_for(data)
    with pytest.raises(DeviceError, match=r"models take 10\d{5} bytes and .* accepts 1048576; start it with a larger"):
        client(server).measure(request, files)
    request, files = request_for(model(), threads=1000)
    with pytest.raises(DeviceError, match="'threads' must be a whole number from 1 to 256"):
        client(server).measure(request, files)
    request, files = request_for(b"\x80\x04 pickle")
    with pytest.raises(DeviceError, match="not a model for litert"):
        client(server).measure(request, files)


@pytest.mark.parametrize(
    ("command", "words"),
    [("crash", r"\(crash\): the process of the run died \(signal SIGSEGV\)"), ("refuse", r"\(model\): operator FOO")],
)
def test_model_that_fails_is_one_line(server: DeviceServer, command: str, words: str) -> None:
    request, files = request_for(model(command))
    with pytest.raises(DeviceError, match=words) as caught:
        client(server).measure(request, files)
    assert "\n" not in str(caught.value)


def test_interrupted_host_ends_the_run_on_the_device(server: DeviceServer, tmp_path: Path) -> None:
    request, files = request_for(model(f"hang-for-good {tmp_path}"))
    host = client(server)
    once = host._once

    def interrupted(method: str, path: str, *rest: object) -> object:
        if method == "GET" and path != "/v1/device":
            until((tmp_path / STARTED).exists)
            raise KeyboardInterrupt
        return once(method, path, *rest)  # type: ignore[arg-type]

    host._once = interrupted  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        host.measure(request, files)
    request, files = request_for(model())
    assert client(server).measure(request, files)  # does not wait for the hung run


def test_device_that_restarts_gets_the_model_again(tmp_path: Path) -> None:
    """A second server plays the restarted one; it does not know the measurement."""
    with served() as first, served() as second:
        request, files = request_for(model(f"count {tmp_path}"))
        switch = {"GET /v1/measurements": 0}

        def route(number: int, connection: socket.socket) -> None:
            if connection.recv(20, socket.MSG_PEEK).decode() == "GET /v1/measurements":
                switch["GET /v1/measurements"] += 1
            relay(second if switch["GET /v1/measurements"] else first, connection)

        with answering(route) as url:
            result = DeviceClient(url, TOKEN).measure(request, files)
    assert result["networks"]["m0"]["latency_ms"] == 1.5


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (reply(b"<html>hello</html>"), "cannot be reached"),
        (reply({"hello": 1}), "not a device server of this version"),
        (
            reply(INFO | {"machine": {"cpu": "stub"}}),
            "not a device server of this version: device.machine: 'architecture'",
        ),
        (reply({}, status=404), "HTTP status 404"),
        (reply({"error": {"kind": "fault", "message": "oops"}}, status=500), r"refuses \(fault\): oops"),
        (reply(b"x" * (5 << 20)), "answers with more than"),
    ],
)
def test_another_kind_of_server_is_one_line(answer: Callable[[int, socket.socket], None], words: str) -> None:
    with answering(answer) as url, pytest.raises(DeviceError, match=words):
        DeviceClient(url, TOKEN, sleep=lambda seconds: None).describe()


def test_result_of_another_version_is_one_line(server: DeviceServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result lacks a field that this host reads; the client reports it before a KeyError could occur."""
    request, files = request_for(model(), model())
    host = client(server)
    real = host._once

    def older(method: str, path: str, *rest: object) -> object:
        answer = real(method, path, *rest)  # type: ignore[arg-type]
        if answer.record.get("state") == "done":
            del answer.record["result"]["networks"]["m1"]["uncertainty"]
        return answer

    monkeypatch.setattr(host, "_once", older)
    with pytest.raises(DeviceError, match=r"\(result\.networks\.m1: 'uncertainty' is missing\); install the same amc"):
        host.measure(request, files)


class Clock:
    """Replaces `time` in the client; time passes only in `sleep`."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return sum(self.waits)

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)


def test_busy_device_is_asked_again_at_the_time_that_it_names_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(client_module, "time", clock)
    busy = reply({"error": {"kind": "busy", "message": "3 measurements wait already"}}, 503, "Retry-After: 8\r\n")
    with answering(busy) as url, pytest.raises(DeviceError, match=r"refuses \(busy\): 3 measurements wait"):
        DeviceClient(url, TOKEN, sleep=clock.sleep, patience=20.0).describe()
    assert all(4 <= wait <= 8 for wait in clock.waits)
    assert 3 <= len(clock.waits) <= 6  # until 20 seconds are over


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8765", "ftp://host", "http://", "http://host:99999", "http://host:x", "http://a@host", "http://h/x",
     "http://[::1", "http://host?x=1", "http://board..local:8765", f"http://{'b' * 64}.local:8765"],
)  # fmt: skip
def test_device_url_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(DeviceError, match="must look like http://HOST:PORT"):
        DeviceClient(url, TOKEN)


def test_ipv6_server_is_reached() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    device = DeviceServer(TOKEN, host="::1", port=0, describe=f"{STUBS}:describe")
    thread = threading.Thread(target=device.serve_forever)
    thread.start()
    try:
        assert device.url.startswith("http://[::1]:")
        assert DeviceClient(device.url, TOKEN).describe().runtimes["litert"] == "2.3.0"
    finally:
        device.shutdown()
        thread.join()
        device.close()
