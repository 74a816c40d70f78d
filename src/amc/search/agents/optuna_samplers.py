"""Samplers of Optuna: a tree-structured Parzen estimator and a Gaussian process.

They propose keep fractions, which are projected onto the budget's surface before they are scored. Pure: no files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import numpy as np

from amc.run.settings import check_rules, convert_types_
from amc.search.agents.base import PlannedAgent, SearchTask, Setting
from amc.search.agents.ddpg import one_thread
from amc.search.agents.extras import require
from amc.search.environment import Rollout
from amc.search.journal import EpisodeRecord
from amc.search.problem import FloatArray

SAMPLERS = {"optuna-tpe": "TPESampler", "optuna-gp": "GPSampler"}
_NOISE = 0.02  # standard deviation of the first repeated attempt, in keep fractions
_NOISE_GROWTH = 1.5  # with each attempt


@dataclass(frozen=True, slots=True)
class OptunaConfig:
    """Settings of the agent."""

    startup_episodes: int = 10  # random episodes before the sampler learns; Optuna's default

    def __post_init__(self) -> None:
        convert_types_(self, "Optuna: ")
        check_rules(self, {"startup_episodes": (self.startup_episodes >= 1, "at least 1")}, "Optuna: ")


class OptunaAgent(PlannedAgent):
    """Each group's keep fraction is a parameter of a study.

    The study learns from executed policies, not from requested ones: the projection moves every fraction. The first
    policy is `Surface.start`. If a policy was scored before, noise moves the proposal.
    """

    max_episodes = None

    def __init__(self, task: SearchTask, config: OptunaConfig, *, name: str) -> None:
        """`name`: a key of `SAMPLERS`."""
        super().__init__(task.problem)
        self.name = name
        self._config, self._sizes = config, task.problem.dense
        self._optuna = optuna = require("optuna", name)
        self._generator = np.random.default_rng(task.seed)
        seed = int(self._generator.integers(2**32))  # Optuna's seeds are smaller than ours
        sampler = getattr(optuna.samplers, SAMPLERS[name])(seed=seed, n_startup_trials=config.startup_episodes)
        with _quiet(optuna):
            self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._space = {
            decision.name: optuna.distributions.FloatDistribution(least, 1.0)
            for decision, least in zip(task.problem.decisions, self.surface.least_fractions.tolist(), strict=True)
        }
        self._proposal: FloatArray = self.surface.start()

    def settings(self) -> dict[str, Setting]:
        """The settings."""
        return asdict(self._config)

    def begin_episode(self, episode: int, attempt: int) -> None:
        """Plan the sampler's proposal."""
        fractions = self._proposal
        if attempt > 0:
            fractions = fractions + self._generator.normal(0.0, _NOISE * _NOISE_GROWTH**attempt, len(fractions))
        elif episode > 0:
            fractions = self._proposal = self._ask()
        self.plan = (1.0 - self.surface.project(fractions)).tolist()

    def end_episode(self, rollout: Rollout, record: EpisodeRecord) -> None:
        """Add the executed policy to the study. Skips a failed episode."""
        if record.reward is not None:
            fractions = dict(zip(self._space, (np.array(record.keep) / self._sizes).tolist(), strict=True))
            self._study.add_trial(
                self._optuna.trial.create_trial(params=fractions, distributions=self._space, value=record.reward)
            )

    def _ask(self) -> FloatArray:
        """Keep fractions [groups] from the sampler. The trial itself fails: `end_episode` adds what was executed."""
        with one_thread(), _quiet(self._optuna):
            trial = self._study.ask(self._space)
        self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        params: dict[str, Any] = trial.params
        return np.array([params[name] for name in self._space])


@contextlib.contextmanager
def _quiet(optuna: ModuleType) -> Iterator[None]:
    """Without Optuna's lines about new studies and about packages that would make it faster."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
