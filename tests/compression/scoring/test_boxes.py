"""The score `map`: COCO's mean average precision of a detector, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import amc
from amc.compression.scoring import metrics
from amc.compression.scoring.boxes import Boxes
from amc.compression.scoring.evaluator import Evaluator
from amc.errors import AmcError, DataError, EvaluationError, NotFiniteError
from amc.run.settings.scores import SCORES
from amc.zoo import load_data
from tests.detector import Detector, scenes, targets, trained

EXAMPLE = [torch.zeros(1, 16, 16)]
COUNT = 60


def detections(seed: int = 9, count: int = COUNT) -> list[Any]:
    """Batches (list of images, targets)."""
    images, wanted = scenes(count, seed)[0], targets(count, seed)
    return [([*images[at : at + 16]], wanted[at : at + 16]) for at in range(0, count, 16)]


def average_precision(network: nn.Module, seed: int = 9, count: int = COUNT) -> float:
    metric = metrics.torchmetrics(SCORES["map"]).detection.MeanAveragePrecision()
    with torch.no_grad():
        metric.update(network.eval()([*scenes(count, seed)[0]]), targets(count, seed))
    return float(metric.compute()["map"])


def compress(run: Path, **changes: Any) -> amc.Result:
    settings = {"episodes": 6, "recover": "none", "baselines": ("none",), "budget": "macs<=40%", "part": "backbone"}
    given = {"calibration": [batch for batch, _ in detections(1)], "evaluate": detections(), "score": "map"}
    return amc.compress(trained(), EXAMPLE, run_dir=run, **{**settings, **given, **changes})


def test_a_detector_is_searched_by_it(tmp_path: Path) -> None:
    result = compress(tmp_path / "run", finalists=0, test=detections(77))
    summary = result.summary
    assert summary["score"] == "map"
    assert summary["dense"]["score"] == pytest.approx(average_precision(trained()))
    assert summary["slim"]["score"] == pytest.approx(average_precision(result.model))
    assert summary["slim"]["test"] == pytest.approx(average_precision(result.model, 77))
    assert 0.2 < summary["slim"]["score"] <= 1
    page = (tmp_path / "run/report.html").read_text()
    assert "ean average precision" in page
    assert f"{summary['slim']['score']:.2%}" in page


def test_the_best_are_compared_on_images_that_chose_nothing(tmp_path: Path) -> None:
    result = compress(tmp_path / "run", evaluate=detections(count=400))
    assert result.summary["finalists"]["images"] == 100


def test_workers_score_the_same(tmp_path: Path) -> None:
    for workers in (1, 2):
        compress(tmp_path / f"{workers}", finalists=0, batch=2, workers=workers)
    assert (tmp_path / "1/journal.jsonl").read_bytes() == (tmp_path / "2/journal.jsonl").read_bytes()


def test_stopped_and_resumed_and_refused_with_other_targets(tmp_path: Path) -> None:
    whole = compress(tmp_path / "whole", finalists=0)
    for name in ("summary.json", "policy.json", "model.safetensors"):
        (tmp_path / "whole" / name).unlink()
    journal = tmp_path / "whole/journal.jsonl"
    before = journal.read_bytes()
    journal.write_bytes(b"".join(before.splitlines(keepends=True)[:4]))
    assert compress(tmp_path / "whole", finalists=0, resume=True).policy == whole.policy
    assert journal.read_bytes() == before
    other = detections()
    other[0][1][0]["labels"] = 1 - other[0][1][0]["labels"]
    with pytest.raises(AmcError, match="other"):
        compress(tmp_path / "whole", finalists=0, resume=True, evaluate=other)


class Tensors(nn.Module):
    """A detector that takes one tensor [N, 1, 16, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = trained()

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        return self.inner([*images])


def test_batches_of_tensors_and_lists_score_alike() -> None:
    one = [(torch.stack(images), wanted) for images, wanted in detections()]
    stacked = Evaluator(one, score="map", example_input=torch.zeros(1, 1, 16, 16))
    listed = Evaluator(detections(), score="map", example_input=EXAMPLE)
    assert len(stacked) == len(listed) == COUNT
    assert stacked(Tensors()) == pytest.approx(listed(trained())) == pytest.approx(average_precision(trained()))
    assert listed.fingerprint() == Evaluator(detections(), score="map", example_input=EXAMPLE).fingerprint()
    assert listed.fingerprint() != Evaluator(detections(8), score="map", example_input=EXAMPLE).fingerprint()


def test_parts_of_it_have_the_targets_of_their_images() -> None:
    evaluator = Evaluator(detections(), score="map", example_input=EXAMPLE)
    parts = evaluator.divided(0.7)
    assert [len(part) for part in parts] == [42, 18]
    pairs = zip(scenes(COUNT, 9)[0], targets(COUNT, 9), strict=True)
    wanted = {tuple(image.flatten().tolist()): target for image, target in pairs}
    seen = 0
    for part in parts:
        for inputs, labels in part.held:
            assert isinstance(labels, Boxes)
            (image,), (target,) = inputs.args[0], labels.targets
            assert torch.equal(target["boxes"], wanted[tuple(image.flatten().tolist())]["boxes"])
            seen += 1
    assert seen == COUNT


def test_images_without_objects_count_their_false_boxes() -> None:
    nothing = {"boxes": torch.zeros(0), "labels": torch.zeros(0)}
    found = {"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
    right = {"boxes": found["boxes"], "labels": found["labels"]}

    class Finds(nn.Module):
        def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
            return [found for _ in images]

    image = torch.zeros(1, 16, 16)
    for target, score in (((right, right), 1.0), ((nothing, right), 0.5)):
        data = [([image, image], list(target))]
        assert Evaluator(data, score="map", example_input=EXAMPLE)(Finds()) == pytest.approx(score, abs=0.01)
    with pytest.raises(NotFiniteError, match="mean average precision is nan"):
        Evaluator([([image], [nothing])], score="map", example_input=EXAMPLE)(Finds())


def changed(change: Callable[[dict[str, Any]], Any]) -> list[Any]:
    data = detections(count=4)
    change(data[0][1][2])
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([images for images, _ in detections()], "needs batches .images, targets., .* this batch has none"),
        ([(images, torch.zeros(len(images))) for images, _ in detections()], r"this batch has a Tensor \[16\]"),
        ([(images, wanted[:3]) for images, wanted in detections()], "16 images and 3 targets"),
        (changed(lambda target: target.pop("boxes")), "a target has labels and no boxes"),
        (changed(lambda target: target.update(boxes=torch.zeros(2, 4))), r"boxes \[2, 4\] and labels \[1\]"),
        (changed(lambda target: target.update(boxes=torch.tensor([[4.0, 0, 2, 2]]))), "ends before it begins"),
        ([(torch.zeros(3, 3), [])], "the network takes a list of images"),
        (load_data("digits").search, "this data has classes; give batches"),
    ],
)
def test_targets_that_are_none_are_refused(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Evaluator(data, score="map", example_input=EXAMPLE)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.zeros(1, 8), r"gives a Tensor \[1, 8\]"),
        ([], "for 1 images the network gives a list"),
        ([{"boxes": torch.zeros(2, 4)}], r"gives a list of 1: a dict of boxes \[2, 4\]"),
        ([{"boxes": torch.zeros(2, 4), "scores": torch.zeros(1), "labels": torch.zeros(2)}], r"scores \[1\]"),
    ],
)
def test_answers_that_are_no_boxes_are_refused(answer: Any, message: str) -> None:
    class Answers(nn.Module):
        def forward(self, images: list[Tensor]) -> Any:
            return answer

    with pytest.raises(EvaluationError, match=message):
        Evaluator(detections(), score="map", example_input=EXAMPLE)(Answers())


def test_boxes_that_are_not_finite_are_named() -> None:
    class Lost(Detector):
        def forward(self, images: Any) -> list[dict[str, Tensor]]:
            empty = {"boxes": torch.full((1, 4), torch.nan), "labels": torch.ones(1), "scores": torch.ones(1)}
            return [empty for _ in images]

    with pytest.raises(NotFiniteError, match="boxes or scores are NaN"):
        Evaluator(detections(), score="map", example_input=EXAMPLE)(Lost())


def test_without_its_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EvaluationError, match=r"needs pycocotools, which is not installed; pip install 'amc-compress"):
        metrics.tally(SCORES["map"])
