"""A network's latency on a device, with the runtime that is a core dependency; and the command."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from amc.deploy.device.adb import AndroidDevice
from amc.deploy.device.client import DeviceClient
from amc.deploy.device.formats import FILES
from amc.deploy.device.protocol import DeviceError, DeviceInfo, Model, Request, TensorSpec
from amc.deploy.device.remote import latency_on, open_device
from amc.deploy.device.runner import IMPORTS, describe, measure
from amc.deploy.device.server import DeviceServer
from amc.deploy.measure import MeasureSettings
from amc.deploy.table.bench import DeviceBench
from amc.deploy.table.blocks import Block, BlockRun
from amc.errors import AmcError
from tests.commands import amc
from tests.deploy.device.served import TOKEN
from tests.deploy.device.stubs import MACHINE
from tests.deploy.device.test_formats import onnx_model

QUICK = MeasureSettings(rounds=3, warmup=1, round_seconds=0.002, max_seconds=0.0)
EXAMPLE = torch.zeros(1, 3, 16, 16)


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 14 * 14, 4))


@pytest.fixture(scope="module")
def server() -> Iterator[DeviceServer]:
    """A server with the real runtimes."""
    device = DeviceServer(TOKEN, port=0)
    thread = threading.Thread(target=device.serve_forever)
    thread.start()
    yield device
    device.shutdown()
    thread.join()
    device.close()


def test_networks_are_timed_on_the_device(server: DeviceServer) -> None:
    device = DeviceClient(server.url, TOKEN)
    version = device.describe().runtimes["onnxruntime"]
    networks = {"dense": network(64), "slim": network(4)}
    record = latency_on(device, networks, EXAMPLE, batch=2, settings=QUICK, version=version)
    assert (record["runtime"], record["runtime_version"], record["threads"]) == ("onnxruntime", version, 1)
    assert (record["batch"], record["checked_with"]) == (2, f"onnxruntime {version}")
    dense, slim = record["networks"]["dense"], record["networks"]["slim"]
    assert dense["latency_ms"] > 0
    assert slim["latency_ms"] > 0
    assert dense["file_bytes"] > 64 * 14 * 14 * 4 * 4
    assert slim["verdict"] in ("faster", "slower", "undecided")
    assert record["machine"]["cores"] >= 1


def test_a_command_times_a_network_on_the_device(server: DeviceServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    there = ("--device-url", server.url, "--token-file", token)
    quick = ("--rounds", 3, "--max-seconds", 0, "--json")
    record = amc("latency", "digits_cnn", *there, *quick).json
    assert record["networks"]["dense"]["latency_ms"] > 0
    assert record["networks"]["dense"]["macs"] > 0
    assert record["machine"]["cores"] >= 1
    token.write_text("another-token-of-some-length")
    complaint = amc("latency", "digits_cnn", *there, *quick).complaint
    assert complaint.endswith("refuses the token; give the one that `amc device serve` printed there")


def test_model_that_the_runtime_cannot_run_is_one_line(server: DeviceServer) -> None:
    data = onnx_model().SerializeToString()
    wrong_shape = Model("odd", (TensorSpec((1, 3, 8, 8)),), (len(data),))
    with pytest.raises(DeviceError, match=r"could not measure the models \(model\): .*'odd'"):
        DeviceClient(server.url, TOKEN).measure(Request("onnxruntime", (wrong_shape,)), [[data]])


def test_every_runtime_is_imported_before_a_measurement_counts() -> None:
    assert set(IMPORTS) == set(FILES)
    script = (
        "import sys; from amc.deploy.device.runner import prepare; assert 'onnxruntime' not in sys.modules;"
        "prepare({}); prepare({'runtime': 'ncnn'}); prepare({'runtime': 'onnxruntime'}); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "onnxruntime" in done.stdout.split()


def test_runtimes_whose_files_carry_code_are_refused_everywhere(server: DeviceServer) -> None:
    with pytest.raises(DeviceError, match="its files can carry code"):
        latency_on(DeviceClient(server.url, TOKEN), {"dense": network(4)}, EXAMPLE, runtime="eager")
    with pytest.raises(AmcError, match="can carry code"):
        measure({"runtime": "eager"})
    assert "eager" not in describe({})["runtimes"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"runtime": "executorch", "half": True},
            r"no 16-bit convolutions here; leave half \(--fp16\) out",
        ),
        ({"runtime": "ncnn", "batch": 4}, "ncnn takes one example at a time; leave batch at 1, got 4"),
        ({"threads": 0}, "threads and batch must be at least 1, got 0 and 1"),
        ({"threads": 300}, "a device runs models on at most 256 threads, got 300; ask for fewer"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_written(options: dict[str, Any], words: str) -> None:
    device = DeviceClient("http://127.0.0.1:1", TOKEN, sleep=lambda seconds: pytest.fail("asked"))
    with pytest.raises(AmcError, match=words):
        latency_on(device, {"dense": network(4)}, EXAMPLE, **options)


@pytest.mark.parametrize(("runtime", "half", "batch"), [("executorch", True, 1), ("ncnn", False, 4)])
def test_device_refuses_options_that_a_runtime_does_not_support(runtime: str, half: bool, batch: int) -> None:
    """The child process refuses them too, before it imports the runtime."""
    inputs = [{"shape": [batch, 3, 8, 8], "dtype": "float32"}]
    models = [{"name": "net", "files": ["/no/such/file"], "inputs": inputs}]
    task = {"runtime": runtime, "threads": 1, "half": half, "settings": {}, "models": models}
    with pytest.raises(AmcError, match="no 16-bit convolutions" if half else "one example at a time"):
        measure(task)


class Small:
    """A device that takes requests of at most `body_bytes`; latency in ms is the files' bytes, 10% more per request."""

    def __init__(self, body_bytes: int) -> None:
        self.body_bytes = body_bytes
        self.names: list[list[str]] = []

    def describe(self) -> DeviceInfo:
        return DeviceInfo("0.1.0", MACHINE, {"onnxruntime": "1.0"}, self.body_bytes, 300.0)

    def measure(self, request: Request, files: Sequence[Sequence[bytes]]) -> dict[str, Any]:
        assert request.body_bytes <= self.body_bytes
        assert [model.file_bytes for model in request.models] == [tuple(map(len, parts)) for parts in files]
        self.names.append([model.name for model in request.models])
        warmth = 1 + 0.1 * len(self.names)
        times = {model.name: warmth * sum(model.file_bytes) for model in request.models}
        first = next(iter(times.values()))
        networks = {
            name: {"latency_ms": value, "typical_ms": 2 * value, "ratio": value / first}
            for name, value in times.items()
        }
        return {"networks": networks, "busy": len(self.names) == 2, "steady": len(self.names) != 2, "seconds": 1.5}


