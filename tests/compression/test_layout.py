"""Networks that call `view` on the output of a convolution: they take no images in channels-last format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import amc
from amc.cli.jobs.finetune import run_finetune
from amc.cli.jobs.origin import fitting
from amc.cli.jobs.search import run_search
from amc.compression.observer import Observer
from amc.compression.scoring.evaluator import Evaluator
from amc.compression.settings import SearchConfig
from amc.run.settings import CandidateConfig, FineTuneConfig, Source
from amc.zoo import DataSplits, ImageSet, load_data
from tests.threads import one_thread

__all__ = ["one_thread"]


class Viewing(nn.Module):
    """[N, 1, 8, 8] -> logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 8, 3), nn.Linear(8 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        logits: Tensor = self.head(x.view(x.size(0), -1))
        return logits


def network() -> Viewing:
    torch.manual_seed(0)
    return Viewing().eval()


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_channels_last_is_what_it_cannot_take() -> None:
    """The reason for these tests, with more than one channel."""
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        nn.Sequential(nn.Conv2d(2, 4, 3), Flat())(torch.randn(2, 2, 5, 5).contiguous(memory_format=torch.channels_last))


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("limit", [1 << 30, 1])
def test_it_is_scored(channels: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amc.compression.scoring.evaluator.KEEP_FLOAT_BYTES", limit)
    net = nn.Sequential(nn.Conv2d(channels, 4, 3), Flat(), nn.Linear(36, 3)).eval()
    x = torch.randn(40, channels, 5, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = net(x).argmax(1)
    for source in (ImageSet(x, labels), [(x, labels)]):
        whole = Evaluator(source)
        parts = whole.divided(0.75)
        assert [whole(net), *(part(net) for part in parts)] == [1, 1, 1]
        assert [part(net) for part in whole.divided(0.5)] == [1, 1]  # after the layout is known


def test_data_in_rows_has_the_same_images() -> None:
    data = load_data("digits")
    plain = data.contiguous()
    for split in ("train", "calibration", "search", "test"):
        (first, labels), (second, same) = (next(iter(getattr(each, split).batches(7))) for each in (data, plain))
        assert torch.equal(first, second)
        assert torch.equal(labels, same)
        assert second.is_contiguous()
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    ours, theirs = (
        next(iter(each.train.training_batches(8, generator)))
        for each, generator in zip((data, plain), generators, strict=True)
    )
    assert torch.equal(ours[0], theirs[0])
    assert fitting(data, nn.Conv2d(1, 2, 3)) is data


def test_the_whole_job_from_python() -> None:
    dense = network()
    labels = dense(images(128, 3)).argmax(1)
    result = amc.compress(
        dense, images(1, 0), calibration=images(128, 1).split(32), evaluate=[(images(128, 3), labels)], episodes=2,
        round_to=1, keep_sets=1,
    )  # fmt: skip
    assert result.summary["dense"]["score"] == 1
    assert result.summary["recovery"]["outcome"] in ("recovered", "scores less", "no nearer")
    assert len(amc.finetune(result.model, [(images(64, 4), labels[:64])], evaluate=[(images(128, 3), labels)],
                            epochs=1).epochs) == 1  # fmt: skip


def splits() -> DataSplits:
    """Images of three channels in memory, for the command line."""
    made = {}
    for seed, (name, count) in enumerate({"train": 96, "calibration": 64, "search": 80, "test": 40}.items()):
        x = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        made[name] = ImageSet(x, torch.arange(count) % 10)
    return DataSplits("made", 10, (3, 8, 8), {name: (lambda made=split: made) for name, split in made.items()})


def viewing() -> nn.Module:
    """A factory for the command line."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), Flat(), nn.Linear(128, 10)
    )


def test_the_whole_job_from_the_command_line(tmp_path: Path) -> None:
    source = Source("tests.compression.test_layout:viewing", data="tests.compression.test_layout:splits")
    config = SearchConfig(episodes=2, round_to=1, keep_sets=1)
    run_search(tmp_path / "run", source, config, progress=Observer())
    run_finetune(
        tmp_path / "run", FineTuneConfig(epochs=1, batch_size=32),
        candidates=CandidateConfig(candidates=2, candidate_epochs=1), progress=Observer(),
    )  # fmt: skip
