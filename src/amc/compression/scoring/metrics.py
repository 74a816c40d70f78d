"""Outputs and labels -> a score.

A `Tally` adds the outputs of a network batch by batch and returns the metric's own value at the end. Top-1 and top-5
are computed here. Torchmetrics (extra `metrics`) computes the others, from labels and outputs in its format.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from amc.compression.scoring.boxes import Boxes, answers_of
from amc.compression.scoring.outputs import (
    OWN,
    aligned,
    check_range,
    class_count,
    one_class_each,
    one_hot,
    refuse_nan,
    refuse_probabilities,
    whole_numbers,
)
from amc.errors import EvaluationError, ModelError
from amc.run.settings.scores import ScoreKind
from amc.zoo._torchvision import import_torchvision

IGNORED = 255  # a pixel without a class, as in Pascal VOC and Cityscapes
TOP = 5
PERFECT = 100.0  # decibels of an image without any error


class Tally(Protocol):
    """A metric over all batches of a data set."""

    def add(self, outputs: Any, labels: Any) -> None:
        """Add one batch: tensors on one device or, for boxes, answers and `Boxes`.

        Raises EvaluationError for shapes or values without this metric.
        """

    def value(self) -> float:
        """The metric's own value; NaN or infinite if it is undefined on this set."""


def tally(kind: ScoreKind) -> Tally:
    """A new tally of a score. Raises EvaluationError if it needs torchmetrics, which is not installed."""
    if kind.needs_torchmetrics:
        torchmetrics(kind)
    return _TALLIES[kind.name]()


def torchmetrics(kind: ScoreKind) -> Any:
    """The package torchmetrics. Raises EvaluationError, with the extra's name, if it is not installed."""
    with contextlib.suppress(ModelError):  # torchmetrics imports an installed torchvision, which may fail without this
        import_torchvision()
    try:
        return importlib.import_module("torchmetrics")
    except ModuleNotFoundError as error:
        raise EvaluationError(
            f"score {kind.name} needs torchmetrics, which is not installed; pip install 'amc-compress[metrics]'"
        ) from error


class Hits:
    """Accuracy per image: an image is right if its label is among the `top` largest logits."""

    def __init__(self, top: int = 1) -> None:
        self._top = top
        # All of them stay on the device until the end, so that no batch waits for a copy.
        self._right: list[Tensor] = []
        self._answers: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._single = _SingleLogit()
        self.classes = 0

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        logits, classes = one_class_each(outputs, labels)
        count = self.classes = class_count(logits)
        if self._top > 1 and self._top >= count:
            raise EvaluationError(
                f"the network has {count} classes, so top-{self._top} is always right; choose score top1"
            )
        answers = self._single.answers(logits)
        among = logits.topk(self._top, dim=1).indices if self._top > 1 else answers.unsqueeze(1)
        self._right.append((among == classes.unsqueeze(1)).any(1))
        self._answers.append(answers)
        self._labels.append(classes)

    def right(self) -> Tensor:
        """Bool [N] on the CPU, in the order of the images."""
        self._single.check()
        return torch.cat(self._right).cpu()

    def answers(self) -> Tensor:
        """The class with the largest logit: int64 [N] on the CPU."""
        return torch.cat(self._answers).cpu()

    def labels(self) -> Tensor:
        """Int64 [N] on the CPU."""
        return torch.cat(self._labels).cpu()

    def value(self) -> float:
        right = self.right()
        return int(right.sum()) / len(right)


class _BalancedAccuracy:
    """The share of right answers per class, averaged over the classes in the labels."""

    def __init__(self) -> None:
        self._answers = _Answers()

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        self._answers.add(*one_class_each(outputs, labels))

    def value(self) -> float:
        answers, classes, count = self._answers.all()
        counted = _functional().multiclass_stat_scores(answers, classes, count, average=None)
        right, support = counted[:, 0].double(), counted[:, 4].double()  # two of five columns
        occurs = support > 0  # a class without labels has no share of right answers
        return float((right[occurs] / support[occurs]).mean())


class _MacroF1:
    """F1, averaged over the classes or, if an image may have several labels, over the labels."""

    def __init__(self) -> None:
        self._answers = _Answers()
        self._hot: list[tuple[Tensor, Tensor]] = []  # logits and 0 or 1, both [N, L]

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        logits, wanted = aligned(outputs, labels)
        if wanted.ndim == 2:
            self._hot.append((logits.cpu(), wanted.cpu()))
        else:
            self._answers.add(logits, wanted)

    def value(self) -> float:
        if not self._hot:
            answers, classes, count = self._answers.all()
            return float(_functional().multiclass_f1_score(answers, classes, count, average="macro"))
        logits, hot = (torch.cat(parts) for parts in zip(*self._hot, strict=True))
        count = hot.shape[1]
        if one_hot(hot):
            return float(_functional().multiclass_f1_score(logits.argmax(1), hot.argmax(1), count, average="macro"))
        refuse_probabilities(logits.min(), logits.max())
        return float(_functional().multilabel_f1_score((logits > 0).long(), hot, count, average="macro"))


