"""From a network here to its latency over there, on the runtime that the core brings; and the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from amc.deploy.device.adb import AndroidDevice
from amc.deploy.device.client import DeviceClient
from amc.deploy.device.protocol import DeviceError, Model, Request, TensorSpec
from amc.deploy.device.remote import latency_on, open_device
from amc.deploy.device.runner import describe, measure
from amc.deploy.device.server import DeviceServer
from amc.deploy.measure import MeasureSettings
from amc.errors import AmcError
from tests.commands import amc
from tests.deploy.device.served import TOKEN
from tests.deploy.device.test_formats import onnx_model

QUICK = MeasureSettings(rounds=3, warmup=1, round_seconds=0.002, max_seconds=0.0)
EXAMPLE = torch.zeros(1, 3, 16, 16)


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 14 * 14, 4))


@pytest.fixture(scope="module")
def server() -> Iterator[DeviceServer]:
    """With the real runtimes."""
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
    assert dense["latency_ms"] > slim["latency_ms"] > 0
    assert dense["file_bytes"] > 64 * 14 * 14 * 4 * 4
    assert slim["verdict"] in ("faster", "undecided")
    assert record["machine"]["cores"] >= 1


def test_a_command_has_a_network_timed_there(server: DeviceServer, tmp_path: Path) -> None:
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


def test_runtimes_whose_files_carry_code_are_refused_everywhere(server: DeviceServer) -> None:
    with pytest.raises(DeviceError, match="its files can carry code"):
        latency_on(DeviceClient(server.url, TOKEN), {"dense": network(4)}, EXAMPLE, runtime="eager")
    with pytest.raises(AmcError, match="can carry code"):
        measure({"runtime": "eager"})
    assert "eager" not in describe({})["runtimes"]


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


def test_command_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    command = [sys.executable, "-c", "from amc.cli.device import app; app()", "serve", "--port", "0", "--json",
               "--token-file", str(token_file)]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    assert process.stdout is not None
    text = ""
    while not text.rstrip().endswith("\n}"):
        text += process.stdout.readline() or pytest.fail(str(process.communicate()))
    record = json.loads(text)
    assert record["token_file"] == str(token_file)
    assert "token" not in record
    info = open_device(record["url"], token_file=token_file).describe()
    assert dict(info.runtimes) == record["runtimes"]
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 0
    assert stderr == "amc: the device server has ended\n"
    assert list(tmp_path.iterdir()) == [token_file]
