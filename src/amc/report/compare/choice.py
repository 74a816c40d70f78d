"""Which network to take: the Pareto front, and the choice by one rule. Numbers in, labels out. Pure: no files.

The rule is the one-standard-error rule of Breiman et al. (Classification and Regression Trees, 1984): the cheapest of
the networks whose score is within one standard error of the best. The standard error is that of the difference from the
best on the same images. It covers the luck of the images, and not that of the search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from amc.search.statistics import PairedDrop


@dataclass(frozen=True, slots=True)
class Answers:
    """What the networks answer, image by image, in counts."""

    images: int
    unseen: bool | None  # whether no search has scored these images; None: they are other data than the searches had
    scores: Mapping[str, float]  # by label: accuracy in [0, 1]
    dense: Mapping[str, tuple[float, PairedDrop]]  # by label: the dense network's accuracy, and the loss; or empty
    pairs: Mapping[tuple[str, str], PairedDrop]  # by two labels: the loss of the second against the first

    @property
    def which(self) -> str:
        """The images in words: "400 images that no search scored"."""
        words = {True: "that no search scored", False: "of the search split, on which the searches chose"}
        return f"{self.images:,} images {words.get(self.unseen, 'given for the comparison')}"  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Choice:
    """The network to take, by label."""

    taken: str
    best: str  # with the highest score
    equals: tuple[str, ...]  # within one standard error of the best, and the best itself; in the order given


def front(points: Sequence[tuple[str, float, float]]) -> tuple[str, ...]:
    """The labels of the points (label, cost, score) of which none is both cheaper and better; the cheapest first.

    A point that costs and scores the same as an earlier one is left out.
    """
    labels, highest = [], float("-inf")
    for label, _, score in sorted(points, key=lambda point: (point[1], -point[2])):
        if score > highest:
            labels.append(label)
            highest = score
    return tuple(labels)


def choose(scores: Mapping[str, float], costs: Mapping[str, float], answers: Answers | None) -> Choice:
    """The cheapest of the networks within one standard error of the best; without answers, the best.

    Of equal costs the higher score decides, and then the order. All labels of `costs` have a score.
    """
    known = [label for label in scores if label in costs]
    best = max(known, key=lambda label: scores[label])
    equals = tuple(label for label in known if label == best or _equal(answers, best, label, scores))
    taken = min(equals, key=lambda label: (costs[label], -scores[label]))
    return Choice(taken, best, equals)


def _equal(answers: Answers | None, best: str, label: str, scores: Mapping[str, float]) -> bool:
    if answers is None:
        return scores[label] == scores[best]
    pair = answers.pairs[best, label]
    return pair.drop <= pair.standard_error
