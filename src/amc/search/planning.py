"""The policy with the least damage within the budget: a descent from the dense network, then exchanges.

Reads tables and costs. Costs are functions of whole policies, so that every metric and several budgets work. Pure: no
torch, no files.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

import numpy as np

from amc.search.bounds import SURFACE_FLOOR
from amc.search.problem import FloatArray, IntArray, Problem
from amc.search.score_model import Damages

STEPS = 100  # exchanges of one plan at most
TRIED = 96  # pairs of moves whose cost is computed at each exchange, the best first
SLACK = 1.003  # pairs are tried up to this share of the limit by the sum of their moves' costs, which is not exact
LEAST = 1e-12  # a smaller gain is none


class Planner:
    """Plans policies of one problem; `limit`, in the unit of the problem's metric, replaces its budgets."""

    def __init__(self, problem: Problem, *, limit: float | None = None) -> None:
        self._dense, self._least = problem.dense, problem.least
        self._choices = [np.array(d.choices, dtype=np.int64) for d in problem.decisions]
        self._group = np.repeat(np.arange(len(self._choices)), [len(choices) for choices in self._choices])
        self._keep = np.concatenate(self._choices)
        self._places = np.zeros((len(self._choices), int(self._keep.max()) + 1), dtype=np.int64)  # of keep counts
        self._places[self._group, self._keep] = np.concatenate([np.arange(len(c)) for c in self._choices])
        limits = [(b.metric, problem.limit(b)) for b in problem.budgets] if limit is None else [(problem.metric, limit)]
        self._limits = [(problem.costs[metric], most) for metric, most in limits]

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
        first = self._descent(damages)
        found = [self._exchanged(keep, damages) for keep in (first, *(np.array(start) for start in starts))]
        best = min(found, key=lambda keep: (float(self.damage(damages, keep)), tuple(keep)))
        return self._unknown(best, damages, known) if tuple(best.tolist()) in known else tuple(best.tolist())

    def damage(self, damages: Damages, keep: IntArray) -> FloatArray:
        """The damages [...] of policies [..., groups]."""
        index = self._places[np.arange(len(self._choices)), keep]
        return damages.of(index, 1 - keep / self._dense)

    def _descent(self, damages: Damages) -> IntArray:
        """From the dense network, again and again the move that saves most for its damage, until the limits hold."""
        keep = self._dense
        full, now = float(self._fullness(keep)), float(self.damage(damages, keep))
        while full > 1:
            moves = self._keep < keep[self._group]
            rows = self._moved(keep, np.flatnonzero(moves))
            less = full - self._fullness(rows)
            worse = self.damage(damages, rows) - now
            saves = less > LEAST
            if not saves.any():  # the last moves free nothing by themselves
                return self._least
            rate = np.where(saves, worse / np.maximum(less, LEAST), np.inf)
            best = int(np.argmin(rate))
            keep, full, now = rows[best], full - float(less[best]), now + float(worse[best])
        return keep

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
        rows = self._moved(keep, np.arange(len(self._keep)))
        worse, dearer = self.damage(damages, rows) - now, self._fullness(rows) - full
        changed = self._keep != keep[self._group]
        tried = np.concatenate(
            [rows[changed & (full + dearer <= 1)], self._pairs(keep, worse, dearer, full, at_most - now)]
        )
        values = self.damage(damages, tried)
        return tried[values <= at_most], values[values <= at_most]

    def _pairs(self, keep: IntArray, worse: FloatArray, dearer: FloatArray, full: float, most: float) -> IntArray:
        """Policies [rows, groups] within the limits: one move that costs more, and one of another group that saves."""
        up, down = np.flatnonzero(dearer > 0), np.flatnonzero(dearer < 0)
        total = worse[up][:, None] + worse[down][None]
        fits = full + dearer[up][:, None] + dearer[down][None] <= SLACK
        good = np.argwhere((total <= most) & fits & (self._group[up][:, None] != self._group[down][None]))
        best = good[np.argsort(total[good[:, 0], good[:, 1]], kind="stable")[:TRIED]]
        rows = np.tile(keep, (len(best), 1))
        for moves in (up[best[:, 0]], down[best[:, 1]]):
            rows[np.arange(len(rows)), self._group[moves]] = self._keep[moves]
        return rows[self._fullness(rows) <= 1]

    def _moved(self, keep: IntArray, moves: IntArray) -> IntArray:
        """Policies [moves, groups]: each with one group changed."""
        rows = np.tile(keep, (len(moves), 1))
        rows[np.arange(len(moves)), self._group[moves]] = self._keep[moves]
        return rows

    def _fullness(self, keep: IntArray) -> FloatArray:
        """The largest share of a limit that policies [..., groups] use: [...]; above 1, a limit is exceeded."""
        return np.asarray(np.stack([cost(keep) / most for cost, most in self._limits], axis=-1).max(axis=-1))
