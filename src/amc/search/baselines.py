"""The interface of an agent, and the two baselines every result is set beside: random and uniform policies.

Pure: no torch, no files.
"""

from typing import Protocol

import numpy as np

from amc.search.environment import Observation, Rollout
from amc.search.problem import FloatArray, Problem
from amc.search.surface import Surface

RUNGS = 20  # policies that a baseline offers where no budget picks one

Setting = bool | int | float | str | None


class Agent(Protocol):
    """What proposes policies and learns from their rewards.

    For each episode the loop calls `begin_episode`, `act` once per group, and `end_episode`. It asks for the
    same episode again, with `attempt` counting up, when the policy was already scored. An agent's answers are
    a pure function of its construction and of these calls; that is what makes a search resumable.
    """

    name: str

    @property
    def max_episodes(self) -> int | None:
        """How many distinct policies the agent has to offer; None: as many as wanted."""
        ...

    def settings(self) -> dict[str, Setting]:
        """What the agent was built with, for the journal's header."""
        ...

    def begin_episode(self, episode: int, attempt: int) -> None:
        """Prepare for an episode, counted from 0."""
        ...

    def act(self, observation: Observation) -> float:
        """Sparsity in [0, 1] wanted for the next group, from the observation [11]."""
        ...

    def end_episode(self, rollout: Rollout, reward: float | None) -> None:
        """Learn from what was executed; a failed episode has no reward."""
        ...


class _PlannedAgent:
    """An agent that has decided on all groups' sparsities before the episode begins."""

    def __init__(self, problem: Problem) -> None:
        self._surface = Surface(problem)
        self._plan: list[float] = []

    def act(self, observation: Observation) -> float:
        """The plan's next sparsity; the observation is not needed."""
        return self._plan.pop(0)

    def end_episode(self, rollout: Rollout, reward: float | None) -> None:
        """Nothing is learned."""


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
    """One wish for all groups: where it meets the budget or, without one, at `RUNGS` levels from dense to least."""

    def __init__(self, problem: Problem, wish: FloatArray) -> None:
        super().__init__(problem)
        bounded = self._surface.bounded
        self._policies = [self._surface.land(wish)] if bounded else self._surface.ladder(wish, RUNGS)

    @property
    def max_episodes(self) -> int:
        """One policy under a budget, `RUNGS` without."""
        return len(self._policies)

    def settings(self) -> dict[str, Setting]:
        """Nothing to set."""
        return {}

    def begin_episode(self, episode: int, attempt: int) -> None:
        """Take the next policy; the environment rounds it inside the feasible set."""
        self._plan = (1.0 - self._policies[episode]).tolist()


class UniformAgent(_LadderAgent):
    """The same keep fraction in every group, as large as the budget allows; without a budget, a ladder of them."""

    name = "uniform"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, np.full(len(problem.decisions), 0.5))


class RampAgent(_LadderAgent):
    """The paper's handcrafted policies: "shallow" prunes early groups most, "deep" late ones (section 4.1).

    The keep fraction changes linearly from first to last group, over as wide a range as the surface allows; without
    a budget, the ramp is offered at every level.
    """

    def __init__(self, problem: Problem, name: str) -> None:
        self.name = name
        ramp = np.linspace(0.0, 1.0, len(problem.decisions))
        super().__init__(problem, ramp if name == "shallow" else ramp[::-1])
