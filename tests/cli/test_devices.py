"""`--device`: the names, what is there, and where a network goes. A GPU is pretended; tests/test_gpu.py needs one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from amc.cli.jobs.devices import device_named, placed
from amc.compression.load import set_place
from amc.errors import AmcError
from amc.run import files
from amc.run.directory import RunDir
from amc.run.provenance import difference, execution
from amc.run.settings import Source
from tests.commands import AS_PRUNED, amc


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that pretends so many GPUs."""

    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


@pytest.mark.parametrize(
    ("count", "name", "device"),
    [(0, "auto", "cpu"), (2, "auto", "cuda"), (2, "cpu", "cpu"), (2, "cuda", "cuda"), (2, "cuda:1", "cuda:1")],
)
def test_a_device_by_name(gpus: Any, count: int, name: str, device: str) -> None:
    gpus(count)
    assert device_named(name) == torch.device(device)


@pytest.mark.parametrize(
    ("count", "name", "message"),
    [
        (0, "tpu!", "device 'tpu!' is malformed; write auto, cpu, cuda or cuda:1"),
        (0, "meta", "device 'meta' is malformed"),
        (0, "", "device '' is malformed"),
        (0, "cuda", "device 'cuda' is not there: .*; choose cpu"),
        (1, "cuda:1", "device 'cuda:1' is not there: this machine has cuda:0; choose one of them, or cpu"),
        (4, "cuda:4", "this machine has cuda:0 to cuda:3"),
    ],
)
def test_a_device_that_is_not_there(gpus: Any, count: int, name: str, message: str) -> None:
    gpus(count)
    with pytest.raises(AmcError, match=message):
        device_named(name)


class Movable(nn.Linear):
    """Remembers where it was sent."""

    sent: Any = None

    def to(self, device: Any) -> Movable:
        self.sent = device
        return self


@pytest.mark.parametrize(
    ("name", "own_score", "sent"),
    [(None, False, None), ("auto", False, "cuda"), ("auto", True, None), ("cuda:1", True, "cuda:1"), ("cpu", 0, "cpu")],
)
def test_where_a_network_goes(gpus: Any, name: str | None, own_score: bool, sent: str | None) -> None:
    gpus(2)
    network = Movable(2, 2)
    assert placed(network, name, own_score=own_score) is network
    assert network.sent == (None if sent is None else torch.device(sent))


def test_a_network_of_a_factory_on_a_gpu_stays_there(gpus: Any) -> None:
    gpus(2)
    network = Movable(2, 2, device="meta")  # in place of the GPU
    assert placed(network, "auto").sent is None


def test_earlier_runs_stay_where_their_network_is() -> None:
    assert Source("net").device == "auto"
    assert Source.from_json({"model": "net"}).device is None
    assert Source.from_json(Source("net", device="cuda:1").to_json()).device == "cuda:1"


@pytest.mark.parametrize("command", ["search", "sweep", "study", "inspect"])
def test_commands_refuse_a_gpu_that_is_not_there(command: str, tmp_path: Path) -> None:
    out = () if command == "inspect" else ("--out", tmp_path / "run")
    ended = amc(command, "digits_cnn", *out, "--device", "cuda:7")
    assert ended.code == 2
    assert "device 'cuda:7' is not there" in ended.stderr
    assert "choose cpu" in ended.stderr.replace("\n", " ") or "cuda:0" in ended.stderr


def test_a_run_says_its_device_and_goes_on_elsewhere(tmp_path: Path) -> None:
    few = ("--episodes", 4, "--search-images", 50, "--calibration-images", 64, "--no-test", "--certify", 0, *AS_PRUNED)
    out = tmp_path / "run"
    assert amc("search", "digits_cnn", "--out", out, "--device", "cpu", *few).code == 0
    config = json.loads((out / files.CONFIG).read_text())
    assert config["device"] == "cpu"
    RunDir.open(out).write_json(files.CONFIG, {**config, "device": "cuda:5"})
    (out / files.SUMMARY).unlink()
    ended = amc("resume", out)
    assert ended.code == 2
    assert "device 'cuda:5' is not there" in ended.stderr
    assert amc("resume", out, "--device", "cpu").code == 0
    assert json.loads((out / files.CONFIG).read_text())["device"] == "cpu"


def test_a_place_is_set_in_the_unfinished_runs_inside(tmp_path: Path) -> None:
    for name in ("", "done", "open"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / files.CONFIG).write_text(json.dumps({"model": "digits_cnn", "device": "cuda:0"}))
    (tmp_path / "done" / files.SUMMARY).write_text("{}")
    set_place(RunDir.open(tmp_path), device="cpu", workers=2)
    found = {
        name: json.loads((tmp_path / name / files.CONFIG).read_text()).get("device") for name in ("", "done", "open")
    }
    assert found == {"": "cpu", "done": "cuda:0", "open": "cpu"}


def test_another_gpu_is_another_place() -> None:
    here = execution()
    assert difference({**here, "gpu": "NVIDIA H200"}, here) == "GPU NVIDIA H200, now none"
    assert difference(here, {**here, "gpu": "NVIDIA H200"}) == "GPU none, now NVIDIA H200"
    assert difference(here, here) is None
