"""Dynamic programming over a table of errors with searched weights, as in SPDY (arXiv 2201.13096).

The table has an error for every group and keep count, free of any scored policy. A policy that minimises the weighted
sum of its errors within the budget is found by dynamic programming. Which weights are best, only scores tell: they are
drawn at random, then changed around the best ones so far.

Two differences from SPDY. The costs of a policy are a black box here, so the programme adds up each group's share of
the cost and the budgets are then checked exactly. The weights' logarithms are drawn, so that a weight is never zero.

Pure: no torch, no files.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from amc.run.settings import check_rules, convert_types_
from amc.search.agents.base import PlannedAgent, SearchTask, Setting
from amc.search.agents.exploring import near_cost, warmup_of
from amc.search.agents.schedule import Schedule
from amc.search.environment import Rollout
from amc.search.journal import EpisodeRecord
from amc.search.problem import FloatArray, IntArray, Problem
from amc.search.surface import Surface

BINS = 1000  # resolution of the costs in the programme
LARGEST = 50.0  # absolute logarithm of a weight
_NOISE = 0.2  # on the logarithms of the errors, with each attempt at a new policy
_NAMED = "agent 'spdy': "  # begins the errors


@dataclass(frozen=True, slots=True)
class SPDYConfig:
    """Settings of the agent."""

    warmup_episodes: int = 100  # episodes with random weights
    spread: float = 1.0  # standard deviation of the weights' logarithms
    step: float = 0.5  # standard deviation of a change, in the same unit
    groups: float = 0.3  # share of the weights that an episode changes

    def __post_init__(self) -> None:
        convert_types_(self, _NAMED)
        rules = {
            "warmup_episodes": (self.warmup_episodes >= 1, "at least 1"),
            "spread": (0 < self.spread <= 10, "above 0 and at most 10"),
            "step": (0 < self.step <= 10, "above 0 and at most 10"),
            "groups": (0 < self.groups <= 1, "above 0 and at most 1"),
        }
        check_rules(self, rules, _NAMED)

    @classmethod
    def for_episodes(cls, episodes: int, **options: Any) -> Self:
        """The defaults for a search of that length, except `options`: a quarter is warm-up, at most 100 episodes."""
        return cls(**{"warmup_episodes": warmup_of(episodes), **options})


class SPDYAgent(PlannedAgent):
    """The first policy has equal weights. Without a budget the programme's limit is drawn as well."""

    name = "spdy"
    max_episodes = None

    def __init__(self, task: SearchTask, config: SPDYConfig) -> None:
        super().__init__(task.problem)
        self._config, self._problem = config, task.problem
        self._generator = np.random.default_rng(task.seed)
        self._schedule = Schedule(task.episodes)
        self._programme = Programme(task.problem, self.surface)
        self._errors = task.errors or tuple(
            (1.0 - np.array(decision.choices) / decision.size) ** 2 for decision in task.problem.decisions
        )
        self._logarithms: dict[int, FloatArray] = {}  # of the weights, by episode that is not over
        self._best: tuple[float, FloatArray, tuple[int, ...]] | None = None  # reward, logarithms, policy

    def settings(self) -> dict[str, Setting]:
        """The settings."""
        return asdict(self._config)

    def begin_episode(self, episode: int, attempt: int) -> None:
        """Plan the best policy for new weights."""
        logarithms = self._logarithms[episode] = self._weighted(episode)
        errors = [math.exp(w) * row for w, row in zip(logarithms.tolist(), self._errors, strict=True)]
        if attempt > 0:
            # Few policies are optimal for any weights, above all if the cost has plateaus: noise on every entry of
            # the table leads to policies that are nearly so.
            errors = [row * self._generator.lognormal(0.0, _NOISE * attempt, len(row)) for row in errors]
        keep = self._programme.solve(errors, cost=self._limit(episode))
        self.plan = (1.0 - keep / self._problem.dense).tolist()

    def end_episode(self, rollout: Rollout, record: EpisodeRecord) -> None:
        """Remember the best weights. Skips a failed episode."""
        self._schedule.note(record)
        logarithms = self._logarithms.pop(record.episode)
        if record.reward is not None and (self._best is None or record.reward > self._best[0]):
            self._best = (record.reward, logarithms, record.keep)

    def _weighted(self, episode: int) -> FloatArray:
        """Logarithms of the weights [groups]."""
        c, draw, groups = self._config, self._generator, len(self._errors)
        if episode == 0:
            return np.zeros(groups)
        if self._warming(episode) or self._best is None:
            return draw.normal(0.0, c.spread, groups)
        moved = draw.random(groups) < c.groups
        moved[draw.integers(groups)] = True
        logarithms = self._best[1].copy()
        logarithms[moved] += draw.normal(0.0, c.step, int(moved.sum()))
        return np.clip(logarithms, -LARGEST, LARGEST)

    def _warming(self, episode: int) -> bool:
        """Whether the warm-up is not over."""
        return self._schedule.reached(episode) < self._config.warmup_episodes

    def _limit(self, episode: int) -> float | None:
        """Without a budget: the largest cost of this episode's policy. First the dense one, later near the best."""
        if self.surface.bounded:
            return None
        problem = self._problem
        dense = problem.cost(problem.metric, problem.dense)
        if episode == 0:
            return dense
        if self._warming(episode) or self._best is None:
            return float(self._generator.uniform(problem.cost(problem.metric, problem.least), dense))
        return near_cost(problem, self._best[2], self._generator)


