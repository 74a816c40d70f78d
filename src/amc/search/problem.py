"""A pruning problem in numbers: the allowed keep counts, the cost of each policy, and the budgets.

The search knows nothing else about the network. Pure: no torch, no files.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from amc.errors import BudgetError
from amc.search.budget import Budget, Metric

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LayerFeatures:
    """The layer that reads a group: kernel [n, c, k, k], input [c, h, w] (paper, section 3.1)."""

    n: int  # output channels
    c: int  # input channels
    h: int  # input height, pixels
    w: int  # input width, pixels
    stride: int
    k: int  # kernel size, pixels
    macs: int  # of the layer(s) that read the group, in the dense network


@dataclass(frozen=True, slots=True)
class Decision:
    """One step of the environment: how many units of one group to keep (channels, weights, rows, blocks …)."""

    name: str
    size: int  # units in the dense network
    choices: tuple[int, ...]  # allowed keep counts, ascending; the last is `size`
    layer: LayerFeatures

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.choices, self.choices[1:], strict=False))
        if not self.choices or not ascending or self.choices[0] < 1 or self.choices[-1] != self.size:
            raise ValueError(f"choices of {self.name!r} must ascend from at least 1 to {self.size}, got {self.choices}")


class CostFunction(Protocol):
    """Cost of a compressed network in closed form."""

    def __call__(self, keep_counts: IntArray, /) -> FloatArray:
        """Keep counts [..., groups] -> cost [...], non-decreasing in every keep count."""
        ...


@dataclass(frozen=True)
class Problem:
    """Everything that a search needs, except the score of a policy.

    A policy must meet every budget. Without a budget, every policy is feasible (the paper's accuracy-guaranteed
    protocol). The first budget's metric is the unit of the observation's features `reduced` and `rest`.
    """

    decisions: tuple[Decision, ...]  # in execution order
    costs: Mapping[Metric, CostFunction]  # the journal holds all of them; every budget's metric must be a key
    budgets: tuple[Budget, ...] = ()

    def __post_init__(self) -> None:
        if not self.decisions:
            raise BudgetError("there is nothing to prune: every channel of the network is locked; see amc inspect")
        names = [decision.name for decision in self.decisions]
        if len(set(names)) != len(names):
            raise ValueError(f"decisions must have distinct names, got {names}")
        if not self.costs:
            raise ValueError("a problem needs at least one cost function")
        for budget in self.budgets:
            self._check_reachable(budget)

    @property
    def dense(self) -> IntArray:
        """Keep counts [groups] of the dense network."""
        return np.array([decision.size for decision in self.decisions], dtype=np.int64)

    @property
    def least(self) -> IntArray:
        """Smallest allowed keep counts [groups]."""
        return np.array([decision.choices[0] for decision in self.decisions], dtype=np.int64)

    @property
    def metric(self) -> Metric:
        """The unit of `reduced` and `rest`: the first budget's metric, or the first cost's if none."""
        return self.budgets[0].metric if self.budgets else next(iter(self.costs))

    def cost(self, metric: Metric, keep_counts: Sequence[int] | IntArray) -> float:
        """Cost of one policy, keep counts [groups], in the metric's unit."""
        return float(self.costs[metric](np.asarray(keep_counts, dtype=np.int64)))

    def policy_costs(self, keep_counts: Sequence[int]) -> dict[str, float]:
        """Cost of one policy in every metric, by the metric's name."""
        return {str(metric): self.cost(metric, keep_counts) for metric in self.costs}

    def limit(self, budget: Budget) -> float:
        """A budget's limit in its metric's unit."""
        return budget.limit(self.cost(budget.metric, self.dense))

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with the decisions, the budgets or the costs' end points."""
        ends = {str(m): [self.cost(m, self.least), self.cost(m, self.dense)] for m in self.costs}
        rows = [[d.name, d.size, list(d.choices)] for d in self.decisions]
        text = json.dumps([rows, [str(budget) for budget in self.budgets], ends])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _check_reachable(self, budget: Budget) -> None:
        if budget.metric not in self.costs:
            known = ", ".join(self.costs)
            raise BudgetError(f"budget {budget}: {budget.metric} is not available for this network; use {known}")
        dense, least = self.cost(budget.metric, self.dense), self.cost(budget.metric, self.least)
        if least <= self.limit(budget):
            return
        percent = math.ceil(1000 * least / dense) / 10
        raise BudgetError(
            f"budget {budget} cannot be reached: even at the largest sparsity of every group "
            f"{percent:g}% of the {budget.metric} remain ({least:.0f} of {dense:.0f}); "
            f"raise the budget to {percent:g}% or more"
        )