class _AUROC:
    """Area under the ROC curve: of a single logit, or averaged over classes (one against the rest) or labels."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = []

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        logits, wanted = aligned(outputs, labels)
        if not logits.isfinite().all():
            raise EvaluationError("the network's logits are infinite; check its weights and the normalisation")
        self._batches.append((logits.cpu().double(), wanted.cpu()))

    def value(self) -> float:
        """NaN if no class has both positive and negative images."""
        logits, wanted = (torch.cat(parts) for parts in zip(*self._batches, strict=True))
        if logits.ndim == 1:
            columns, targets = logits.unsqueeze(1), wanted.unsqueeze(1)
        else:
            single = wanted.ndim == 1 or one_hot(wanted)
            columns = _log_odds(logits) if single else logits
            targets = torch.nn.functional.one_hot(wanted, logits.shape[1]) if wanted.ndim == 1 else wanted
        areas = [
            float(_functional().binary_auroc(_ranks(column), target))
            for column, target in zip(columns.T, targets.T, strict=True)
            if 0 < int(target.sum()) < len(target)  # otherwise the area is undefined
        ]
        return sum(areas) / len(areas) if areas else float("nan")


class _MeanIoU:
    """Intersection over union of pixels, averaged over the classes that occur; ignores pixels with label 255."""

    def __init__(self) -> None:
        self._metric: Any = None
        self._single = _SingleLogit()

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        """Add outputs [N, C, ...] and labels [N, ...] or [N, 1, ...]. C = 1 means a single logit per pixel."""
        if labels.ndim == outputs.ndim and labels.shape[1:2] == (1,):
            labels = labels[:, 0]
        if outputs.ndim < 3 or labels.shape != (*outputs.shape[:1], *outputs.shape[2:]):
            raise EvaluationError(
                f"mean IoU has logits [N, C, H, W] and labels [N, H, W], got {list(outputs.shape)} and "
                f"{list(labels.shape)}; resize one to the other, {OWN}"
            )
        refuse_nan(outputs)
        logits = outputs[:, 0] if outputs.shape[1] == 1 else outputs
        count = 2 if outputs.shape[1] == 1 else outputs.shape[1]
        wanted = whole_numbers(labels)
        ignored = wanted == IGNORED if count <= IGNORED else torch.zeros_like(wanted, dtype=torch.bool)
        check_range(wanted[~ignored], count)
        if self._metric is None:
            jaccard = importlib.import_module("torchmetrics.classification").MulticlassJaccardIndex
            self._metric = jaccard(count, average="macro", ignore_index=IGNORED if count <= IGNORED else None)
        answers = self._single.signs(logits) if outputs.shape[1] == 1 else logits.argmax(1)
        self._metric.update(answers.cpu(), wanted.cpu())

    def value(self) -> float:
        self._single.check()
        return float(self._metric.compute())


class _Error:
    """The mean over all elements of an error of the outputs: a metric of `torchmetrics.regression`."""

    def __init__(self, name: str, label: str) -> None:
        self._metric = getattr(importlib.import_module("torchmetrics.regression"), name)().set_dtype(torch.float64)
        self._label = label

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        outputs = _like_labels(outputs, labels, self._label)
        self._metric.update(outputs.double().cpu().flatten(), labels.double().cpu().flatten())

    def value(self) -> float:
        return float(self._metric.compute())


class _PSNR:
    """Peak signal-to-noise ratio in decibels: of each image, averaged. Labels in [0, 1] have peak 1, else 255."""

    def __init__(self) -> None:
        self._errors: list[Tensor] = []
        self._extremes: list[Tensor] = []

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        outputs = _like_labels(outputs, labels, "PSNR")
        self._errors.append((outputs.double() - labels.double()).square().flatten(1).mean(1).cpu())
        self._extremes.append(torch.stack([labels.min(), labels.max()]).double().cpu())

    def value(self) -> float:
        extremes = torch.stack(self._extremes)
        least, most = float(extremes[:, 0].min()), float(extremes[:, 1].max())
        if not 0 <= least <= most <= 255:
            raise EvaluationError(
                f"the labels are {least:g} to {most:g}, and PSNR takes images of 0 to 1, or of 0 to 255; give labels "
                "that are not normalised, and let the network answer in the same range"
            )
        peak = 1.0 if most <= 1 else 255.0
        decibels = 10 * torch.log10(peak**2 / torch.cat(self._errors))
        return float(decibels.clamp(max=PERFECT).mean())


class _MeanAveragePrecision:
    """COCO's mean average precision of boxes: over classes and overlaps of 0.5, 0.55, ... 0.95."""

    def __init__(self) -> None:
        names = [name for name in ("pycocotools", "faster_coco_eval") if importlib.util.find_spec(name)]
        if not names:
            raise EvaluationError(
                "score map needs pycocotools, which is not installed; pip install 'amc-compress[metrics]'"
            )
        metric = importlib.import_module("torchmetrics.detection.mean_ap").MeanAveragePrecision
        self._metric = metric(backend=names[0])

    def add(self, outputs: Any, labels: Boxes) -> None:
        self._metric.update(answers_of(outputs, len(labels)), [dict(target) for target in labels.targets])

    def value(self) -> float:
        """NaN if no image has an object."""
        found = float(self._metric.compute()["map"])
        return found if found >= 0 else float("nan")