class Programme:
    """The keep counts with the least sum of errors within the limits.

    The programme needs a cost that is a sum over groups. It takes each group's marginal cost at the uniform policy, as
    a share of the limits, and solves for every such sum at once. Of these policies it returns the one with the least
    error that meets the limits exactly.
    """

    def __init__(self, problem: Problem, surface: Surface, *, bins: int = BINS) -> None:
        self._problem, self._surface = problem, surface
        self._choices = [np.array(decision.choices, dtype=np.int64) for decision in problem.decisions]
        shares = [self._marginal(group) for group in range(len(self._choices))]
        total = sum(float(share[-1]) for share in shares) or 1.0
        self._prices = [np.rint(share / total * bins).astype(np.int64) for share in shares]  # whole bins
        self._bins = sum(int(prices[-1]) for prices in self._prices)

    def solve(self, errors: list[FloatArray], *, cost: float | None = None) -> IntArray:
        """Keep counts [groups] for errors [choices] of each group; `cost` replaces the budgets (`Surface.project`)."""
        policies = np.vstack([self._policies(errors), self._problem.least])
        places = [np.searchsorted(choices, policies[:, i]) for i, choices in enumerate(self._choices)]
        damage = np.sum([row[place] for row, place in zip(errors, places, strict=True)], axis=0)
        damage[~self._surface.fits(policies, cost=cost)] = np.inf
        best: IntArray = policies[np.argmin(damage)]
        return best

    def _policies(self, errors: list[FloatArray]) -> IntArray:
        """The best policies for every sum of prices: keep counts [bins + 1, groups]."""
        budgets = np.arange(self._bins + 1)
        least = np.zeros(self._bins + 1)  # sum of errors of the best choices so far, for each budget
        chosen = []
        for prices, row in zip(self._prices, errors, strict=True):
            left = budgets - prices[:, None]
            sums = np.where(left >= 0, least[left], np.inf) + row[:, None]
            chosen.append(sums.argmin(axis=0))
            least = sums.min(axis=0)
        columns = []
        for choices, prices, choice in reversed(list(zip(self._choices, self._prices, chosen, strict=True))):
            columns.append(choices[choice[budgets]])
            budgets = budgets - prices[choice[budgets]]
        return np.stack(columns[::-1], axis=-1)

    def _marginal(self, group: int) -> FloatArray:
        """What each choice of a group costs beyond the least one, [choices], as a share summed over the limits."""
        problem, choices = self._problem, self._choices[group]
        reference = np.rint(self._surface.start() * problem.dense).astype(np.int64)
        policies = np.tile(reference, (len(choices), 1))
        policies[:, group] = choices
        limits = {budget.metric: problem.limit(budget) for budget in problem.budgets}
        limits = limits or {problem.metric: problem.cost(problem.metric, problem.dense)}
        total: FloatArray = np.sum([problem.costs[m](policies) / limit for m, limit in limits.items()], axis=0)
        return np.asarray(total - total[0])
