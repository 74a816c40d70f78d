"""Feasible actions under the budgets.

Reads costs, returns the keep counts the agent may choose from. It replaces the paper's Algorithm 1, works for every
metric and rounds channels within the feasible set. Thus no later rounding can exceed the budget.
Pure: no torch, no files.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amc.search.problem import FloatArray, IntArray, Problem

LOOKAHEAD = 4096  # largest number of completions that are enumerated at the end of an episode
SURFACE_FLOOR = 0.98  # share of the limit that a policy uses at least: 49% of the dense cost for a 50% budget


class Bounds:
    """The feasible set of every step of an episode.

    Upper bound (Algorithm 1): a keep count is allowed only if every budget holds when all later groups have their
    least keep counts. Costs are monotone. So no allowed count exceeds a budget, and no count is refused that
    some completion makes feasible.

    Lower bound ("surface"): a keep count is allowed only if the policy uses at least `floor` of some budget's limit
    when all later groups stay dense. The paper has the upper bound only. A random episode at a 50% budget
    then costs about 30%, and the agent learns far from the optimum.

    When the remaining groups have at most `lookahead` completions, all of them are enumerated and the set is exact.
    The episode's cost is then within [floor * limit, limit] if any completion's cost is. Otherwise it is the
    largest cost below the limit that any completion has.
    """

    def __init__(self, problem: Problem, *, floor: float | None = SURFACE_FLOOR, lookahead: int = LOOKAHEAD) -> None:
        """`floor` is a share of each limit, in (0, 1]. None removes the lower bound, as in the paper."""
        if floor is not None and not 0 < floor <= 1:
            raise ValueError(f"floor must be in (0, 1] or None, got {floor}")
        self.floor = floor if problem.budgets else None
        self._choices = [np.array(decision.choices, dtype=np.int64) for decision in problem.decisions]
        self._dense, self._least = problem.dense, problem.least
        self._costs = [problem.costs[budget.metric] for budget in problem.budgets]
        self._limits = np.array([problem.limit(budget) for budget in problem.budgets])
        sizes = [len(choices) for choices in self._choices]
        self._exact_from = next(
            t for t in range(len(sizes)) if t + 1 == len(sizes) or math.prod(sizes[t:]) <= lookahead
        )

    def allowed(self, decided: Sequence[int]) -> IntArray:
        """Keep counts, ascending and never empty, for the group that follows the `decided` ones.

        `decided` holds the keep counts of all earlier groups. Each was chosen from this method's result.
        """
        step = len(decided)
        if not self._costs:
            return self._choices[step]
        if self.floor is not None and step >= self._exact_from:
            return self._allowed_exactly(decided)
        choices = self._choices[step]
        fits = (self.fullness(self._completed(decided, choices[:, None], self._least)) <= 1).all(axis=-1)
        assert fits.any(), f"keep counts {list(decided)} are already over the budget"
        if self.floor is None:
            return choices[fits]
        full = self.fullness(self._completed(decided, choices[:, None], self._dense)).max(axis=-1)
        usable = fits & (full >= self.floor)
        return choices[usable] if usable.any() else choices[fits][-1:]

    def fullness(self, keep_counts: IntArray) -> FloatArray:
        """The share of each limit that policies use: keep counts [..., groups] -> cost / limit [..., budgets]."""
        full: FloatArray = np.stack([cost(keep_counts) for cost in self._costs], axis=-1) / self._limits
        return full

    def _allowed_exactly(self, decided: Sequence[int]) -> IntArray:
        """As `allowed`, but computes the cost of every completion."""
        assert self.floor is not None
        grids = np.meshgrid(*self._choices[len(decided) :], indexing="ij")
        completions = np.stack([grid.ravel() for grid in grids], axis=-1)
        full = self.fullness(self._completed(decided, completions, self._least))
        fits = (full <= 1).all(axis=-1)
        assert fits.any(), f"keep counts {list(decided)} are already over the budget"
        used = np.where(fits, full.max(axis=-1), -1.0)
        wanted = min(self.floor, float(used.max()))
        return np.unique(completions[used >= wanted, 0])

    def _completed(self, decided: Sequence[int], chosen: IntArray, rest: IntArray) -> IntArray:
        """Policies [rows, groups]: the decided counts, then the columns of `chosen`, then those of `rest`."""
        rows = np.tile(rest, (len(chosen), 1))
        rows[:, : len(decided)] = np.asarray(decided, dtype=np.int64)
        rows[:, len(decided) : len(decided) + chosen.shape[1]] = chosen
        return rows


def nearest_choice(allowed: npt.NDArray[np.int64], wanted: float) -> int:
    """The allowed keep count nearest to the wanted one; the smaller one if two are equally near."""
    return int(allowed[np.argmin(np.abs(allowed - wanted))])
