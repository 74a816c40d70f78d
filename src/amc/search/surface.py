"""Policies that use the whole budget: requested keep fractions are projected onto the budget's surface.

The surface is the set of policies whose cost equals the limit. A problem without a budget has no surface; its
policies range from the dense network to the smallest keep counts.

Reads costs only. Pure: no torch, no files.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amc.search.problem import CostFunction, FloatArray, IntArray, Problem

_GRID = 33  # shifts tried at once
_ROUNDS = 3  # rounds of refinement; the shift is accurate to 2 / 32**3
_EXACT = 1e-9  # a keep count that a fraction stands for is met in spite of the fraction's last digit
_SPREAD = 0.5  # largest distance of a group from the common level, as a share of the group's range


class Surface:
    """The policies of a problem whose cost is at the limit of its tightest budget."""

    bounded: bool  # True if the problem has a budget

    def __init__(self, problem: Problem) -> None:
        self._choices = [np.array(decision.choices, dtype=np.int64) for decision in problem.decisions]
        self._sizes = problem.dense.astype(np.float64)
        self._least = problem.least.astype(np.float64)
        self._costs = [(problem.costs[b.metric], problem.limit(b)) for b in problem.budgets]
        self.bounded = bool(self._costs)
        self._cost = problem.costs[problem.metric]

    @property
    def least_fractions(self) -> FloatArray:
        """Smallest allowed keep fractions [groups]."""
        return self._least / self._sizes

    def project(self, fractions: FloatArray, *, cost: float | None = None) -> FloatArray:
        """Shift requested keep fractions [groups] by one common amount until the tightest budget is just met.

        The result is clipped to [least_fractions, 1]. Without a budget the fractions are only clipped. A `cost`, in
        the unit of the problem's metric, replaces the budgets.
        """
        if not self._limits(cost):
            return np.clip(fractions, self.least_fractions, 1.0)
        low, high = -1.0, 1.0
        for _ in range(_ROUNDS):
            shifts = np.linspace(low, high, _GRID)
            requested = np.clip((fractions + shifts[:, None]) * self._sizes, self._least, self._sizes)
            fits = self.fits(np.rint(requested).astype(np.int64), cost=cost)
            best = int(np.flatnonzero(fits)[-1]) if fits.any() else 0
            low, high = shifts[best], shifts[min(best + 1, _GRID - 1)]
        return np.clip(fractions + low, self.least_fractions, 1.0)

    def nearest(self, fractions: FloatArray) -> FloatArray:
        """As `project`, but keep fractions [groups] that can be chosen exactly, each less than a step from those.

        Every group is rounded down; then those that lost most of a step are rounded up, as long as the budgets hold.
        Rounded one after the other instead, the last group would take what all others leave over, however small it is.
        """
        wanted = self.project(fractions) * self._sizes + _EXACT
        places = [
            int(np.searchsorted(each, want, side="right")) for each, want in zip(self._choices, wanted, strict=True)
        ]
        below = np.array([each[max(0, at - 1)] for each, at in zip(self._choices, places, strict=True)])
        above = np.array([each[min(at, len(each) - 1)] for each, at in zip(self._choices, places, strict=True)])
        missing = (wanted - below) / np.maximum(above - below, 1)
        keep = below
        for group in np.argsort(-missing, kind="stable"):
            raised = keep.copy()
            raised[group] = above[group]
            if self.fits(raised):
                keep = raised
        kept: FloatArray = keep / self._sizes
        return kept

    def start(self) -> FloatArray:
        """Keep fractions [groups] of the first policy of a search: the uniform policy.

        Without a budget, the dense network: it meets every limit on accuracy.
        """
        return self.uniform() if self.bounded else np.ones(len(self._sizes))

    def uniform(self) -> FloatArray:
        """One common keep fraction for every group, within a step, as large as the budgets allow: [groups]."""
        return self.nearest(np.full(len(self._sizes), 0.5))

    def sample(self, generator: np.random.Generator) -> FloatArray:
        """Random keep fractions [groups], projected onto the surface.

        Without a budget, a random common level is drawn and the groups are spread around it. Independent draws
        would all cost about the same: half-way between the least and the dense cost.
        """
        least = self.least_fractions
        if self.bounded:
            return self.project(generator.uniform(least, 1.0))
        level, spread = generator.uniform(), generator.uniform(0.0, _SPREAD)
        position = level + spread * generator.uniform(-1.0, 1.0, len(least))
        return least + (1.0 - least) * np.clip(position, 0.0, 1.0)

    def ladder(self, requested: FloatArray, rungs: int) -> list[FloatArray]:
        """Policies from dense to the least: the requested fractions [groups], shifted down by equal steps."""
        shifts = np.linspace(1.0 - requested.min(), self.least_fractions.min() - requested.max(), rungs)
        return [np.clip(requested + shift, self.least_fractions, 1.0) for shift in shifts]

    def fits(self, keep_counts: IntArray, *, cost: float | None = None) -> npt.NDArray[np.bool_]:
        """Whether policies meet every budget: keep counts [..., groups] -> mask [...]. `cost` as in `project`."""
        fits = np.ones(keep_counts.shape[:-1], dtype=bool)
        for function, limit in self._limits(cost):
            fits &= function(keep_counts) <= limit
        return fits

    def _limits(self, cost: float | None) -> Sequence[tuple[CostFunction, float]]:
        """The budgets, or the one limit `cost`."""
        return self._costs if cost is None else [(self._cost, cost)]
