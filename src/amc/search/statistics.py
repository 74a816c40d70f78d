"""Confidence bounds on the difference in accuracy of two networks on the same images.

Counts in, bounds out. Pure: no torch, no files. docs/accuracy.md explains their use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from amc.errors import AmcError, EvaluationError
from amc.run.settings import CONFIDENCE

if TYPE_CHECKING:
    import numpy.typing as npt

GUARD = 4  # images added to the discordant ones; without any, the bound is then at least the exact test's


class Measured(float):
    """A score with its uncertainty. It is a float otherwise.

    `standard_error`: one standard error of the score's difference from the dense network's score, in the score's
    unit. On the same images it is several times smaller than the standard error of the score itself.
    """

    __slots__ = ("standard_error",)
    standard_error: float

    def __new__(cls, score: float, standard_error: float) -> Measured:
        if not (math.isfinite(standard_error) and standard_error >= 0):
            raise EvaluationError(f"a standard error is {standard_error}; it must be finite and at least 0")
        measured = super().__new__(cls, score)
        measured.standard_error = float(standard_error)
        return measured

    def __getnewargs__(self) -> tuple[float, float]:  # type: ignore[override]  # for copy and pickle
        return float(self), self.standard_error

    def __repr__(self) -> str:
        return f"Measured({float(self)!r}, {self.standard_error!r})"


@dataclass(frozen=True, slots=True)
class PairedDrop:
    """A network's loss of accuracy against another on the same images (the counts of McNemar's test, 1947)."""

    images: int  # n
    lost: int  # b: right before, wrong after
    gained: int  # c: wrong before, right after

    def __post_init__(self) -> None:
        if self.images < 1 or min(self.lost, self.gained) < 0 or self.lost + self.gained > self.images:
            raise ValueError(f"{self.lost} lost and {self.gained} gained do not fit into {self.images} images")

    @property
    def drop(self) -> float:
        """Loss of accuracy (b - c) / n, in [-1, 1]; negative for a gain."""
        return (self.lost - self.gained) / self.images

    @property
    def standard_error(self) -> float:
        """sqrt(b + c - (b - c)^2 / n) / n with `GUARD` images added to b + c, in (0, 1].

        Without `GUARD`, the error of networks without discordant images would be 0, on ten images as on ten thousand.
        Two images are added to b and to c (Agresti and Min 2005 add half an image). Without discordant images, the
        one-sided bound is then 2 z / n; that of the exact test is -ln(1 - confidence) / n.
        """
        spread = self.lost + self.gained + GUARD - (self.lost - self.gained) ** 2 / self.images
        return math.sqrt(spread) / self.images

    def upper(self, confidence: float) -> float:
        """The one-sided upper bound of the drop."""
        return upper_bound(self.drop, self.standard_error, confidence)


def compare(before: npt.ArrayLike, now: npt.ArrayLike) -> PairedDrop:
    """The drop between two networks. The arguments, bool [N] each, mark the images that each has right."""
    import numpy as np  # here: the settings name `CONFIDENCE`, and the command line's help does not wait for NumPy

    first, second = np.asarray(before, dtype=bool), np.asarray(now, dtype=bool)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"answers must be [N] and [N], got {list(first.shape)} and {list(second.shape)}")
    return PairedDrop(len(first), int((first & ~second).sum()), int((~first & second).sum()))


def upper_bound(drop: float, standard_error: float | None, confidence: float) -> float:
    """drop + z * standard error, z the normal quantile of `confidence`, one-sided.

    Without a standard error (a user's score), the bound is the drop itself.
    """
    return drop if standard_error is None else drop + quantile(confidence) * standard_error


def least_bound(images: int, confidence: float) -> float:
    """The upper bound if no answer changed: the smallest drop that `images` images can confirm."""
    return PairedDrop(images, 0, 0).upper(confidence)


def quantile(confidence: float) -> float:
    """The normal quantile z of a one-sided confidence in [0.5, 1). Raises AmcError outside this range."""
    if not 0.5 <= confidence < 1:
        raise AmcError(f"confidence must be in [0.5, 1), got {confidence:g}; the default is {CONFIDENCE}")
    return NormalDist().inv_cdf(confidence)
