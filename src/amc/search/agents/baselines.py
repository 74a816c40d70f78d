"""The baselines that every result is compared with: random and fixed policies.

Pure: no torch, no files.
"""

import numpy as np

from amc.search.agents.base import PlannedAgent, Setting
from amc.search.problem import FloatArray, Problem

RUNGS = 20  # policies that a fixed baseline offers when no budget selects one


class RandomAgent(PlannedAgent):
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
        self.plan = (1.0 - self.surface.sample(self._generator)).tolist()


class _LadderAgent(PlannedAgent):
    """Fixed keep fractions, projected onto the budget; without a budget, at `RUNGS` levels from dense to least."""

    def __init__(self, problem: Problem, requested: FloatArray) -> None:
        super().__init__(problem)
        surface = self.surface
        self._policies = [surface.nearest(requested)] if surface.bounded else surface.ladder(requested, RUNGS)

    @property
    def max_episodes(self) -> int:
        """One policy with a budget, `RUNGS` without."""
        return len(self._policies)

    def settings(self) -> dict[str, Setting]:
        """Empty: the agent has no settings."""
        return {}

    def begin_episode(self, episode: int, attempt: int) -> None:
        """Plan the next policy. The environment rounds it to feasible keep counts."""
        self.plan = (1.0 - self._policies[episode]).tolist()


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