def test_networks_too_large_for_one_request_are_sent_in_parts_with_the_first_one() -> None:
    """Three parts, each slower than the last: ratios come from each part, latencies are relative to the first part."""
    networks = {"dense": network(40), "a": network(30), "b": network(20), "c": network(10), "d": network(35)}
    whole = Small(1 << 30)
    alone = latency_on(whole, networks, EXAMPLE)
    assert whole.names == [["dense", "a", "b", "c", "d"]]
    sizes = {name: entry["latency_ms"] / 1.1 for name, entry in alone["networks"].items()}
    device = Small(round(sizes["dense"] + sizes["d"]) + 2000)
    record = latency_on(device, networks, EXAMPLE)
    assert device.names == [["dense", "a"], ["dense", "b", "c"], ["dense", "d"]]
    for name, entry in record["networks"].items():
        assert entry["latency_ms"] == pytest.approx(1.1 * sizes[name])
        assert entry["typical_ms"] == pytest.approx(2.2 * sizes[name])
        assert entry["ratio"] == pytest.approx(sizes[name] / sizes["dense"])
    assert (record["busy"], record["steady"], record["seconds"]) == (True, False, 4.5)
    assert list(record["networks"]) == list(networks)


def test_blocks_too_large_for_one_request_are_sent_one_after_another() -> None:
    block = Block("conv", (4, 4), (1, 1), (1, 1), (0, 0), (1, 1))
    runs = [BlockRun(block, width, width, 1) for width in (64, 32, 96, 48)]
    whole, device = Small(1 << 30), Small(96 * 97 * 4 + 2000)
    times = DeviceBench(device, "http://board:8765", "onnxruntime").blocks(runs)
    together = DeviceBench(whole, "http://board:8765", "onnxruntime").blocks(runs)
    assert whole.names[0] == ["0", "1", "2", "3"]
    assert device.names[:3] == [["0", "1"], ["2"], ["3"]]
    assert [time / 1.1 for time in together] == pytest.approx(
        [t / w for t, w in zip(times, (1.1, 1.1, 1.2, 1.3), strict=True)]
    )


def test_a_device_bench_has_the_threads_that_a_device_has() -> None:
    with pytest.raises(DeviceError, match="at most 256 threads, got 300"):
        DeviceBench(Small(1 << 20), "http://board:8765", "onnxruntime", threads=300)


def test_device_urls_open_the_right_device(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    assert isinstance(open_device("http://board:8765", token_file=token), DeviceClient)
    phone = open_device("adb://192.168.1.5:5555/data/local/tmp/benchmark_model")
    assert isinstance(phone, AndroidDevice)
    assert phone.runtime == "litert"
    assert phone._adb._command == ["adb", "-s", "192.168.1.5:5555"]
    other = open_device("adb:///data/local/tmp/executor_runner")
    assert isinstance(other, AndroidDevice)
    assert other._adb._command == ["adb"]
    with pytest.raises(DeviceError, match="must look like http://HOST:PORT"):
        open_device("board", token_file=token)
    for url in ("adb://foo", "adb:", "adb:///", "adb://[::1"):
        with pytest.raises(DeviceError, match=re.escape(f"'{url}' must look like adb://SERIAL/data/local/tmp/bench")):
            open_device(url)
