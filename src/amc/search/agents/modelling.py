"""What agents share that learn a model of the score. Pure: no torch, no files."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from amc.search.agents.base import PlannedAgent, SearchTask
from amc.search.agents.schedule import Schedule
from amc.search.environment import Rollout
from amc.search.journal import EpisodeRecord
from amc.search.planning import Planner
from amc.search.score_model import Posterior, ScoreModel


class ModelConfig(Protocol):
    """The setting that the model needs."""

    @property
    def warmup_episodes(self) -> int: ...


class ModelAgent(PlannedAgent):
    """An agent that learns a model of the score from every scored policy, of this search and of earlier ones."""

    def __init__(self, task: SearchTask, config: ModelConfig) -> None:
        super().__init__(task.problem)
        self._task, self._schedule = task, Schedule(task.episodes)
        self._warmup = config.warmup_episodes
        self._generator = np.random.default_rng(task.seed)
        self._planner = Planner(task.problem)
        self.model = ScoreModel(task.problem, dense_score=task.dense_score, errors=task.errors)
        for record in task.earlier:
            self.model.add(record)
        self._earlier = len(self.model)
        self._records: list[EpisodeRecord] = []
        self._known: set[tuple[int, ...]] = set()  # proposed in this search
        self._posterior: Posterior | None = None  # from all records so far

    def proposed(self, rollout: Rollout) -> None:
        """Remember the policy: it is not planned again."""
        self._known.add(rollout.keep_counts)

    def end_episode(self, rollout: Rollout, record: EpisodeRecord) -> None:
        """Learn from the record. A failed episode teaches nothing."""
        self._schedule.note(record)
        if record.score is not None:
            self.model.add(record)
            self._records.append(record)
            self._posterior = None

    def estimates(self) -> dict[tuple[int, ...], float]:
        """The expected score of every scored policy of this search: less noisy than the score itself.

        Empty as long as the search is in its warm-up: a model of so few records knows no better.
        """
        if len(self.model) <= self._warmup:
            return {}
        own = {record.keep for record in self._records}
        return {record.keep: score for record, score, _ in self._fitted().expected() if record.keep in own}

    def _fitted(self) -> Posterior:
        if self._posterior is None:
            self._posterior = self.model.fit()
        return self._posterior
