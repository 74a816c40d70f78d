"""The named scores: their meaning, their direction and their spelling. Pure: no torch, no files."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from amc.errors import AmcError


@dataclass(frozen=True, slots=True)
class ScoreKind:
    """A named score. Within a search, higher is always better: an error is negated."""

    name: str
    label: str  # its name within a sentence
    other_names: tuple[str, ...] = ()
    per_image: bool = False  # True: each image is right or wrong, so that two networks can be compared per image
    is_error: bool = False  # True: lower is better
    is_share: bool = True  # whether the value lies in [0, 1], to be shown as a percentage
    of_boxes: bool = False  # True: outputs and labels are the boxes of each image, and no tensors of numbers
    needs_torchmetrics: bool = True

    def turned(self, value: float) -> float:
        """Convert the metric's own value to a score, or a score to the value."""
        return -value if self.is_error else value

    def named(self, score: float) -> float:
        """The score with its kind, for reports. Top-1 accuracy stays a float."""
        return score if self.name == DEFAULT else NamedScore(score, self)


class NamedScore(float):
    """A score with its kind, which decides its format. It is a float otherwise."""

    __slots__ = ("kind",)
    kind: ScoreKind

    def __new__(cls, score: float, kind: ScoreKind) -> NamedScore:
        named = super().__new__(cls, score)
        named.kind = kind
        return named

    @property
    def own(self) -> float | None:
        """The metric's own value if it is no share, such as an error or decibels; None for a share."""
        return None if self.kind.is_share else self.kind.turned(float(self)) + 0.0  # no -0.0


DEFAULT = "top1"
SCORES: Mapping[str, ScoreKind] = {
    kind.name: kind
    for kind in (
        ScoreKind(
            DEFAULT, "top-1 accuracy", ("accuracy", "acc", "acc1"), per_image=True, needs_torchmetrics=False
        ),
        ScoreKind("top5", "top-5 accuracy", ("acc5",), per_image=True, needs_torchmetrics=False),
        ScoreKind("balanced-accuracy", "balanced accuracy", ("balanced", "balanced-acc", "mean-recall")),
        ScoreKind("macro-f1", "macro F1", ("f1", "f1-macro", "f1-score")),
        ScoreKind("auroc", "AUROC", ("auc", "roc-auc")),
        ScoreKind("miou", "mean IoU", ("mean-iou", "iou", "jaccard")),
        ScoreKind("mse", "mean squared error", ("mean-squared-error", "l2"), is_error=True, is_share=False),
        ScoreKind("mae", "mean absolute error", ("mean-absolute-error", "l1"), is_error=True, is_share=False),
        ScoreKind("psnr", "PSNR in dB", ("peak-signal-to-noise-ratio",), is_share=False, needs_torchmetrics=False),
        ScoreKind("map", "mean average precision", ("mean-average-precision", "coco-map", "coco"), of_boxes=True),
    )
}  # fmt: skip
TOP1 = SCORES[DEFAULT]
_SPELLINGS = {
    "".join(filter(str.isalnum, name)): kind for kind in SCORES.values() for name in (kind.name, *kind.other_names)
}


def get_score(name: str) -> ScoreKind:
    """The score of that name in any spelling, such as `top-5`, `Top5` or `macro_f1`. Raises AmcError."""
    spelling = "".join(filter(str.isalnum, name.lower()))
    if spelling in _SPELLINGS:
        return _SPELLINGS[spelling]
    close = difflib.get_close_matches(spelling, _SPELLINGS, n=1)
    hint = f"did you mean {_SPELLINGS[close[0]].name}? " if close else ""
    raise AmcError(f"score {name!r} is unknown; {hint}known: {', '.join(SCORES)}")


def score_of_record(record: Mapping[str, object]) -> ScoreKind:
    """The score that a config.json or summary.json names; top-1 accuracy if the name is missing or unknown."""
    name = record.get("score")
    return SCORES.get(name, TOP1) if isinstance(name, str) else TOP1