_TALLIES: Mapping[str, Callable[[], Tally]] = {
    "top1": Hits,
    "top5": lambda: Hits(TOP),
    "balanced-accuracy": _BalancedAccuracy,
    "macro-f1": _MacroF1,
    "auroc": _AUROC,
    "miou": _MeanIoU,
    "mse": lambda: _Error("MeanSquaredError", "mean squared error"),
    "mae": lambda: _Error("MeanAbsoluteError", "mean absolute error"),
    "psnr": _PSNR,
    "map": _MeanAveragePrecision,
}


class _SingleLogit:
    """Class numbers from logits. The sign of a single logit decides; `check` refuses probabilities at the end."""

    def __init__(self) -> None:
        self._extremes: list[Tensor] = []

    def answers(self, logits: Tensor) -> Tensor:
        """Class numbers [N] from logits [N, C], or [N] for one logit."""
        return logits.argmax(1) if logits.ndim == 2 else self.signs(logits)

    def signs(self, logits: Tensor) -> Tensor:
        """1 where a single logit is above zero, else 0; any shape."""
        self._extremes.append(torch.stack([logits.min(), logits.max()]))
        return (logits > 0).long()

    def check(self) -> None:
        """Raise EvaluationError if all single outputs look like probabilities: zero is not their threshold."""
        if self._extremes:
            extremes = torch.stack(self._extremes)
            refuse_probabilities(extremes[:, 0].min(), extremes[:, 1].max())


class _Answers:
    """The answers and labels of all batches, on the CPU."""

    def __init__(self) -> None:
        self._single = _SingleLogit()
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._count = 2

    def add(self, logits: Tensor, classes: Tensor) -> None:
        self._count = class_count(logits)
        self._batches.append((self._single.answers(logits).cpu(), classes.cpu()))

    def all(self) -> tuple[Tensor, Tensor, int]:
        """Answers [N], labels [N], and the number of classes."""
        self._single.check()
        answers, classes = (torch.cat(parts) for parts in zip(*self._batches, strict=True))
        return answers, classes, self._count


def _log_odds(logits: Tensor) -> Tensor:
    """The log-odds [N, C] of exclusive classes. Outputs that are probabilities already stay unchanged.

    Computed in double precision and rounded, so that equal probabilities stay ties whatever the order of summation.
    """
    total = logits.sum(1)
    if (logits >= 0).all() and torch.allclose(total, torch.ones_like(total), atol=1e-3):
        return logits
    log_probabilities = logits.double().log_softmax(1)
    return (log_probabilities - torch.log(-torch.expm1(log_probabilities))).round(decimals=9)


def _ranks(column: Tensor) -> Tensor:
    """The ranks of values [N], scaled to [0, 1]. Torchmetrics would apply a sigmoid to other values and create ties."""
    _, places = torch.unique(column, return_inverse=True)
    ranks: Tensor = places.double() / places.max().clamp(min=1)
    return ranks


def _like_labels(outputs: Tensor, labels: Tensor, label: str) -> Tensor:
    """The outputs, which must have the labels' shape, apart from sizes of one. Raises EvaluationError."""
    outputs = outputs.reshape(1) if outputs.ndim == 0 else outputs
    if len(outputs) != len(labels) or _without_ones(outputs) != _without_ones(labels):
        raise EvaluationError(
            f"{label} compares outputs and labels of one shape, got {list(outputs.shape)} and {list(labels.shape)}; "
            f"let the loader give labels like the outputs, {OWN}"
        )
    refuse_nan(outputs)
    return outputs.reshape(labels.shape)


def _without_ones(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape[1:] if size != 1]


def _functional() -> Any:
    return importlib.import_module("torchmetrics.functional.classification")
