"""Images that are mapped from a file score, and are digested, as images in memory; workers map the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import amc
from amc.compression.scoring import sources
from amc.compression.scoring.evaluator import Evaluator
from amc.compression.scoring.policy import PolicyScorer
from amc.compression.scoring.workers.pool import Pool
from amc.compression.scoring.workers.processes import Processes
from amc.pruning import Pruner
from amc.run.mapped import file_of
from amc.structure import inspect
from amc.zoo import DataSplits, FolderSet, ImageSet, load_data, remembered
from amc.zoo.decode import draw_crops
from amc.zoo.images import Normalisation
from tests.threads import one_thread  # noqa: F401 -- a fixture: workers have one thread, and sums depend on it

SIZE, COUNT = 24, 140
EXAMPLE = torch.zeros(1, 3, SIZE, SIZE)


class Net(nn.Module):
    """[N, 3, H, W] -> logits [N, 2]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm = nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8)
        self.b, self.head = nn.Conv2d(8, 6, 3, stride=2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.b(self.norm(self.a(x)).relu()).relu().mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/, val/ (the search split) and test/ with two classes of noise."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in {"train": 40, "val": COUNT, "test": 4}.items():
        for number in range(count):
            place = root / split / f"class{number % 2}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (30, 26, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number:03d}.png")
    return root


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "SETTLED_SECONDS", 0.0)


def on_disk(folder: Path) -> DataSplits:
    data = load_data(f"imagefolder:{folder}", image_size=SIZE)
    assert file_of(data.search.images) is not None
    return data


def in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> DataSplits:
    data = load_data(f"imagefolder:{folder}", image_size=SIZE)
    with monkeypatch.context() as patch:
        patch.setenv("AMC_IMAGE_CACHE_MB", "0")
        assert file_of(data.search.images) is None
        assert file_of(data.calibration.images) is None
    return data


def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are never held as floats, as if they were many."""
    monkeypatch.setattr("amc.compression.scoring.evaluator.KEEP_FLOAT_BYTES", 1)


def test_scores_and_digests_are_those_of_images_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Evaluator(on_disk(folder).search), Evaluator(in_memory(folder, monkeypatch).search)
    assert one.fingerprint() == other.fingerprint()
    assert one.fingerprint() is not None
    assert torch.equal(one.judged(Net()).right(), other.judged(Net()).right())
    streamed(monkeypatch)
    third = Evaluator(on_disk(folder).search)
    assert third.held == []
    assert torch.equal(one.judged(Net()).right(), third.judged(Net()).right())


@pytest.mark.parametrize("many", [False, True])
def test_a_search_is_the_same_to_the_byte(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    """One process or workers, images on disk or in memory, held as floats or normalised on each use."""

    def journal(name: str, data: DataSplits, **settings: Any) -> bytes:
        amc.compress(
            Net().eval(), EXAMPLE, calibration=data.calibration.batches(20), evaluate=data.search, budget="macs<=60%",
            episodes=3, batch=3, round_to=1, recover="none", baselines=("none",), run_dir=tmp_path / name, **settings,
        )  # fmt: skip
        return (tmp_path / name / "journal.jsonl").read_bytes()

    if many:
        streamed(monkeypatch)
    expected = journal("memory", in_memory(folder, monkeypatch))
    assert journal("disk", on_disk(folder)) == expected
    assert journal("workers", on_disk(folder), workers=2) == expected


def test_workers_map_the_file_and_the_scorer_has_no_copy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed(monkeypatch)
    search = on_disk(folder).search
    entry = file_of(search.images)
    assert entry is not None
    model = Net().eval()
    evaluator, _ = Evaluator(search).divided(3 / 4)
    scorer = PolicyScorer(Pruner(model, inspect(model, EXAMPLE)), evaluator)
    processes = Processes(scorer, 1)
    with Pool(scorer, processes) as workers:
        saved = (processes.folder / "scorer.pt").read_bytes()
        assert len(saved) < search.images.nbytes
        assert bytes(search.images[0].permute(1, 2, 0).contiguous().numpy()) not in saved
        score = workers.scored((8, 6)).score
        (process,) = processes.pids
        maps = Path(f"/proc/{process}/maps")
        if maps.exists():
            assert str(entry) in maps.read_text()
    assert score == evaluator(model)


def test_a_worker_whose_images_were_removed_says_so_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    streamed(monkeypatch)
    monkeypatch.setenv("AMC_CACHE", str(folder.parent / "removed"))
    search, model = on_disk(folder).search, Net().eval()
    entry = file_of(search.images)
    assert entry is not None
    scorer = PolicyScorer(Pruner(model, inspect(model, EXAMPLE)), Evaluator(search))
    workers = Pool(scorer, Processes(scorer, 1))
    entry.unlink()
    with workers:
        workers.ready()
    (told,) = capfd.readouterr().err.splitlines()
    assert told.startswith(f"amc: '{entry}' was removed while it was in use (")
    assert told.endswith("; start or resume again")


class TestParts:
    """A part of a source has the batches that it had when the whole source was read."""

    @pytest.mark.parametrize("kind", [FolderSet, ImageSet])
    def test_the_same_batches_and_no_other_image_is_read(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: type
    ) -> None:
        source: Any = on_disk(folder).search if kind is ImageSet else on_disk(folder).train
        assert isinstance(source, kind)
        assert isinstance(source, sources.SelectableSource)
        chosen = torch.rand(len(source), generator=torch.Generator().manual_seed(1)) < 0.3
        chosen[:14] = False  # two windows without an image
        expected = list(sources._Part(source, chosen).batches(3))
        read: list[int] = []
        apply = Normalisation.__call__

        def counting(self: Normalisation, images: Tensor) -> Tensor:
            read.append(len(images))
            return apply(self, images)

        monkeypatch.setattr(Normalisation, "__call__", counting)
        part = sources.part_of(source, chosen)
        found = list(part.batches(3))
        assert len(part) == sum(read) == int(chosen.sum())
        assert [len(labels) for _, labels in found] == [len(labels) for _, labels in expected]
        for (images, labels), (wanted, numbers) in zip(found, expected, strict=True):
            assert torch.equal(images, wanted)
            assert torch.equal(labels, numbers)

    def test_single_images_of_a_part(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        search = on_disk(folder).search
        held, _ = Evaluator(search).divided(3 / 4)
        streamed(monkeypatch)
        part, _ = Evaluator(search).divided(3 / 4)
        for one, other in zip(held.inputs([0, 7, 100]), part.inputs([0, 7, 100]), strict=True):
            assert torch.equal(one.args[0], other.args[0])


def test_the_crops_of_an_epoch_are_those_of_earlier_versions() -> None:
    """Each image's five numbers were drawn by a call of their own: resumed trainings depend on it."""
    generator = torch.Generator().manual_seed(4)
    expected = torch.stack([torch.rand(5, generator=generator) for _ in range(9)])
    assert torch.equal(draw_crops(9, torch.Generator().manual_seed(4)), expected)
