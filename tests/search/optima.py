"""The best policy of a landscape, exactly: dynamic programming along the groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tests.search.landscapes import Landscape
from tests.search.toys import ProductCost

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Front:
    """Partial policies of which none is both cheaper and better than another."""

    cost: FloatArray  # [policies], ascending
    damage: FloatArray  # [policies], descending

    def within(self, limit: float) -> Front:
        """Without the policies that cost more than `limit`, and without those that another one dominates."""
        order = np.lexsort((self.damage, self.cost))
        order = order[self.cost[order] <= limit]
        best = np.minimum.accumulate(self.damage[order])
        kept = order[np.concatenate([[True], best[1:] < best[:-1]])] if len(order) else order
        return Front(self.cost[kept], self.damage[kept])


def optimum(landscape: Landscape) -> float:
    """The highest score within the budget. The problem has one budget, whose cost ties neighbours only."""
    problem = landscape.problem
    (budget,) = problem.budgets
    limit = problem.limit(budget)
    fixed, single, pairs = tables(landscape)
    rest = [0.0]  # least cost of the last groups
    for i in reversed(range(len(single))):
        rest.insert(0, rest[0] + single[i].min() + (pairs[i].min() if i < len(pairs) else 0.0))
    fronts = [
        Front(np.array([fixed + cost]), np.array([damage]))
        for cost, damage in zip(single[0], landscape.single[0], strict=True)
    ]
    for i in range(1, len(single)):
        fronts = [
            Front(
                np.concatenate([front.cost + pairs[i - 1][a, b] + single[i][b] for a, front in enumerate(fronts)]),
                np.concatenate(
                    [
                        front.damage + landscape.pairs[i - 1][a, b] + landscape.single[i][b]
                        for a, front in enumerate(fronts)
                    ]
                ),
            ).within(limit - rest[i + 1])
            for b in range(len(single[i]))
        ]
    return landscape.score_of(min(float(front.damage[-1]) for front in fronts if len(front.damage)))


def tables(landscape: Landscape) -> tuple[float, list[FloatArray], list[FloatArray]]:
    """The budget's cost: a constant, of single groups [choices], of neighbours [choices, choices]."""
    problem = landscape.problem
    cost = problem.costs[problem.metric]
    assert isinstance(cost, ProductCost)
    choices = [np.array(d.choices, dtype=np.float64) for d in problem.decisions]
    fixed, single, pairs = 0.0, [np.zeros_like(c) for c in choices], [np.zeros_like(t) for t in landscape.pairs]
    for coefficient, groups in cost.terms:
        if not groups:
            fixed += coefficient
        elif len(groups) == 1:
            single[groups[0]] += coefficient * choices[groups[0]]
        else:
            first, second = groups
            assert second == first + 1, f"groups {groups} are no neighbours"
            pairs[first] += coefficient * np.outer(choices[first], choices[second])
    return fixed, single, pairs
