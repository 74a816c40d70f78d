"""Small problems that resemble pruning, with closed-form costs and scores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amc.search.budget import Metric, parse_budgets
from amc.search.journal import EpisodeRecord
from amc.search.problem import Decision, LayerFeatures, Problem


@dataclass(frozen=True)
class ProductCost:
    """Sum of coefficient * product of keep counts, as the costs of real networks are."""

    terms: tuple[tuple[float, tuple[int, ...]], ...]  # (coefficient, groups multiplied)

    def __call__(self, keep_counts: npt.NDArray[np.int64], /) -> npt.NDArray[np.float64]:
        keep = np.asarray(keep_counts, dtype=np.float64)
        padded = np.concatenate([keep, np.ones((*keep.shape[:-1], 1))], axis=-1)
        widest = max(len(groups) for _, groups in self.terms)
        indices = np.array([(*groups, *[-1] * (widest - len(groups))) for _, groups in self.terms]).T
        product = np.array([coefficient for coefficient, _ in self.terms])
        for column in indices:
            product = product * padded[..., column]
        return np.asarray(product.sum(axis=-1), dtype=np.float64)


@dataclass(frozen=True)
class SensitivityScore:
    """Accuracy that falls by s_i * (1 - f_i) ** p_i in every group, squashed into (chance, top)."""

    sizes: tuple[int, ...]
    sensitivity: tuple[float, ...]
    power: tuple[float, ...]
    top: float = 0.88
    chance: float = 0.1

    def __call__(self, policy: Sequence[int]) -> float:
        fractions = np.asarray(policy) / np.asarray(self.sizes)
        damage = float(np.sum(np.asarray(self.sensitivity) * (1 - fractions) ** np.asarray(self.power)))
        return self.chance + (self.top - self.chance) * math.exp(-damage)


def record_of(problem: Problem, keep: tuple[int, ...], score: float | None, episode: int = 0) -> EpisodeRecord:
    """What the loop tells an agent of a policy: with the reward r_err, or as failed."""
    error = "failed" if score is None else None
    return EpisodeRecord(episode, keep, problem.policy_costs(keep), score, None if score is None else score - 1, error)


def choices_of(size: int, count: int = 8) -> tuple[int, ...]:
    """Multiples of size / count from a fifth of the channels on."""
    step = max(1, size // count)
    return tuple(k for k in range(step, size + 1, step) if k >= 0.2 * size)


def residual_problem(blocks: int = 9, budget: str = "macs<=50%", seed: int = 0) -> tuple[Problem, SensitivityScore]:
    """Inner widths of residual blocks: cost is a sum of c_i * k_i, as in a CIFAR ResNet."""
    stage = [3 * i // blocks for i in range(blocks)]
    sizes = [16 * 2**s for s in stage]
    sides = [32 // 2**s for s in stage]
    decisions, macs, params = [], [(442_368.0, ())], [(1_000.0, ())]
    for i, (size, side) in enumerate(zip(sizes, sides, strict=True)):
        layer = LayerFeatures(n=size, c=size, h=side, w=side, stride=1, k=3, macs=2 * 9 * size * size * side * side)
        decisions.append(Decision(f"block{i}", size, choices_of(size), layer))
        macs.append((2.0 * 9 * size * side * side, (i,)))
        params.append((2.0 * 9 * size, (i,)))
    costs = {Metric.MACS: ProductCost(tuple(macs)), Metric.PARAMS: ProductCost(tuple(params))}
    return Problem(tuple(decisions), costs, parse_budgets(budget)), random_score(sizes, seed)


def chain_problem(layers: int = 14, budget: str = "macs<=50%", seed: int = 0) -> tuple[Problem, SensitivityScore]:
    """A chain of separable convolutions: products of neighbouring widths, as in MobileNet-V1."""
    sizes = [min(512, 32 * 2 ** (i // 2)) for i in range(layers)]
    sides = [max(4, 32 // 2 ** (i // 3)) for i in range(layers)]
    decisions, macs, params = [], [(27.0 * sides[0] ** 2, (0,))], [(27.0, (0,))]
    for i, (size, side) in enumerate(zip(sizes, sides, strict=True)):
        after = sizes[i + 1] if i + 1 < layers else 10
        layer = LayerFeatures(n=after, c=size, h=side, w=side, stride=1, k=1, macs=(9 + after) * size * side * side)
        decisions.append(Decision(f"conv{i}", size, choices_of(size, 16), layer))
        macs.append((9.0 * side * side, (i,)))
        params.append((9.0, (i,)))
        if i + 1 < layers:
            macs.append((1.0 * side * side, (i, i + 1)))
            params.append((1.0, (i, i + 1)))
    macs.append((10.0, (layers - 1,)))
    params.append((10.0, (layers - 1,)))
    costs = {Metric.MACS: ProductCost(tuple(macs)), Metric.PARAMS: ProductCost(tuple(params))}
    return Problem(tuple(decisions), costs, parse_budgets(budget)), random_score(sizes, seed)


def random_score(sizes: Sequence[int], seed: int) -> SensitivityScore:
    """Very unequal sensitivities (log-normal), total damage of about 0.25 when half of everything is kept."""
    generator = np.random.default_rng(seed)
    power = generator.uniform(1.5, 3.0, len(sizes))
    raw = generator.lognormal(0.0, 1.2, len(sizes))
    scale = 0.25 / float(np.sum(raw * 0.5**power))
    return SensitivityScore(tuple(sizes), tuple((raw * scale).tolist()), tuple(power.tolist()))
