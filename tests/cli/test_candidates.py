"""Candidates that are trained on a Ray cluster."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from amc.cli.jobs.candidates import Here, train_here
from amc.cli.jobs.training import Training
from amc.compression.settings import SearchConfig
from amc.recovery import FineTuneConfig
from amc.run.settings import Source
from amc.zoo import create_model
from tests.commands import AS_PRUNED, amc

QUICK = (
    *("--search-images", 120, "--calibration-images", 64, "--bn-images", 32, "--certify", 0, "--no-test"),
    *AS_PRUNED,
)
CANDIDATES = ("--candidates", 2, "--epochs", 1, "--batch-size", 64)
TUNED = ("summary.json", "model-finetuned.safetensors", "model.safetensors", "policy.json")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search with several policies."""
    out = tmp_path_factory.mktemp("candidates") / "run"
    assert amc("search", "digits_cnn", "--out", out, "--episodes", 6, "--agent", "random", *QUICK).code == 0
    return out


def test_candidates_on_a_cluster_end_as_those_trained_here(nodes: Any, searched: Path, tmp_path: Path) -> None:
    here, there = (Path(shutil.copytree(searched, tmp_path / name)) for name in ("here", "there"))
    assert amc("finetune", here, *CANDIDATES).code == 0
    done = amc("finetune", there, *CANDIDATES, "--ray", nodes.address)
    assert done.code == 0, done.stderr
    assert [(there / name).read_bytes() for name in TUNED] == [(here / name).read_bytes() for name in TUNED]


def test_ray_without_candidates_is_refused(searched: Path) -> None:
    complaint = amc("finetune", searched, "--epochs", 1, "--ray", "auto").complaint
    assert complaint == "ray trains candidates only; add --candidates, or leave out ray"


def test_a_node_without_the_data_is_named(tmp_path: Path) -> None:
    source = Source(command="search", model="digits_cnn", data=f"cifar10:{tmp_path / 'nowhere'}")
    training = Training(source, SearchConfig(), torch.device("cpu"))
    here = Here(torch.get_num_threads(), [], str(Path.cwd()))
    found = train_here(training, create_model("digits_cnn"), {}, FineTuneConfig(epochs=1), here)
    assert found["kind"] == "run"
    assert str(tmp_path / "nowhere") in found["error"]
    assert found["node"]
