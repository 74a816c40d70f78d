"""The interface of an agent, and what an agent knows before the first episode.

Pure: no torch, no files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from amc.search.environment import Observation, Rollout
from amc.search.journal import EpisodeRecord
from amc.search.problem import FloatArray, Problem
from amc.search.rewards import RewardFunction, r_err
from amc.search.surface import Surface

Setting = bool | int | float | str | None


@dataclass(frozen=True)
class SearchTask:
    """What an agent knows before the first episode."""

    problem: Problem
    episodes: int  # of the search
    seed: int
    reward: RewardFunction = r_err
    dense_score: float | None = None  # of the network before pruning; None: unknown
    errors: tuple[FloatArray, ...] = ()  # by decision, [choices]: relative error of the layers that read it; or empty
    earlier: tuple[EpisodeRecord, ...] = ()  # scored policies of earlier searches of the same network


class Agent(Protocol):
    """An agent proposes policies and learns from their rewards.

    For each episode the loop calls `begin_episode`, then `act` once per group, then `proposed`, and `end_episode` when
    the policy is scored. If the policy was already proposed, the loop repeats the episode with the next `attempt`. In a
    search with batches, a whole batch is proposed before the first of its episodes ends. An agent's actions depend only
    on its constructor's arguments and on these calls. This makes a search resumable.
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

    def proposed(self, rollout: Rollout) -> None:
        """Hear the policy that the episode came to, before it is scored; by default nothing happens."""
        return

    def end_episode(self, rollout: Rollout, record: EpisodeRecord) -> None:
        """Learn from the executed episode. A failed episode has neither score nor reward."""
        ...

    def estimates(self) -> Mapping[tuple[int, ...], float]:
        """Expected scores of scored policies, where the agent knows better than the noisy score; by default empty."""
        return {}

    def expected_gain(self) -> float | None:
        """How much more reward the best policy has than the best scored one, by the agent's model: at least 0.

        Infinite while the model cannot say; None without a model, which is the default. A search with patience asks
        before it ends. The call changes nothing that the agent proposes.
        """
        return None


AgentFactory = Callable[[SearchTask], Agent]


class PlannedAgent(Agent):
    """An agent that chooses the sparsities of all groups before the episode begins."""

    def __init__(self, problem: Problem) -> None:
        self.surface = Surface(problem)
        self.plan: list[float] = []  # requested sparsities of the groups that are not decided yet

    def act(self, observation: Observation) -> float:
        """The next sparsity of the plan. Ignores the observation."""
        return self.plan.pop(0)

    def end_episode(self, rollout: Rollout, record: EpisodeRecord) -> None:
        """Do nothing: most planned agents do not learn."""
