"""What agents share that explore around the best policy so far.

Pure: no torch, no files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from amc.search.agents.base import PlannedAgent, SearchTask
from amc.search.agents.schedule import Schedule
from amc.search.environment import Rollout
from amc.search.journal import EpisodeRecord
from amc.search.problem import FloatArray, Problem
from amc.search.surface import Surface

# Without a budget, an episode near the best policy has a cost in this range, relative to the best policy's cost.
# Such an episode costs about the same, or slightly less.
STEP = (0.95, 1.01)
ATTEMPT_GROWTH = 1.3  # the noise grows with each attempt, so that an agent leaves the policies already scored


class BestSoFarAgent(PlannedAgent, ABC):
    """An agent that varies the best policy so far.

    The first policy is `Surface.start`. The other episodes of the warm-up draw random policies.
    """

    def __init__(self, task: SearchTask, *, warmup: int) -> None:
        """`warmup`: episodes before the first variation, in the `Schedule` of the search."""
        super().__init__(task.problem)
        self.problem = task.problem
        self.generator = np.random.default_rng(task.seed)
        self.warmup = warmup
        self._schedule = Schedule(task.episodes)
        self._best: tuple[float, tuple[int, ...]] | None = None  # reward and policy

    def begin_episode(self, episode: int, attempt: int) -> None:
        """Plan an episode."""
        reached = self._schedule.reached(episode)
        if episode == 0 and attempt == 0:
            fractions = self.surface.start()
        elif reached < self.warmup or self._best is None:
            fractions = self.surface.sample(self.generator)
        else:
            fractions = self.vary(self._best[1], reached, attempt)
        self.plan = (1.0 - fractions).tolist()

    @abstractmethod
    def vary(self, best: tuple[int, ...], reached: float, attempt: int) -> FloatArray:
        """Keep fractions [groups] of a variation of the best policy; `reached`: the point of the `Schedule`."""

    def end_episode(self, rollout: Rollout, record: EpisodeRecord) -> None:
        """Remember the best policy. Skips a failed episode."""
        self._schedule.note(record)
        if record.reward is not None and (self._best is None or record.reward > self._best[0]):
            self._best = (record.reward, rollout.keep_counts)


def perturbed(
    problem: Problem,
    surface: Surface,
    policy: tuple[int, ...],
    *,
    sigma: float,
    groups: float,
    generator: np.random.Generator,
) -> FloatArray:
    """Keep fractions [groups] near a policy, projected onto the surface.

    About the share `groups` of the groups, and at least one, gets truncated normal noise of standard deviation `sigma`.
    Without a budget, the cost is the policy's, times a factor in `STEP`.
    """
    cost = near_cost(problem, policy, generator) if not surface.bounded else None
    moved = generator.random(len(policy)) < groups
    moved[generator.integers(len(policy))] = True
    fractions = np.array(policy) / problem.dense
    fractions[moved] = [truncated_normal(generator, fraction, sigma) for fraction in fractions[moved]]
    return surface.project(fractions, cost=cost)


def near_cost(problem: Problem, policy: tuple[int, ...], generator: np.random.Generator) -> float:
    """A cost near a policy's, in the unit of the problem's metric: the limit of an episode without a budget."""
    return problem.cost(problem.metric, policy) * float(generator.uniform(*STEP))


def truncated_normal(generator: np.random.Generator, mean: float, sigma: float) -> float:
    """Normal noise around `mean`, truncated to [0, 1]."""
    while True:
        value = float(generator.normal(mean, sigma))
        if 0.0 <= value <= 1.0:
            return value


def warmup_of(episodes: int) -> int:
    """Warm-up of a search: a quarter of the episodes, but at most the paper's 100."""
    return min(100, max(1, episodes // 4))


def decay_of(episodes: int, warmup: int) -> float:
    """Factor of the noise per episode, with which the noise falls to a fifth between the warm-up and the end."""
    return float(0.2 ** (1 / max(1, episodes - warmup)))
