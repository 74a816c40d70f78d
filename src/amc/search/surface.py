"""Policies that use the budget up: landing a wish for every group on the budget's surface.

Reads costs only. Pure: no torch, no files.
"""

import numpy as np

from amc.search.problem import FloatArray, Problem

_GRID = 33  # shifts tried at once
_ROUNDS = 3  # the shift is found to 2 / 32**3


class Surface:
    """The policies of a problem whose cost is at the limit of its tightest budget."""

    def __init__(self, problem: Problem) -> None:
        self._sizes = problem.dense.astype(np.float64)
        self._least = problem.least.astype(np.float64)
        self._costs = [(problem.costs[b.metric], problem.limit(b)) for b in problem.budgets]

    @property
    def least_fractions(self) -> FloatArray:
        """Smallest allowed keep fractions [groups]."""
        return self._least / self._sizes

    def land(self, fractions: FloatArray) -> FloatArray:
        """Shift keep fractions [groups] by one common amount, so that the tightest budget is just met.

        The result stays within [least_fractions, 1]. Without a budget the fractions are only clipped.
        """
        if not self._costs:
            return np.clip(fractions, self.least_fractions, 1.0)
        low, high = -1.0, 1.0
        for _ in range(_ROUNDS):
            shifts = np.linspace(low, high, _GRID)
            fits = self._fits(fractions + shifts[:, None])
            best = int(np.flatnonzero(fits)[-1]) if fits.any() else 0
            low, high = shifts[best], shifts[min(best + 1, _GRID - 1)]
        return np.clip(fractions + low, self.least_fractions, 1.0)

    def uniform(self) -> FloatArray:
        """One common keep fraction for every group, as large as the budgets allow: [groups]."""
        return self.land(np.full(len(self._sizes), 0.5))

    def sample(self, generator: np.random.Generator) -> FloatArray:
        """Random keep fractions [groups], landed."""
        least = self.least_fractions
        return self.land(generator.uniform(least, 1.0))

    def _fits(self, fractions: FloatArray) -> np.ndarray:
        """Which rows [rows, groups] of wished fractions, clipped to what is allowed, hold every budget."""
        counts = np.rint(np.clip(fractions * self._sizes, self._least, self._sizes)).astype(np.int64)
        fits = np.ones(len(counts), dtype=bool)
        for cost, limit in self._costs:
            fits &= cost(counts) <= limit
        return fits
