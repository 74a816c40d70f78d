"""The policy with the least damage within the budget: a relaxation of the budget to a price, then exchanges.

Reads tables and costs. Costs are functions of whole policies, so that every metric and several budgets work. Pure: no
torch, no files.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable

import numpy as np

from amc.search.bounds import SURFACE_FLOOR
from amc.search.problem import BoolArray, FloatArray, IntArray, Problem
from amc.search.score_model import Damages

STEPS = 100  # exchanges of one plan at most
TRIED = 96  # pairs of moves whose cost is computed at each exchange, the best first
SLACK = 0.003  # share of the limit by which the sum of a pair's costs may exceed it, as that is not exact
JUMPS = np.array([1, 2, 3, 4, 6, 8, 12, 16, 32, 64])  # choices that a move skips, up or down
PRICES = np.geomspace(1e-4, 1e4, 65)  # of the budget, relative to the damage and the cost of all moves together
RELAXATIONS = 3  # prices are applied to what moves cost at the dense network, then at the plan so far
LEAST = 1e-12  # a smaller gain is none


class Planner:
    """Plans policies of one problem within its budgets."""

    def __init__(self, problem: Problem) -> None:
        self._problem, self._dense, self._least = problem, problem.dense, problem.least
        self._choices = [np.array(d.choices, dtype=np.int64) for d in problem.decisions]
        self._last = np.array([len(choices) - 1 for choices in self._choices])
        widest = int(self._last.max()) + 1
        self._keep = np.stack([np.pad(c, (0, widest - len(c)), mode="edge") for c in self._choices])
        self._places = np.zeros((len(self._choices), int(self._keep.max()) + 1), dtype=np.int64)  # of keep counts
        for places, choices in zip(self._places, self._choices, strict=True):
            places[choices] = np.arange(len(choices))
        self._limits = [(problem.costs[budget.metric], problem.limit(budget)) for budget in problem.budgets]

    def within(self, limit: float) -> Planner:
        """The same planner with one limit, in the unit of the problem's metric, in place of the budgets."""
        other = copy.copy(self)
        other._limits = [(self._problem.costs[self._problem.metric], limit)]
        return other

    def plan(
        self,
        damages: Damages,
        starts: Iterable[tuple[int, ...]] = (),
        *,
        known: Container[tuple[int, ...]] = (),
    ) -> tuple[int, ...]:
        """Keep counts [groups] with the least damage that is found within the limits.

        `starts`: policies within the limits that are improved too, such as the best so far. If the plan is one of the
        `known` policies, its best neighbour that is not takes its place, if there is one.
        """
        first = self._relaxed(damages)
        found = [self._exchanged(keep, damages) for keep in (first, *(np.array(start) for start in starts))]
        best = min(found, key=lambda keep: (float(self.damage(damages, keep)), tuple(keep)))
        return self._unknown(best, damages, known) if tuple(best.tolist()) in known else tuple(best.tolist())

    def damage(self, damages: Damages, keep: IntArray) -> FloatArray:
        """The damages [...] of policies [..., groups]."""
        index = self._places[np.arange(len(self._choices)), keep]
        return damages.of(index, 1 - keep / self._dense)

    def _relaxed(self, damages: Damages) -> IntArray:
        """Every group at its least sum of damage and priced cost, at the price that uses the limits best.

        Exact for damages and costs that add up; what moves cost is computed again at the plan.
        """
        keep, best, groups = self._dense, self._least, len(self._choices)
        for _ in range(RELAXATIONS):
            rows = np.tile(keep, (*self._keep.shape, 1))  # [groups, choices, groups]: one group changed
            rows[np.arange(groups), :, np.arange(groups)] = self._keep
            damage, cost = self.damage(damages, rows), self._shares(rows).sum(axis=-1)
            scale = (np.ptp(damage, axis=1).sum() + LEAST) / (np.ptp(cost, axis=1).sum() + LEAST)
            place = np.argmin(damage + (PRICES * scale)[:, None, None] * cost, axis=-1)  # [prices, groups]
            tried = self._keep[np.arange(groups), place]
            fits = np.concatenate([tried[self._fullness(tried) <= 1], best[None]])
            best = keep = fits[int(np.argmin(self.damage(damages, fits)))]
        return best

    def _exchanged(self, keep: IntArray, damages: Damages) -> IntArray:
        """One group changed, or one up and one down, while that lowers the damage within the limits."""
        value = float(self.damage(damages, keep))
        for _ in range(STEPS):
            tried, values = self._neighbours(keep, damages, at_most=value - LEAST)
            if not len(tried):
                break
            best = int(np.argmin(values))
            keep, value = tried[best], float(values[best])
        return keep

    def _unknown(self, keep: IntArray, damages: Damages, known: Container[tuple[int, ...]]) -> tuple[int, ...]:
        """The neighbour with the least damage that is not known; of those that use the limits, if there are some."""
        tried, values = self._neighbours(keep, damages, at_most=np.inf)
        wasteful = self._fullness(tried) < SURFACE_FLOOR
        for place in np.lexsort((values, wasteful)):
            neighbour = tuple(tried[place].tolist())
            if neighbour not in known:
                return neighbour
        return tuple(keep.tolist())

    def _neighbours(self, keep: IntArray, damages: Damages, *, at_most: float) -> tuple[IntArray, FloatArray]:
        """Policies within the limits, with one group changed or one up and one down: [rows, groups], and the damages.

        Of pairs the most promising, by the sum of their moves' damages. Without those of more damage than `at_most`.
        """
        now, full = float(self.damage(damages, keep)), float(self._fullness(keep))
        rows = self._moves(keep, damages)
        worse, dearer = self.damage(damages, rows) - now, self._fullness(rows) - full
        pairs = self._pairs(rows != keep, worse, dearer, 1 - full, at_most - now)
        tried = np.concatenate([rows, keep + (rows - keep)[pairs].sum(axis=1)])
        values = self.damage(damages, tried)
        good = (self._fullness(tried) <= 1) & (values <= at_most)
        return tried[good], values[good]

    def _moves(self, keep: IntArray, damages: Damages) -> IntArray:
        """The policy with one group changed, or with two neighbours that should agree: [moves, groups]."""
        places = self._places[np.arange(len(keep)), keep][:, None] + np.concatenate([-JUMPS, JUMPS])
        group, _ = np.nonzero(inside := (places >= 0) & (places <= self._last[:, None]))
        rows = np.tile(keep, (len(group), 1))
        rows[np.arange(len(group)), group] = self._keep[group, places[inside]]
        together = [self._together(rows[group == i], i, j) for i, j in self._tied(damages)]
        return np.concatenate([rows, *together])

    @staticmethod
    def _tied(damages: Damages) -> list[tuple[int, int]]:
        """Neighbours that should agree, in both orders."""
        left = np.flatnonzero(damages.apart > 0).tolist()
        return [pair for i in left for pair in ((i, i + 1), (i + 1, i))]

    def _together(self, rows: IntArray, first: int, second: int) -> IntArray:
        """Policies whose group `second` keeps the same share as their group `first`, or nearly."""
        shares = self._keep[second] / self._dense[second]
        nearest = np.abs(shares - rows[:, first, None] / self._dense[first]).argmin(axis=1)
        rows = rows.copy()
        rows[:, second] = self._keep[second, nearest]
        return rows

    @staticmethod
    def _pairs(changed: BoolArray, worse: FloatArray, dearer: FloatArray, room: float, most: float) -> IntArray:
        """Pairs of moves [pairs, 2], the best first: one that costs more, and one of other groups that saves."""
        up, down = np.flatnonzero(dearer > 0), np.flatnonzero(dearer < 0)
        total = worse[up][:, None] + worse[down]
        fits = dearer[up][:, None] + dearer[down] <= room + SLACK
        shared = changed[up].astype(np.float64) @ changed[down].T
        good = np.argwhere((total <= most) & fits & (shared == 0))
        order = np.argsort(total[good[:, 0], good[:, 1]], kind="stable")[:TRIED]
        return np.stack([up[good[order, 0]], down[good[order, 1]]], axis=1)

    def _fullness(self, keep: IntArray) -> FloatArray:
        """The largest share of a limit that policies [..., groups] use: [...]; above 1, a limit is exceeded."""
        return np.asarray(self._shares(keep).max(axis=-1))

    def _shares(self, keep: IntArray) -> FloatArray:
        """The share of every limit that policies [..., groups] use: [..., limits]."""
        return np.stack([cost(keep) / most for cost, most in self._limits], axis=-1)
