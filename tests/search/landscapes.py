"""Scores with a known optimum: a policy's damage is a sum over single groups and over pairs of neighbours.

Not every landscape is kind to an additive model: neighbours interact, layers collapse below a width, groups must agree.
A score can be sampled on a number of images, as accuracies are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from amc.search.problem import Problem
from amc.search.statistics import Measured, PairedDrop
from tests.search.toys import SensitivityScore, chain_problem, residual_problem

FloatArray = npt.NDArray[np.float64]
GAINED = 0.25  # images that a pruned network gains, per image of net loss


@dataclass(frozen=True)
class Landscape:
    """The score of a policy: accuracy that falls exponentially with the damage, from `top` to `chance`."""

    problem: Problem
    single: tuple[FloatArray, ...]  # damage of each group, [choices]
    pairs: tuple[FloatArray, ...]  # damage of groups i and i + 1, [choices of i, choices of i + 1]
    top: float = 0.88
    chance: float = 0.1

    def __call__(self, policy: Sequence[int]) -> float:
        places = [place[keep] for place, keep in zip(self._places, policy, strict=True)]
        damage = sum(table[a] for table, a in zip(self.single, places, strict=True))
        damage += sum(table[a, b] for table, a, b in zip(self.pairs, places, places[1:], strict=False))
        return self.score_of(float(damage))

    def score_of(self, damage: float) -> float:
        return self.chance + (self.top - self.chance) * math.exp(-damage)

    @cached_property
    def _places(self) -> list[dict[int, int]]:
        """The index of every keep count among its group's choices."""
        return [{keep: place for place, keep in enumerate(d.choices)} for d in self.problem.decisions]


def additive(problem: Problem, score: SensitivityScore, _seed: int) -> Landscape:
    """The toy's own score: groups do not influence each other."""
    rows = zip(removed_of(problem), score.sensitivity, score.power, strict=True)
    single = tuple(weight * removed**power for removed, weight, power in rows)
    return Landscape(problem, single, no_pairs(problem))


def interacting(problem: Problem, score: SensitivityScore, seed: int) -> Landscape:
    """Half of the damage at half of the channels is due to neighbours that are both narrow."""
    draw, removed = np.random.default_rng([seed, 1]), removed_of(problem)
    weights = draw.lognormal(0.0, 1.2, len(removed) - 1)
    weights *= 0.125 / (0.25 * weights.sum())
    pairs = zip(weights, removed, removed[1:], strict=False)
    single = tuple(0.5 * table for table in additive(problem, score, seed).single)
    return Landscape(problem, single, tuple(weight * np.outer(a, b) for weight, a, b in pairs))


def collapsing(problem: Problem, score: SensitivityScore, seed: int) -> Landscape:
    """Half of the additive damage, and a jump below a width that differs between groups."""
    draw = np.random.default_rng([seed, 2])
    single = []
    for table, removed in zip(additive(problem, score, seed).single, removed_of(problem), strict=True):
        width, jump = draw.uniform(0.25, 0.55), draw.uniform(0.03, 0.15)
        single.append(0.5 * table + jump * (1.0 - removed < width))
    return Landscape(problem, tuple(single), no_pairs(problem))


def agreeing(problem: Problem, score: SensitivityScore, seed: int) -> Landscape:
    """Half of the additive damage, and groups 2i and 2i + 1 must keep the same fraction, or lose accuracy."""
    removed, pairs = removed_of(problem), list(no_pairs(problem))
    for i in range(0, len(removed) - 1, 2):
        pairs[i] = 2.0 / len(removed) * np.abs(removed[i][:, None] - removed[i + 1])
    return Landscape(problem, tuple(0.5 * table for table in additive(problem, score, seed).single), tuple(pairs))


def removed_of(problem: Problem) -> list[FloatArray]:
    """The share of each group that its choices remove, [choices]."""
    return [1.0 - np.array(d.choices) / d.size for d in problem.decisions]


def no_pairs(problem: Problem) -> tuple[FloatArray, ...]:
    sizes = [len(d.choices) for d in problem.decisions]
    return tuple(np.zeros(shape) for shape in itertools.pairwise(sizes))


@dataclass(frozen=True)
class Sampled:
    """A landscape's score as measured on some images: the same policy always has the same score.

    The images are independent of each other, and so are the answers of two policies. Each image that the dense network
    has right is lost, and each other one gained, with the probability that gives the true difference.
    """

    landscape: Landscape
    images: int
    seed: int

    @cached_property
    def dense(self) -> float:
        """The dense network's score on these images."""
        return np.random.default_rng(self.seed).binomial(self.images, self.landscape.top) / self.images

    def __call__(self, policy: Sequence[int]) -> Measured:
        """The score, with the standard error of its difference from `dense`."""
        drop = self.landscape.top - self.landscape(policy)
        gained = GAINED * drop
        draw = np.random.default_rng([self.seed, *policy])
        losses, gains, _ = draw.multinomial(self.images, [drop + gained, gained, 1.0 - drop - 2 * gained]).tolist()
        paired = PairedDrop(self.images, losses, gains)
        return Measured(self.dense - paired.drop, paired.standard_error)


Maker = Callable[[int], Landscape]  # from a seed

TOYS: dict[str, Maker] = {
    "additive, residual, 9": lambda seed: additive(*residual_problem(9, seed=seed), seed),
    "additive, chain, 14": lambda seed: additive(*chain_problem(14, seed=seed), seed),
    "additive, residual, 27": lambda seed: additive(*residual_problem(27, seed=seed), seed),
    "interacting, chain, 14": lambda seed: interacting(*chain_problem(14, seed=seed), seed),
    "collapsing, residual, 18": lambda seed: collapsing(*residual_problem(18, seed=seed), seed),
    "agreeing, residual, 18": lambda seed: agreeing(*residual_problem(18, seed=seed), seed),
}  # by name: kind, shape, groups
