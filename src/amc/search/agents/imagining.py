"""The actor-critic, learning in a model of the score instead of from real scores alone. Ours, not the paper's.

Between two scored policies the actor plays many episodes: a transition needs costs only, and one draw of the damages
that the scores so far allow (`ScoreModel`) gives the reward. The best policy that it played is proposed. The model and
the draws are those of `planner`: the two differ in who plans.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from amc.errors import EvaluationError
from amc.run.settings import check_rules
from amc.search.agents.base import SearchTask, Setting
from amc.search.agents.ddpg import ActorCritic, PaperDDPGConfig
from amc.search.agents.exploring import truncated_normal
from amc.search.agents.modelling import ModelAgent
from amc.search.bounds import Bounds
from amc.search.environment import Observation, Rollout, roll_out
from amc.search.journal import EpisodeRecord
from amc.search.judging import rewarded
from amc.search.rewards import Outcome

LEAST_NOISE = 0.1  # of sigma, at the end of the search: the actor's mean alone would play one policy


@dataclass(frozen=True, slots=True)
class ImaginingConfig(PaperDDPGConfig):
    """The published hyperparameters, and how much is imagined."""

    warmup_episodes: int = 8  # random episodes before the actor acts
    imagined_episodes: int = 50  # between two scored policies
    updates_per_episode: int = 2  # gradient steps after each imagined episode
    narrowing: float = 0.5  # the share of the episodes, at the end, over which the draws narrow

    def __post_init__(self) -> None:
        PaperDDPGConfig.__post_init__(self)  # super() does not know a class with slots
        rules = {
            "imagined_episodes": (self.imagined_episodes >= 1, "at least 1"),
            "updates_per_episode": (self.updates_per_episode >= 0, "at least 0"),
            "narrowing": (0 <= self.narrowing <= 1, "in [0, 1]"),
        }
        check_rules(self, rules, "DDPG: ")

    @classmethod
    def for_episodes(cls, episodes: int, **options: object) -> ImaginingConfig:
        """The defaults, whatever the number of episodes."""
        return cls(**options)  # type: ignore[arg-type]


class ImaginingAgent(ModelAgent):
    """Plays episodes in its model of the score, and proposes the best of them."""

    name = "ddpg-model"
    max_episodes = None

    def __init__(self, task: SearchTask, config: ImaginingConfig) -> None:
        super().__init__(task, config)
        self.config, self._bounds = config, Bounds(task.problem)
        self._learner = ActorCritic(config, self._generator, seed=task.seed)
        self._learner.aim_at(float(1.0 - self.surface.uniform().mean()))

    def settings(self) -> dict[str, Setting]:
        """The hyperparameters, and how many records of earlier searches it began with."""
        return {**asdict(self.config), "earlier": self._earlier}

    def begin_episode(self, episode: int, attempt: int) -> None:
        """Plan an episode."""
        if episode == 0 and attempt == 0:
            fractions = self.surface.start()
        elif len(self.model) < self.config.warmup_episodes:
            fractions = self.surface.sample(self._generator)
        else:
            share = self._schedule.reached(episode) / max(1, self._task.episodes - 1)
            fractions = np.array(self._imagined(min(1.0, share))) / self._task.problem.dense
        self.plan = (1.0 - fractions).tolist()

    def end_episode(self, rollout: Rollout, record: EpisodeRecord) -> None:
        """Learn from the record, model and critic. A failed episode teaches nothing."""
        super().end_episode(rollout, record)
        if record.reward is not None:
            self._learner.store(rollout, record.reward)

    def _imagined(self, share: float) -> tuple[int, ...]:
        """The best policy of the imagined episodes that is not known yet. `share`: of the search that is over."""
        config, posterior, problem = self.config, self._fitted(), self._task.problem
        left = min(1.0, (1.0 - share) / max(1e-9, config.narrowing))
        damages = posterior.sample(self._generator, left)
        sigma = config.sigma * max(LEAST_NOISE, 1.0 - share)
        dense = problem.policy_costs(problem.dense.tolist())
        played: dict[tuple[int, ...], float] = {}

        def noisy(observation: Observation) -> float:
            return truncated_normal(self._generator, self._learner.mean_action(observation), sigma)

        for _ in range(config.imagined_episodes):
            rollout = roll_out(problem, self._bounds, noisy)
            keep = rollout.keep_counts
            score = float(posterior.score_of(self._planner.damage(damages, np.array(keep))))
            try:
                played[keep] = rewarded(self._task.reward, Outcome(score, problem.policy_costs(keep), dense))
            except EvaluationError:  # an imagined score may lie where the reward is not defined
                continue
            self._learner.store(rollout, played[keep])
            self._learner.learn(config.updates_per_episode)
        new = {keep: reward for keep, reward in played.items() if keep not in self._known} or played
        return max(new, key=new.__getitem__) if new else keep
