"""CMA-ES, the evolution strategy with a learnt covariance (Hansen, arXiv 1604.00772), by the package `cma`.

Its points are keep fractions, each projected onto the budget's surface before it is scored. Pure: no torch, no files.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from amc.run.settings import check_rules, convert_types_
from amc.search.agents.base import PlannedAgent, SearchTask, Setting
from amc.search.agents.exploring import ATTEMPT_GROWTH
from amc.search.agents.extras import require
from amc.search.environment import Rollout
from amc.search.journal import EpisodeRecord
from amc.search.problem import FloatArray

_NAMED = "agent 'cma': "  # begins the errors
_MARGIN = 0.05  # distance of the first mean from the ends of a group's range


@dataclass(frozen=True, slots=True)
class CMAConfig:
    """Settings of the agent."""

    sigma: float = 0.25  # initial standard deviation, as a share of a group's range of keep fractions
    population: int | None = None  # policies of a generation; None: 4 + 3 ln(groups), the package's default

    def __post_init__(self) -> None:
        convert_types_(self, _NAMED)
        rules = {
            "sigma": (0 < self.sigma <= 1, "above 0 and at most 1"),
            "population": (self.population is None or 3 <= self.population <= 1000, "in [3, 1000]"),
        }
        check_rules(self, rules, _NAMED)


class CMAAgent(PlannedAgent):
    """Asks the strategy for a generation, and tells it the rewards once every policy of it is scored.

    The first policy is `Surface.start`; the strategy does not learn from it. A failed policy counts as the worst one so
    far. If a policy was scored before, another is drawn from the same distribution, somewhat wider.
    """

    name = "cma"
    max_episodes = None

    def __init__(self, task: SearchTask, config: CMAConfig) -> None:
        super().__init__(task.problem)
        cma = require("cma", self.name)
        self._config = config
        self._least = self.surface.least_fractions
        generator = np.random.default_rng(task.seed)
        options: dict[str, Any] = {
            "bounds": [0.0, 1.0],
            "randn": lambda *shape: generator.standard_normal(shape),
            "seed": math.nan,  # leaves NumPy's global generator alone
            "verbose": -9,  # prints nothing
        }
        if config.population is not None:
            options["popsize"] = config.population
        self._strategy = cma.CMAEvolutionStrategy(self._mean(), config.sigma, options)
        self._waiting: list[FloatArray] = []  # points of the generation that are not scored yet
        self._points: dict[int, FloatArray] = {}  # in [0, 1], by episode that is not over; not of the start policy
        self._told: list[tuple[FloatArray, float | None]] = []  # scored points of the generation, with their rewards
        self._worst = math.inf  # reward so far

    def settings(self) -> dict[str, Setting]:
        """The settings."""
        return asdict(self._config)

    def begin_episode(self, episode: int, attempt: int) -> None:
        """Plan the next policy of the generation."""
        if episode == 0 and attempt == 0:
            self.plan = (1.0 - self.surface.start()).tolist()
            return
        if attempt > 0:
            point = self._strategy.ask(1, sigma_fac=ATTEMPT_GROWTH**attempt)[0]
        else:
            self._waiting = self._waiting or list(self._strategy.ask())
            point = self._waiting.pop(0)
        self._points[episode] = point
        fractions = self._least + (1.0 - self._least) * point[: len(self._least)]
        self.plan = (1.0 - self.surface.project(fractions)).tolist()

    def end_episode(self, rollout: Rollout, record: EpisodeRecord) -> None:
        """Remember the reward; at the end of a generation, tell all of them to the strategy."""
        if record.reward is not None:
            self._worst = min(self._worst, record.reward)
        point = self._points.pop(record.episode, None)
        if point is None:
            return
        self._told.append((point, record.reward))
        if len(self._told) == self._strategy.popsize:
            worst = self._worst if math.isfinite(self._worst) else 0.0
            losses = [-(worst if reward is None else reward) for _, reward in self._told]
            self._strategy.tell([point for point, _ in self._told], losses)
            self._told = []

    def _mean(self) -> FloatArray:
        """The first mean, in [0, 1]: the uniform policy; without a budget, the middle of the range.

        [groups], but at least two numbers: the package needs two dimensions. An excess number means nothing.
        """
        mean = np.full(max(2, len(self._least)), 0.5)
        if self.surface.bounded:
            ranges = np.maximum(1.0 - self._least, 1e-9)  # a group with a single choice has none
            mean[: len(self._least)] = (self.surface.start() - self._least) / ranges
        clipped: FloatArray = np.clip(mean, _MARGIN, 1.0 - _MARGIN)
        return clipped
