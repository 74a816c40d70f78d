"""The interface of an agent, and the baselines that every result is compared with: random and fixed policies.

Pure: no torch, no files.
"""

from typing import Protocol

import numpy as np

from amc.search.environment import Observation, Rollout
from amc.search.problem import FloatArray, Problem
from amc.search.surface import Surface

RUNGS = 20  # policies that a fixed baseline offers when no budget selects one

Setting = bool | int | float | str | None


class Agent(Protocol):
    """An agent proposes policies and learns from their rewards.

    For each episode the loop calls `begin_episode`, then `act` once per group, then `end_episode`. If the policy was
    already scored, the loop repeats the episode with the next `attempt`. An agent's actions depend only on its
    constructor's arguments and on these calls. This makes a search resumable.
    """

    name: str

    @property
    def max_episodes(self) -> int | None:
        """The number of distinct policies that the agent can propose; None if unlimited."""
        ...

    def settings(self) -> dict[str, Setting]:
        """The agent's settings, for the journal's header."""
        ...

    def begin_episode(self, episode: int, attempt: int) -> None:
        """Prepare for an episode, counted from 0."""
        ...

    def act(self, observation: Observation) -> float:
        """The requested sparsity of the next group, in [0, 1], from the observation [11]."""
        ...

    def end_episode(self, rollout: Rollout, reward: float | None) -> None:
        """Learn from the executed episode. A failed episode has no reward."""
        ...


class _PlannedAgent:
    """An agent that chooses the sparsities of all groups before the episode begins."""

    def __init__(self, problem: Problem) -> None:
        self._surface = Surface(problem)
        self._plan: list[float] = []

    def act(self, observation: Observation) -> float:
        """The next sparsity of the plan. Ignores the observation."""
        return self._plan.pop(0)

    def end_episode(self, rollout: Rollout, reward: float | None) -> None:
        """Do nothing: a planned agent does not learn."""


class RandomAgent(_PlannedAgent):
    """Random policies on the budget's surface: the same distribution as the warm-up of the DDPG agent."""

    name = "random"
    max_episodes = None

    def __init__(self, problem: Problem, *, seed: int) -> None:
        super().__init__(problem)
        self._generator = np.random.default_rng(seed)
        self._seed = seed

    def settings(self) -> dict[str, Setting]:
        """The seed."""
        return {"seed": self._seed}

    def begin_episode(self, episode: int, attempt: int) -> None:
        """Draw a policy."""
        self._plan = (1.0 - self._surface.sample(self._generator)).tolist()


class _LadderAgent(_PlannedAgent):
    """Fixed keep fractions, projected onto the budget; without a budget, at `RUNGS` levels from dense to least."""

    def __init__(self, problem: Problem, requested: FloatArray) -> None:
        super().__init__(problem)
        bounded = self._surface.bounded
        self._policies = [self._surface.project(requested)] if bounded else self._surface.ladder(requested, RUNGS)

    @property
    def max_episodes(self) -> int:
        """One policy with a budget, `RUNGS` without."""
        return len(self._policies)

    def settings(self) -> dict[str, Setting]:
        """Empty: the agent has no settings."""
        return {}

    def begin_episode(self, episode: int, attempt: int) -> None:
        """Plan the next policy. The environment rounds it to feasible keep counts."""
        self._plan = (1.0 - self._policies[episode]).tolist()


class UniformAgent(_LadderAgent):
    """The same keep fraction in every group, as large as the budget allows; without a budget, at `RUNGS` levels."""

    name = "uniform"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, np.full(len(problem.decisions), 0.5))


class RampAgent(_LadderAgent):
    """The paper's handcrafted policies: "shallow" prunes early groups most, "deep" late ones (section 4.1).

    The keep fraction changes linearly from the first group to the last, over the widest range that the surface
    allows. Without a budget, the ramp is proposed at `RUNGS` levels.
    """

    def __init__(self, problem: Problem, name: str) -> None:
        self.name = name
        ramp = np.linspace(0.0, 1.0, len(problem.decisions))
        super().__init__(problem, ramp if name == "shallow" else ramp[::-1])
