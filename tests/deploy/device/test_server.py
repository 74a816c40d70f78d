"""A device server with many, wrong and slow clients, and with bad models: it answers each and keeps serving."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from amc.deploy.device import process
from amc.deploy.device.limits import Limits
from amc.deploy.device.protocol import DeviceError, Model
from amc.deploy.device.server import DeviceServer, StoppedError
from amc.deploy.device.stop import Stop
from amc.deploy.measure import MeasureSettings
from tests.deploy.device.served import (
    INPUT,
    STUBS,
    TOKEN,
    ask,
    body_for,
    client,
    connect,
    everything,
    measured,
    new_path,
    no_files,
    request_for,
    send,
    served,
    until,
)  # fmt: skip
from tests.deploy.device.stubs import MACHINE, MAY_GO_ON, STARTED, model


@pytest.fixture(scope="module")
def server() -> Iterator[DeviceServer]:
    with served(data_bytes=256 << 20, body_bytes=1 << 20) as device:
        yield device


def outcome(server: DeviceServer, *models: bytes) -> tuple[str, dict[str, str]]:
    path = new_path()
    assert ask(server, "PUT", path, body_for(*models)).status == 202
    record = ended(server, path)
    return record["state"], record.get("error") or record["result"]


def ended(server: DeviceServer, path: str) -> dict[str, Any]:
    """Wait for a measurement to end, and return it."""
    while (record := ask(server, "GET", f"{path}?wait=15").record)["state"] in ("waiting", "running"):
        pass
    return record


def runs(server: DeviceServer, path: str) -> bool:
    return bool(ask(server, "GET", path).record["state"] == "running")


def see_them_go(pids: Iterable[int]) -> None:
    """Wait until these processes are dead: the kernel needs a moment after a kill."""
    for pid in pids:
        until(lambda pid=pid: not is_running(pid))


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rsplit(")", 1)[1].split()[0] not in "ZX"


def test_device_says_what_it_is(server: DeviceServer) -> None:
    info = client(server).describe()
    assert info.runtimes == {"litert": "2.3.0", "onnxruntime": "1.31.1"}  # eager has no file format: not offered
    assert info.machine == MACHINE
    assert (info.body_bytes, info.run_seconds) == (1 << 20, 300.0)


def test_models_are_sent_and_the_result_comes_back(server: DeviceServer) -> None:
    request, files = request_for(model(size=5), model(size=70_000))
    result = client(server).measure(request, files)
    assert [result["networks"][name]["bytes"] for name in ("m0", "m1")] == [5, 70_000]
    asked = result["networks"]["m1"]["asked"]
    assert asked["inputs"] == [{"shape": [1, 3, 8, 8], "dtype": "float32"}]
    assert [Path(path).name for path in asked["files"]] == ["model1.tflite"]
    assert result["settings"] == asdict(MeasureSettings(rounds=4))


def test_fifty_clients_at_once_all_get_their_own_result_one_run_at_a_time(tmp_path: Path) -> None:
    with served(queue=12) as device, ThreadPoolExecutor(50) as pool:  # some are refused and retry

        def one(number: int) -> tuple[int, int]:
            request, files = request_for(model(f"count {tmp_path}", size=number))
            patient = client(device, sleep=lambda seconds: time.sleep(min(seconds, 0.2)))
            entry = patient.measure(request, files)["networks"]["m0"]
            return entry["bytes"], entry["extra"]

        results = list(pool.map(one, range(50)))
    assert [number for number, _ in results] == list(range(50))
    assert {together for _, together in results} == {1}
    assert len((tmp_path / "runs").read_text()) == 50


def test_full_queue_is_503_with_a_time_to_come_back() -> None:
    with served(queue=1) as device:
        first, second = new_path(), new_path()
        assert ask(device, "PUT", first, body_for(model("hang"))).status == 202
        until(lambda: runs(device, first))
        assert ask(device, "PUT", second, body_for(model())).record["state"] == "waiting"
        refused = ask(device, "PUT", new_path(), body_for(model()))
        assert (refused.status, refused.kind) == (503, "busy")
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert ask(device, "GET", second).record["ahead"] == 1
        assert ask(device, "DELETE", first).status == 200
        assert ended(device, second)["state"] == "done"
        assert ask(device, "GET", first).record["state"] == "cancelled"


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], TOKEN + "x", "é" * 20])
@pytest.mark.parametrize("path", ["/v1/device", "/nowhere", "/v1/measurements/" + "0" * 32])
def test_wrong_token_is_401_for_every_path(server: DeviceServer, token: str | None, path: str) -> None:
    for method in ("GET", "PUT", "DELETE", "POST"):
        answer = ask(server, method, path, b"{}" if method == "PUT" else None, token=token)
        assert (answer.status, answer.kind) == (401, "token")
        assert TOKEN not in str(answer)


def test_two_tokens_or_another_scheme_are_401(server: DeviceServer) -> None:
    twice = ask(server, "GET", "/v1/device", headers=["Authorization: Bearer wrong"])
    basic = ask(server, "GET", "/v1/device", token=None, headers=[f"Authorization: Basic {TOKEN}"])
    assert (twice.status, basic.status) == (401, 401)


def test_oversized_model_is_413_before_it_is_read(server: DeviceServer) -> None:
    lines = f"PUT {new_path()} HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {1 << 40}\r\n\r\n"
    answer = send(server, lines.encode(), bytes(1 << 20))
    assert answer is not None
    assert (answer.status, answer.kind) == (413, "size")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x80\x04\x95 a pickle", "identifier"),
        (b"PK\x03\x04 a zip", "identifier"),
        (b"TFL3", "identifier"),
        ((1 << 30).to_bytes(4, "little") + b"TFL3 ends too soon", "shorter"),
    ],
)
def test_corrupt_model_is_422(server: DeviceServer, data: bytes, words: str) -> None:
    answer = ask(server, "PUT", new_path(), body_for(data))
    assert (answer.status, answer.kind) == (422, "format")
    assert words in answer.record["error"]["message"]
    assert list(server.spool.iterdir()) == []


def test_runtime_that_is_not_there_or_takes_code_is_422(server: DeviceServer) -> None:
    for runtime in ("ncnn", "eager", "pickle"):
        answer = ask(server, "PUT", new_path(), body_for(model(), runtime=runtime))
        assert answer.status == 422
        assert runtime in answer.record["error"]["message"]


def test_other_version_of_the_runtime_is_409(server: DeviceServer) -> None:
    answer = ask(server, "PUT", new_path(), body_for(model(), version="2.2.0"))
    assert (answer.status, answer.kind) == (409, "version")
    assert "2.3.0, not 2.2.0" in answer.record["error"]["message"]
    assert ask(server, "PUT", new_path(), body_for(model(), version="2.3.0")).status == 202


@pytest.mark.parametrize(
    ("command", "kind", "words"),
    [
        ("crash", "crash", "SIGSEGV"),
        ("leave", "crash", "exit code 3): cannot allocate tensors"),
        ("memory", "model", "MemoryError"),
        ("refuse", "model", "operator FOO is not known to this runtime"),
        ("fault", "model", "ValueError: shapes differ"),
        ("nan", "model", "ValueError"),
    ],
)
def test_bad_model_fails_alone(server: DeviceServer, command: str, kind: str, words: str) -> None:
    state, error = outcome(server, model(command))
    assert (state, error["kind"]) == ("failed", kind)
    assert words in error["message"]
    measured(server, model())
    assert list(server.spool.iterdir()) == []


def test_hung_run_ends_with_everything_that_it_started(tmp_path: Path) -> None:
    with served(run_seconds=0.5) as device:
        state, error = outcome(device, model(f"hang-for-good {tmp_path}"))
        assert (state, error["kind"]) == ("failed", "timeout")
        assert error["message"] == "the run did not end within 0.5 s and was stopped"
        pids = [int(pid) for pid in (tmp_path / STARTED).read_text().split()]
        assert len(pids) == 2
        see_them_go(pids)
        assert no_files(device)


class Clock:
    """Replaces `time` while a run is awaited; a test advances it."""

    now = 0.0
    sleep = staticmethod(time.sleep)

    def monotonic(self) -> float:
        return self.now


def test_start_of_a_run_does_not_count_as_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start takes 500 of at most 1,000 seconds, and the measurement has a limit of 10."""
    clock = Clock()
    monkeypatch.setattr(process, "time", clock)
    child = process.Child(f"{STUBS}:measure", seconds=10.0, start_seconds=1000.0)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(child.run, slow_start(tmp_path), tmp_path)
        until((tmp_path / STARTED).exists)
        clock.now = 500.0
        (tmp_path / MAY_GO_ON).touch()
        assert result.result()["networks"]["m0"]["latency_ms"] == 1.5


