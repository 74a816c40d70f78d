"""Two processes train one network; needs the extra `accelerate`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from amc.errors import AmcError
from amc.recovery import FineTuneConfig, finetune, resume_point
from amc.recovery.workers import Accelerated, launched
from tests.recovery.samples import half_masks, small_network, stripes

ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = {"epochs": 2, "batch_size": 16, "lr": 0.05, "ema": 0.8, "label_smoothing": 0.1}

needs_accelerate = pytest.mark.skipif(find_spec("accelerate") is None, reason="needs the extra accelerate")


def plain_network() -> nn.Sequential:
    """Without what differs from process to process: batch norms (statistics) and dropout (random numbers)."""
    model = small_network()
    return nn.Sequential(*(nn.Identity() if index in (1, 3) else part for index, part in enumerate(model)))


def launch(folder: Path, scenario: str) -> list[int]:
    """Exit codes of both processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "tests.recovery.together", str(folder), scenario]
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE
        )
        for rank in (0, 1)
    ]
    errors, codes = [], []
    for process in processes:
        errors.append(process.communicate(timeout=600)[1].decode()[-2000:])
        codes.append(process.returncode)
    if scenario != "interrupted":
        assert codes == [0, 0], "\n".join(errors)
    return codes


@needs_accelerate
@pytest.mark.slow
def test_two_processes_do_what_one_does_and_resume(tmp_path: Path) -> None:
    alone = plain_network()
    finetune(alone, stripes(64), FineTuneConfig(**CONFIG), masks=half_masks(alone))
    (tmp_path / "whole").mkdir()
    launch(tmp_path / "whole", "whole")
    first, second = (safetensors.torch.load_file(tmp_path / "whole" / f"whole-{rank}.safetensors") for rank in (0, 1))
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(first[name], second[name])
    codes = launch(tmp_path, "interrupted")
    assert codes[0] == 3
    assert codes[1] != 0  # the other cannot go on alone
    point = resume_point(tmp_path / "ckpt")
    assert point is not None
    assert point.step == 5
    launch(tmp_path, "resumed")
    resumed = safetensors.torch.load_file(tmp_path / "resumed-0.safetensors")
    assert all(torch.equal(resumed[name], first[name]) for name in first)


@needs_accelerate
def test_one_process_with_an_accelerator_is_one_process_without() -> None:
    from accelerate import Accelerator

    plain, accelerated = small_network(), small_network()
    finetune(plain, stripes(64), FineTuneConfig(**CONFIG))
    finetune(accelerated, stripes(64), FineTuneConfig(**CONFIG), accelerator=Accelerator(cpu=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), accelerated.parameters(), strict=True))


def test_an_accelerator_that_cannot_be_used_is_refused() -> None:
    other: dict[str, Any] = {"process_index": 0, "num_processes": 2, "device": torch.device("cpu")}
    half = SimpleNamespace(mixed_precision="bf16", distributed_type=SimpleNamespace(value="MULTI_CPU"), **other)
    with pytest.raises(AmcError, match="mixed precision 'bf16'; make it with mixed_precision='no' and set precision"):
        Accelerated(half, small_network())
    sharded = SimpleNamespace(mixed_precision="no", distributed_type=SimpleNamespace(value="FSDP"), **other)
    with pytest.raises(AmcError, match="set up for FSDP; only whole copies"):
        Accelerated(sharded, small_network())


def test_alone_unless_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched() is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(
        AmcError, match=r'needs accelerate; pip install -c constraints\.txt "amc-compress\[accelerate\]"'
    ):
        launched()
