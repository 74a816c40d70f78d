"""The command `amc device serve`: its messages, and that it leaves no files or processes after a signal."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from amc.deploy.device.client import DeviceClient
from tests.commands import amc
from tests.deploy.device.command import serving, small_request, started, told_to_end
from tests.deploy.device.served import until

ENDED = "amc: the device server has ended\n"


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--max-seconds", "nan", "--max-seconds must be above 0 and at most 1000000, got nan"),
        ("--max-bytes", 0, "--max-bytes must be above 0 and at most 1099511627776, got 0"),
        ("--max-memory", -1, "--max-memory must be at least 0"),
        ("--queue", 0, "--queue must be above 0"),
        ("--port", 70_000, "cannot listen on 127.0.0.1 port 70000"),
        ("--host", "", "--host must be an address, got ''; use 127.0.0.1 to serve this machine only, or 0.0.0.0 to"),
        ("--host", " ", "--host must be an address, got ' '"),
        ("--host", "no such host", "cannot listen on no such host port 8765 ("),
    ],
)
def test_option_that_cannot_be_is_one_line(option: str, value: object, words: str) -> None:
    assert amc("device", "serve", option, value).complaint.startswith(words)


def test_signals_while_a_measurement_runs_leave_nothing_behind(tmp_path: Path) -> None:
    """The server listens to other machines too, and warns about it."""
    with serving(tmp_path, "--host", "0.0.0.0") as server:
        host = DeviceClient(server.url, server.token)
        request, files = small_request(round_seconds=3600.0)
        path = f"/v1/measurements/{secrets.token_hex(16)}"
        assert host._once("PUT", path, request, files).status == 202
        until(lambda: host._once("GET", path).record["state"] == "running")
        code, said = told_to_end(server.process)
    warning, end = said.splitlines(keepends=True)
    assert warning.startswith(f"amc: warning: {server.url} can be reached from other machines, and the connection is")
    assert (code, end) == (0, ENDED)
    assert list(tmp_path.iterdir()) == [server.token_file]


def test_signals_while_it_starts_leave_nothing_behind(tmp_path: Path) -> None:
    with started(tmp_path) as process:
        until(lambda: any(tmp_path.glob("amc-device-*")))
        code, said = told_to_end(process)
    assert (code, said) == (0, ENDED)
    assert list(tmp_path.iterdir()) == [tmp_path / "token"]
