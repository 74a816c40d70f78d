"""Clients without the token can neither fill the server's memory nor block clients with the token; see `attacks`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from amc.deploy.device.client import DeviceClient
from tests.deploy.device.attacks import ATTACKS, MEGABYTE, damage
from tests.deploy.device.command import Served, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the memory is read from Linux's /proc"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("server")) as device:
        device.measure()  # the first request costs memory too, which is not part of an attack
        yield device


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_costs_little_memory_and_token_holders_are_served(server: Served, name: str) -> None:
    assert damage(server, name).growth < 64 * MEGABYTE
    assert "onnxruntime" in DeviceClient(server.url, server.token).describe().runtimes  # the server still works
