"""How sure a difference of accuracy is, both networks judged on the same images.

Counts in, bounds out. Pure: no torch, no files. docs/accuracy.md explains what is made of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from amc.errors import AmcError, EvaluationError

if TYPE_CHECKING:
    import numpy.typing as npt

CONFIDENCE = 0.8  # default; docs/accuracy.md says why not 0.95
GUARD = 4  # images added to the discordant ones; at none, the bound is then that of the exact test or above


class Measured(float):
    """A score that knows its uncertainty; a plain float everywhere else.

    `standard_error`: one standard error of the score's difference from the dense network's score, in the score's
    unit. On the same images it is several times smaller than that of the score itself.
    """

    __slots__ = ("standard_error",)
    standard_error: float

    def __new__(cls, score: float, standard_error: float) -> Measured:
        if not (math.isfinite(standard_error) and standard_error >= 0):
            raise EvaluationError(f"a standard error is {standard_error}; it must be finite and at least 0")
        made = super().__new__(cls, score)
        made.standard_error = float(standard_error)
        return made

    def __getnewargs__(self) -> tuple[float, float]:  # type: ignore[override]  # for copies and other processes
        return float(self), self.standard_error

    def __repr__(self) -> str:
        return f"Measured({float(self)!r}, {self.standard_error!r})"


@dataclass(frozen=True, slots=True)
class PairedDrop:
    """What a network lost against another on the same images (the counts of McNemar's test, 1947)."""

    images: int  # n
    lost: int  # b: right before, wrong now
    gained: int  # c: wrong before, right now

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

        Without them, no discordant image would mean certainty, on ten images as on ten thousand. Two added to
        either side (Agresti and Min 2005 add half a one) make the one-sided bound at none 2 z / n, where the
        exact test's is -ln(1 - confidence) / n.
        """
        spread = self.lost + self.gained + GUARD - (self.lost - self.gained) ** 2 / self.images
        return math.sqrt(spread) / self.images

    def upper(self, confidence: float) -> float:
        """Upper bound of the drop, one-sided."""
        return upper_bound(self.drop, self.standard_error, confidence)


def compare(before: npt.ArrayLike, now: npt.ArrayLike) -> PairedDrop:
    """From what each network got right on the same images, bool [N] and bool [N] (tensors or arrays)."""
    import numpy as np  # here: the settings name `CONFIDENCE`, and the command line's help does not wait for NumPy

    first, second = np.asarray(before, dtype=bool), np.asarray(now, dtype=bool)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"answers must be [N] and [N], got {list(first.shape)} and {list(second.shape)}")
    return PairedDrop(len(first), int((first & ~second).sum()), int((~first & second).sum()))


def upper_bound(drop: float, standard_error: float | None, confidence: float) -> float:
    """drop + z * standard error, z the normal quantile of `confidence`, one-sided.

    No standard error, from a score of the user's own, means that the drop is taken as it is.
    """
    return drop if standard_error is None else drop + quantile(confidence) * standard_error


def least_bound(images: int, confidence: float) -> float:
    """The upper bound where not one answer changed: a smaller drop cannot be confirmed on that many images."""
    return PairedDrop(images, 0, 0).upper(confidence)


def quantile(confidence: float) -> float:
    """The z of a one-sided confidence in [0.5, 1). Raises AmcError for any other."""
    if not 0.5 <= confidence < 1:
        raise AmcError(f"confidence must be in [0.5, 1), got {confidence:g}; the default is {CONFIDENCE}")
    return NormalDist().inv_cdf(confidence)
