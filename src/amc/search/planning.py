"""The policy with the least damage within the budget: a descent from the dense network, then exchanges.

Reads tables and costs. Costs are functions of whole policies, so that every metric and several budgets work. Pure: no
torch, no files.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from amc.search.problem import FloatArray, IntArray, Problem
from amc.search.score_model import Damages

STEPS = 100  # exchanges of one plan at most
TRIED = 96  # pairs of moves whose cost is computed at each exchange, the best first
SLACK = 1.003  # pairs are tried up to this share of the limit by the sum of their moves' costs, which is not exact
LEAST = 1e-12  # a smaller gain is none


class Planner:
    """Plans policies of one problem; `limit`, in the unit of the problem's metric, replaces its budgets."""

    def __init__(self, problem: Problem, *, limit: float | None = None) -> None:
        self._problem = problem
        self._choices = [np.array(d.choices, dtype=np.int64) for d in problem.decisions]
        self._group = np.repeat(np.arange(len(self._choices)), [len(choices) for choices in self._choices])
        self._keep = np.concatenate(self._choices)
        self._place = np.concatenate([np.arange(len(choices)) for choices in self._choices])
        limits = [(b.metric, problem.limit(b)) for b in problem.budgets] if limit is None else [(problem.metric, limit)]
        self._limits = [(problem.costs[metric], most) for metric, most in limits]

    def plan(self, damages: Damages, starts: Iterable[tuple[int, ...]] = ()) -> tuple[int, ...]:
        """Keep counts [groups] with the least damage that is found within the limits.

        `starts`: policies within the limits that are improved too, such as the best so far.
        """
        first = self._descent(damages)
        found = [self._exchanged(keep, damages) for keep in (first, *(np.array(start) for start in starts))]
        best = min(found, key=lambda keep: (float(self.damage(damages, keep)), tuple(keep)))
        return tuple(best.tolist())

    def damage(self, damages: Damages, keep: IntArray) -> FloatArray:
        """The damages [...] of policies [..., groups]."""
        index = np.stack([np.searchsorted(c, keep[..., i]) for i, c in enumerate(self._choices)], axis=-1)
        return damages.of(index, 1 - keep / self._problem.dense)

    def _descent(self, damages: Damages) -> IntArray:
        """From the dense network, again and again the move that saves most for its damage, until the limits hold."""
        keep = self._problem.dense
        full = float(self._fullness(keep))
        while full > 1:
            moves = self._keep < keep[self._group]
            rows = self._moved(keep, np.flatnonzero(moves))
            less = full - self._fullness(rows)
            worse = self.damage(damages, rows) - self.damage(damages, keep)
            saves = less > LEAST
            if not saves.any():  # the last moves free nothing by themselves
                return self._problem.least
            rate = np.where(saves, worse / np.maximum(less, LEAST), np.inf)
            best = int(np.argmin(rate))
            keep, full = rows[best], full - float(less[best])
        return keep

    def _exchanged(self, keep: IntArray, damages: Damages) -> IntArray:
        """One group changed, or one up and one down, while that lowers the damage within the limits."""
        for _ in range(STEPS):
            rows = self._moved(keep, np.arange(len(self._keep)))
            full, now = self._fullness(rows), float(self._fullness(keep))
            gain = float(self.damage(damages, keep)) - self.damage(damages, rows)
            candidates = [rows[(full <= 1) & (gain > LEAST)], self._pairs(keep, gain, full - now, now)]
            tried = np.concatenate(candidates)
            if not len(tried):
                break
            value = self.damage(damages, tried)
            best = int(np.argmin(value))
            if float(self.damage(damages, keep)) - value[best] <= LEAST:
                break
            keep = tried[best]
        return keep

    def _pairs(self, keep: IntArray, gain: FloatArray, dearer: FloatArray, full: float) -> IntArray:
        """Policies [rows, groups] within the limits: one move that gains, and one of another group that saves."""
        up, down = np.flatnonzero(gain > LEAST), np.flatnonzero(dearer < 0)
        total = gain[up][:, None] + gain[down][None]
        fits = full + dearer[up][:, None] + dearer[down][None] <= SLACK
        good = np.argwhere((total > LEAST) & fits & (self._group[up][:, None] != self._group[down][None]))
        best = good[np.argsort(-total[good[:, 0], good[:, 1]], kind="stable")[:TRIED]]
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
