"""`amc device serve` in a process of its own, with the real runtimes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from amc.deploy.device.client import DeviceClient
from amc.deploy.device.protocol import Model, Request, TensorSpec
from amc.deploy.device.token import read_token
from amc.deploy.measure import MeasureSettings
from tests.deploy.device.test_formats import onnx_model

_ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Served:
    """A running server."""

    process: subprocess.Popen[str]
    url: str
    token_file: Path

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").rsplit(":", 1)
        return host, int(port)

    @property
    def token(self) -> str:
        return read_token(self.token_file)

    def measure(self) -> int:
        """Measure a small model, as a host does; returns the number of retries."""
        waits: list[float] = []

        def wait(seconds: float) -> None:
            waits.append(seconds)
            time.sleep(seconds)

        request, files = small_request()
        DeviceClient(self.url, self.token, timeout=300.0, sleep=wait).measure(request, files)
        return len(waits)

    def memory(self, *, peak: bool = False) -> int:
        """Memory of the server's process in bytes: now, or the maximum since `forget_peak`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) << 10

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


def small_request(**settings: float) -> tuple[Request, list[list[bytes]]]:
    """A request to time y = x + w on ONNX Runtime, as fast as can be, and its files."""
    data = onnx_model().SerializeToString()
    models = (Model("model", (TensorSpec((2, 2)),), (len(data),)),)
    quick = {"rounds": 3, "warmup": 0, "round_seconds": 0.001, "max_seconds": 0.0} | settings
    return Request("onnxruntime", models, settings=MeasureSettings(**quick)), [[data]]  # type: ignore[arg-type]


@contextmanager
def started(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The command, whose token and files lie in `folder`."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # as users have it
    command = [sys.executable, "-m", "amc.cli", "device", "serve", "--port", "0", "--json"]
    with subprocess.Popen(
        [*command, "--token-file", str(folder / "token"), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment | {"TMPDIR": str(folder)},
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Served]:
    """The command once it listens."""
    with started(folder, *options) as process:
        assert process.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            line = process.stdout.readline()
            assert line, "the server did not start"
            text += line
        record = json.loads(text)
        assert record["token_file"] == str(folder / "token")
        assert "token" not in record
        yield Served(process, record["url"], folder / "token")


def told_to_end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Send signals until the process has ended; returns its exit code and its standard error."""
    for number in cycle(_ENDINGS):
        process.send_signal(number)
        time.sleep(0.005)
        if process.poll() is not None:
            break
    return process.returncode, process.communicate()[1]
