"""An agent that plans in a model of the score, which it learns from every scored policy. Ours, not the paper's.

Before each episode it draws one set of damages that the scores so far allow (`ScoreModel`), and proposes the policy
with the least damage under the budget (`Planner`). Such draws explore where the model is uncertain (Thompson 1933);
towards the end of the search they narrow to the likeliest damages. Pure: no torch, no files.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import asdict, dataclass
from statistics import fmean, median

import numpy as np

from amc.errors import EvaluationError
from amc.run.settings import check_rules, convert_types_
from amc.search.agents.base import SearchTask, Setting
from amc.search.agents.modelling import ModelAgent
from amc.search.journal import EpisodeRecord
from amc.search.judging import rewarded
from amc.search.problem import FloatArray
from amc.search.rewards import Outcome
from amc.search.score_model import Damages, Posterior

FORESEEN = 8  # draws of the damages in the expected gain
RUNGS = 8  # costs that a plan without a budget is made for
STEP = 0.93  # between two costs near the best
_NAMED = "agent 'planner': "  # begins the errors
REPEATED = 0.3  # added to the temperature for each proposal that was already scored


@dataclass(frozen=True, slots=True)
class PlannerConfig:
    """How the agent explores."""

    warmup_episodes: int = 8  # random episodes before the model steers; earlier searches' records count
    temperature: float = 1.0  # of the draws; 1: as uncertain as the model is
    narrowing: float = 0.5  # the share of the search, at its end, over which the temperature falls to 0

    def __post_init__(self) -> None:
        convert_types_(self, _NAMED)
        rules = {
            "warmup_episodes": (self.warmup_episodes >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < math.inf, "at least 0 and finite"),
            "narrowing": (0 <= self.narrowing <= 1, "in [0, 1]"),
        }
        check_rules(self, rules, _NAMED)


class PlannerAgent(ModelAgent):
    """Plans in a model of the score."""

    name = "planner"
    max_episodes = None

    def __init__(self, task: SearchTask, config: PlannerConfig | None = None) -> None:
        self.config = config or PlannerConfig()
        super().__init__(task, self.config)

    def settings(self) -> dict[str, Setting]:
        """The settings, and how many records of earlier searches it began with."""
        return {**asdict(self.config), "earlier": self._earlier}

    def begin_episode(self, episode: int, attempt: int) -> None:
        """Plan an episode."""
        if episode == 0 and attempt == 0:
            fractions = self.surface.start()
        elif episode + self._earlier < self.config.warmup_episodes or not self._records:
            fractions = self.surface.sample(self._generator)
        else:
            keep = self._planned(self._temperature(episode) + REPEATED * attempt)
            fractions = np.array(keep) / self._task.problem.dense
        self.plan = (1.0 - fractions).tolist()

    def expected_gain(self) -> float:
        """How much more reward the best policy has than the best scored one: what the model expects, at least 0.

        The mean over draws of the damages, each with its own best policy. So it counts where the model is uncertain.
        Infinite as long as the search is in its warm-up.
        """
        if len(self.model) <= self.config.warmup_episodes or not self._records:
            return math.inf
        posterior, best = self._fitted(), self._most_expected()
        generator = np.random.default_rng(0)  # its own: what the agent proposes does not depend on this call
        draws = (posterior.sample(generator) for _ in range(FORESEEN))
        return fmean(self._gain(posterior, damages, best) for damages in draws)

    def _gain(self, posterior: Posterior, damages: Damages, best: EpisodeRecord) -> float:
        """How much more reward the best policy for these damages has than a scored one."""
        policies = [self._best_for(posterior, damages, best, known=()), best.keep]
        planned, scored = self._rewards(policies, posterior.score_of(self._planner.damage(damages, np.array(policies))))
        gain = planned - scored
        return max(0.0, gain) if math.isfinite(gain) else math.inf

    def _most_expected(self) -> EpisodeRecord:
        """The record of this search with the highest expected reward."""
        scores = self.estimates()
        rewards = self._rewards(list(scores), np.array(list(scores.values())))
        best = list(scores)[int(np.argmax(rewards))]
        return next(record for record in self._records if record.keep == best)

    def _temperature(self, episode: int) -> float:
        last = self._task.episodes - 1
        left = (last - self._schedule.reached(episode)) / max(1.0, self.config.narrowing * last)
        return self.config.temperature * min(1.0, max(0.0, left))

    def _planned(self, temperature: float) -> tuple[int, ...]:
        """The best policy for one draw of the damages."""
        posterior = self._fitted()
        damages = posterior.sample(self._generator, temperature)
        best = max(self._records, key=lambda record: (record.reward or 0.0, -record.episode))
        return self._best_for(posterior, damages, best, known=self._known)

    def _best_for(
        self, posterior: Posterior, damages: Damages, best: EpisodeRecord, *, known: Container[tuple[int, ...]]
    ) -> tuple[int, ...]:
        """The policy with the least damage within the budget that is not `known`; `best` so far is a start.

        Without a budget: the least damage at each of several costs, and of these the best expected reward.
        """
        if self.surface.bounded:
            return self._planner.plan(damages, [best.keep], known=known)
        problem = self._task.problem
        least, most = (problem.cost(problem.metric, keep) for keep in (problem.least, problem.dense))
        near = problem.cost(problem.metric, best.keep) * STEP ** np.arange(-2, 3)
        limits = np.unique(np.clip(np.concatenate([np.linspace(least, most, RUNGS), near]), least, most))
        plans = sorted({self._planner.within(float(limit)).plan(damages, known=known) for limit in limits})
        keep = np.array(plans)
        scores = posterior.score_of(self._planner.damage(damages, keep))
        return plans[int(np.argmax(self._rewards(plans, scores)))]

    def _rewards(self, plans: list[tuple[int, ...]], scores: FloatArray) -> list[float]:
        """The rewards of policies with these expected scores; minus infinity where the reward is not defined."""
        problem = self._task.problem
        dense = problem.policy_costs(problem.dense.tolist())
        known = [record.standard_error for record in self._records if record.standard_error is not None]
        error = median(known) if known else None

        def reward(keep: tuple[int, ...], score: float) -> float:
            try:
                return rewarded(self._task.reward, Outcome(score, problem.policy_costs(keep), dense, error))
            except EvaluationError:  # an expected score may lie where no score does
                return -math.inf

        return [reward(keep, score) for keep, score in zip(plans, scores.tolist(), strict=True)]