def test_start_of_a_run_has_a_limit_of_its_own(tmp_path: Path) -> None:
    child = process.Child(f"{STUBS}:measure", seconds=300.0, start_seconds=0.5)
    with pytest.raises(process.RunFailedError) as caught:
        child.run(slow_start(tmp_path), tmp_path)
    assert caught.value.kind == "timeout"
    assert caught.value.message == "the run did not start within 0.5 s and was stopped"


def slow_start(folder: Path) -> dict[str, Any]:
    """A task whose start waits in the folder; see `stubs`."""
    path = folder / "model.tflite"
    path.write_bytes(model(f"start-slowly {folder}"))
    return {
        "runtime": "litert", "threads": 1, "half": False, "settings": {},
        "models": [{"name": "m0", "inputs": [], "files": [str(path)]}],
    }  # fmt: skip


def test_endless_output_is_dropped(server: DeviceServer) -> None:
    assert outcome(server, model("chatter"))[0] == "done"


def test_token_does_not_reach_the_model(server: DeviceServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_DEVICE_TOKEN", TOKEN)
    _, result = outcome(server, model("secret"))
    assert result["networks"]["m0"]["extra"] is None  # type: ignore[index]


def test_same_identifier_is_the_same_measurement(server: DeviceServer, tmp_path: Path) -> None:
    path, body = new_path(), body_for(model(f"count {tmp_path}"))
    for _ in range(3):
        assert ask(server, "PUT", path, body).status == 202
    assert ended(server, path)["state"] == "done"
    assert ask(server, "PUT", path, body).record["result"]["networks"]["m0"]["latency_ms"] == 1.5
    assert (tmp_path / "runs").read_text() == "r"
    other = ask(server, "PUT", path, body_for(model(size=1)))
    assert (other.status, other.kind) == (409, "conflict")


def test_clients_that_vanish_leave_nothing_behind(server: DeviceServer) -> None:
    body = body_for(model(size=200_000))
    for sent in (10, 300, 100_000):
        with connect(server) as connection:
            head = f"PUT {new_path()} HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall((head.encode() + body)[:sent])
    cut = send(server, head.encode(), body[:100_000], ends=True)
    assert cut is not None
    assert (cut.status, cut.kind) == (400, "malformed")
    until(lambda: no_files(server))
    measured(server, model())


def test_abandoned_measurement_is_dropped_when_its_turn_comes(tmp_path: Path) -> None:
    with served() as device:
        first, second = new_path(), new_path()
        assert ask(device, "PUT", first, body_for(model("hang"))).status == 202
        until(lambda: runs(device, first))
        device.measurements._abandoned_after = -1.0  # every waiting measurement counts as abandoned
        assert ask(device, "PUT", second, body_for(model(f"count {tmp_path}"))).status == 202
        ask(device, "DELETE", first)
        assert ended(device, second)["error"]["kind"] == "abandoned"
        assert not (tmp_path / "runs").exists()


def test_waiting_measurement_can_be_cancelled(server: DeviceServer) -> None:
    first, second = new_path(), new_path()
    ask(server, "PUT", first, body_for(model("hang")))
    ask(server, "PUT", second, body_for(model()))
    assert ask(server, "DELETE", second).record["state"] == "cancelled"
    assert ask(server, "DELETE", first).record["state"] == "cancelled"
    assert list(server.spool.iterdir()) == []


def test_full_disk_is_507(server: DeviceServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from amc.deploy.device import handler

    def full(runtime: str, index: int, folder: Path) -> list[Path]:
        return [Path("/dev/full")]

    with monkeypatch.context() as patch:
        patch.setattr(handler, "file_paths", full)
        answer = ask(server, "PUT", new_path(), body_for(model(size=100_000)))
    assert (answer.status, answer.kind) == (507, "disk")
    measured(server, model())


def test_closing_ends_the_run(tmp_path: Path) -> None:
    with served(run_seconds=3600.0) as device:
        ask(device, "PUT", new_path(), body_for(model(f"hang-for-good {tmp_path}")))
        until((tmp_path / STARTED).exists)
    see_them_go(int(pid) for pid in (tmp_path / STARTED).read_text().split())


def test_closing_ends_current_uploads_and_waits() -> None:
    """Neither half a body nor a waiting client delays the end, and neither leaves a file."""
    body = body_for(model(size=100_000))
    head = f"PUT {new_path()} HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
    with served() as device:
        half, silent = connect(device), connect(device)
        half.sendall(head.encode() + body[: len(body) // 2])
        until(lambda: not no_files(device) and len(device._door._visitors) == 1)
    assert everything(silent) == b""
    half.close()
    silent.close()


def test_server_stops_while_it_starts() -> None:
    """The search for its runtimes would take an hour."""
    with Stop() as stop:
        stop.set()
        with pytest.raises(StoppedError):
            DeviceServer(TOKEN, port=0, describe=f"{STUBS}:describe_for_ever", stop=stop)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"queue": 0}, "--queue must be above 0 and at most 9223372036854775807, got 0"),
        ({"data_bytes": -1}, "--max-memory must be at least 0 and at most 9223372036854775807, got -1"),
        ({"body_bytes": 1 << 41}, "--max-bytes must be above 0 and at most 1099511627776, got 2199023255552"),
        ({"run_seconds": float("nan")}, "--max-seconds must be above 0 and at most 1000000, got nan"),
        ({"run_seconds": float("inf")}, "--max-seconds must be above 0 and at most 1000000, got inf"),
        ({"connections": 0}, "the limit connections must be above 0"),
    ],
)
def test_invalid_limit_is_one_line(limits: dict[str, float], words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        Limits(**limits)  # type: ignore[arg-type]


def test_unusable_settings_are_one_line() -> None:
    with pytest.raises(DeviceError, match=r"cannot listen on bücher\.\.local port 0 .*choose another with --host"):
        DeviceServer(TOKEN, host="bücher..local", port=0, describe=f"{STUBS}:describe")
    with pytest.raises(DeviceError, match="no runtime is installed here"):
        DeviceServer(TOKEN, port=0, describe=f"{STUBS}:describe_nothing")
    with pytest.raises(DeviceError, match=r"cannot list the runtimes.*no_such"):
        DeviceServer(TOKEN, port=0, describe="no_such_module:describe")
    with served() as device:
        port = int(device.url.rsplit(":", 1)[1])
        with pytest.raises(DeviceError, match=f"cannot listen on 127.0.0.1 port {port}"):
            DeviceServer(TOKEN, port=port, describe=f"{STUBS}:describe")


def test_files_get_names_of_the_server_only(server: DeviceServer) -> None:
    data = model()
    odd = [Model(name, (INPUT,), (len(data),)) for name in ("../../etc/passwd", "a/b", "", "x" * 101, "a\nb")]
    for entry in odd:
        assert ask(server, "PUT", new_path(), body_for(data, models=(entry,))).kind == "malformed"
