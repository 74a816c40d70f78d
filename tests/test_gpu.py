"""The same job on a CUDA device: skipped where there is none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import amc
from amc.cli.jobs.inspect import run_inspect
from amc.cli.jobs.resume import run_resume
from amc.cli.jobs.search import run_search
from amc.compression.observer import Observer
from amc.compression.scoring.evaluator import Evaluator
from amc.compression.settings import SearchConfig
from amc.recovery import FineTuneConfig, finetune
from amc.recovery.distillation import distill_
from amc.run import files
from amc.run.directory import RunDir
from amc.run.settings import Source
from amc.search import read_journal
from amc.structure.trace import Example
from amc.zoo import DataSplits, create_model, load_data, load_weights, model_info
from tests.recovery.test_distances import Recurrent, Tied
from tests.recovery.test_distillation import damaged


def digits() -> tuple[nn.Module, DataSplits]:
    """The built-in network, trained, and its data."""
    info = model_info("digits_cnn")
    assert info is not None
    assert info.weights is not None
    model = create_model("digits_cnn").eval()
    load_weights(model, info.weights)
    return model, load_data("digits")


@pytest.mark.gpu
def test_the_whole_job_on_a_cuda_device() -> None:
    model, data = digits()
    model, example = model.cuda(), torch.zeros(1, 1, 8, 8, device="cuda")
    result = amc.compress(
        model, example, calibration=data.calibration.batches(256), evaluate=data.search, episodes=8, seed=0
    )
    assert {parameter.device.type for parameter in result.model.parameters()} == {"cuda"}
    assert 0.49 <= amc.count_macs(result.model, example) / amc.count_macs(model, example) <= 0.5
    assert result.summary["slim"]["score"] > 0.7
    finetune(result.model, data.train, FineTuneConfig(epochs=2))
    assert Evaluator(data.search)(result.model) > 0.9


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [Recurrent, Tied])  # cuDNN has gradients for a recurrent layer in training mode alone
def test_recovery_on_a_cuda_device(kind: type[nn.Module]) -> None:
    dense = kind().eval()
    slim = damaged(dense)
    batches = [Example.of(torch.randn(64, 4, generator=torch.Generator().manual_seed(seed))) for seed in range(8)]
    found = distill_(slim.cuda(), dense.cuda(), batches, classes=False)
    assert found.reason is None
    assert found.distance[1] < 0.5 * found.distance[0]


def searched(out: Path, **settings: Any) -> RunDir:
    """A short search of the built-in network on the GPU, by its command."""
    source = Source("digits_cnn", data="digits", device="cuda")
    config = SearchConfig(episodes=8, batch=4, finalists=2, **settings)
    return RunDir.open(run_search(out, source, config, progress=Observer()))


def scores_of(run: RunDir) -> list[float | None]:
    return [record.score for record in read_journal(run.file(files.JOURNAL))[1]]


@pytest.mark.gpu
def test_a_search_from_the_command_line(tmp_path: Path) -> None:
    first, again, workers = (
        searched(tmp_path / name, workers=count) for name, count in (("first", None), ("again", None), ("workers", 2))
    )
    assert first.config()["device"] == "cuda:0"
    assert first.read_json(files.SUMMARY)["environment"]["gpu"] == torch.cuda.get_device_name(0)
    assert scores_of(again) == scores_of(first)
    assert scores_of(workers) == scores_of(first)
    models = [run.file(files.MODEL).read_bytes() for run in (first, again, workers)]
    assert models[1] == models[0], "the same seed must recover the same network"
    assert models[2] == models[0]


@pytest.mark.gpu
def test_a_search_goes_on_without_the_gpu(tmp_path: Path) -> None:
    run = searched(tmp_path / "run")
    before = scores_of(run)
    run.discard(files.SUMMARY)
    run_resume(run.path, device="cpu", progress=Observer())
    assert scores_of(run) == before
    summary = run.read_json(files.SUMMARY)
    assert "gpu" not in summary["environment"]
    assert any(f"GPU {torch.cuda.get_device_name(0)}, now none" in text for text in summary["warnings"])


@pytest.mark.gpu
def test_the_structure_is_the_same_on_a_gpu() -> None:
    there, here = (
        run_inspect("resnet20", weights=None, input_shape=None, keep_sets=1, lock=(), only=(), device=device)
        for device in ("cuda", "cpu")
    )
    assert {**there, "certificate": None} == {**here, "certificate": None}
    assert there["certificate"]["keep_sets"] == here["certificate"]["keep_sets"]


@pytest.mark.gpu
def test_images_that_do_not_fit_are_scored_in_parts() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)
    )
    net = net.cuda().eval()
    images, labels = torch.randn(256, 3, 128, 128), torch.randint(5, (256,))
    whole = Evaluator([(images, labels)])
    expected = whole(net)
    assert not whole.engine.warnings
    activation = 256 * 64 * 128 * 128 * 4  # bytes
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.6 * activation / total)
    try:
        score = Evaluator([(images, labels)])
        found = score(net)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("scored at a time" in text for text in score.engine.warnings)
    assert found == pytest.approx(expected, abs=1.5 / 256)


@pytest.mark.gpu
def test_bfloat16_scores_nearly_the_same() -> None:
    model, data = digits()
    model = model.cuda()
    exact, half = Evaluator(data.search), Evaluator(data.search, autocast=True)
    assert half(model) == pytest.approx(exact(model), abs=0.02)
