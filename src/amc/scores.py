"""The names of scores: what each measures, in which direction, and how it is written. Pure: no torch, no files."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from amc.errors import AmcError


@dataclass(frozen=True, slots=True)
class ScoreKind:
    """A score with a name. Inside a search higher is always better: an error counts with a minus."""

    name: str
    label: str  # inside a sentence
    other_names: tuple[str, ...] = ()
    per_image: bool = False  # every image is right or wrong, so that two networks can be compared image by image
    is_error: bool = False  # lower is better, and the value is no share
    needs_torchmetrics: bool = True

    def value(self, score: float) -> float:
        """The metric's own value of a score."""
        return -score if self.is_error else score


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
        ScoreKind("mse", "mean squared error", ("mean-squared-error", "l2"), is_error=True),
    )
}  # fmt: skip
TOP1 = SCORES[DEFAULT]
_SPELLINGS = {
    "".join(filter(str.isalnum, name)): kind for kind in SCORES.values() for name in (kind.name, *kind.other_names)
}


def get_score(name: str) -> ScoreKind:
    """The score of that name, however its words are joined: `top-5`, `Top5`, `macro_f1`. Raises AmcError."""
    spelling = "".join(filter(str.isalnum, name.lower()))
    if spelling in _SPELLINGS:
        return _SPELLINGS[spelling]
    close = difflib.get_close_matches(spelling, _SPELLINGS, n=1)
    hint = f"did you mean {_SPELLINGS[close[0]].name}? " if close else ""
    raise AmcError(f"score {name!r} is unknown; {hint}known: {', '.join(SCORES)}")


def is_score(name: object) -> bool:
    """Whether a run's file names a score that this version knows."""
    return isinstance(name, str) and name in SCORES
