"""Feasible actions under the budgets.

Reads costs, returns the keep counts the agent may choose from. It takes the place of the paper's Algorithm 1,
for every metric and with channel rounding inside the feasible set, so that no later rounding can overshoot.
Pure: no torch, no files.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amc.search.problem import FloatArray, IntArray, Problem

LOOKAHEAD = 4096  # completions that are enumerated at the end of an episode
SURFACE_FLOOR = 0.98  # of the limit: a 50% budget is used up to at least 49%


class Bounds:
    """The feasible set of every step of an episode.

    Upper side (Algorithm 1): a keep count is offered only if every budget still holds with all later groups
    at their least. Costs are monotone, so this never overshoots and never refuses a count that some
    completion could rescue.

    Lower side ("surface"): a keep count is offered only if some budget can still be used up to `floor` of its
    limit with all later groups dense. The paper bounds from above only; a random episode at a 50% budget then
    lands near 30% and the agent learns far from where its answer lies.

    As soon as the remaining groups have at most `lookahead` completions these are enumerated and the set is
    exact: the episode ends in the window [floor * limit, limit] if any completion does, else as near below
    the limit as any completion comes.
    """

    def __init__(self, problem: Problem, *, floor: float | None = SURFACE_FLOOR, lookahead: int = LOOKAHEAD) -> None:
        """`floor` in (0, 1] of each limit; None switches the lower side off and leaves the paper's bound."""
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

        `decided` are the keep counts of all earlier groups, each taken from this method's own answer.
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
        """How much of each limit policies use: keep counts [..., groups] -> cost / limit [..., budgets]."""
        full: FloatArray = np.stack([cost(keep_counts) for cost in self._costs], axis=-1) / self._limits
        return full

    def _allowed_exactly(self, decided: Sequence[int]) -> IntArray:
        """As `allowed`, by pricing every completion."""
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
    """The allowed keep count nearest to the wanted one; the smaller of two equally near."""
    return int(allowed[np.argmin(np.abs(allowed - wanted))])
