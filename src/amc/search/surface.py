"""Policies that use the budget up: landing a wish for every group on the budget's surface.

Without a budget there is no surface; wishes then cover the whole range from dense to the least.

Reads costs only. Pure: no torch, no files.
"""

from collections.abc import Sequence

import numpy as np

from amc.search.problem import CostFunction, FloatArray, Problem

_GRID = 33  # shifts tried at once
_ROUNDS = 3  # the shift is found to 2 / 32**3
_SPREAD = 0.5  # largest distance of a group from the common level, of its range


class Surface:
    """The policies of a problem whose cost is at the limit of its tightest budget."""

    bounded: bool  # whether there is a budget

    def __init__(self, problem: Problem) -> None:
        self._sizes = problem.dense.astype(np.float64)
        self._least = problem.least.astype(np.float64)
        self._costs = [(problem.costs[b.metric], problem.limit(b)) for b in problem.budgets]
        self.bounded = bool(self._costs)
        self._cost = problem.costs[problem.metric]

    @property
    def least_fractions(self) -> FloatArray:
        """Smallest allowed keep fractions [groups]."""
        return self._least / self._sizes

    def land(self, fractions: FloatArray, *, cost: float | None = None) -> FloatArray:
        """Shift keep fractions [groups] by one common amount, so that the tightest budget is just met.

        The result stays within [least_fractions, 1]. Without a budget the fractions are only clipped; then a `cost`,
        in the unit of the problem's metric, may take the budget's place.
        """
        limits = self._costs if cost is None else [(self._cost, cost)]
        if not limits:
            return np.clip(fractions, self.least_fractions, 1.0)
        low, high = -1.0, 1.0
        for _ in range(_ROUNDS):
            shifts = np.linspace(low, high, _GRID)
            fits = self._fits(fractions + shifts[:, None], limits)
            best = int(np.flatnonzero(fits)[-1]) if fits.any() else 0
            low, high = shifts[best], shifts[min(best + 1, _GRID - 1)]
        return np.clip(fractions + low, self.least_fractions, 1.0)

    def uniform(self) -> FloatArray:
        """One common keep fraction for every group, as large as the budgets allow: [groups]."""
        return self.land(np.full(len(self._sizes), 0.5))

    def sample(self, generator: np.random.Generator) -> FloatArray:
        """Random keep fractions [groups], landed.

        Without a budget: a common level, and the groups spread around it by a random amount. Independent draws
        would all cost about the same, half-way between the ends.
        """
        least = self.least_fractions
        if self.bounded:
            return self.land(generator.uniform(least, 1.0))
        level, spread = generator.uniform(), generator.uniform(0.0, _SPREAD)
        position = level + spread * generator.uniform(-1.0, 1.0, len(least))
        return least + (1.0 - least) * np.clip(position, 0.0, 1.0)

    def ladder(self, wish: FloatArray, rungs: int) -> list[FloatArray]:
        """Keep fractions that fall from dense to the least: the wish [groups], shifted down by equal steps."""
        shifts = np.linspace(1.0 - wish.min(), self.least_fractions.min() - wish.max(), rungs)
        return [np.clip(wish + shift, self.least_fractions, 1.0) for shift in shifts]

    def _fits(self, fractions: FloatArray, limits: Sequence[tuple[CostFunction, float]]) -> np.ndarray:
        """Which rows [rows, groups] of wished fractions, clipped to what is allowed, hold every limit."""
        counts = np.rint(np.clip(fractions * self._sizes, self._least, self._sizes)).astype(np.int64)
        fits = np.ones(len(counts), dtype=bool)
        for cost, limit in limits:
            fits &= cost(counts) <= limit
        return fits
