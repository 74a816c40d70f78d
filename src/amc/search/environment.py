"""The pruning environment: one episode decides every group once, in execution order.

Transitions need costs only, so an episode takes about a millisecond. The finished policy is scored once, at the end.
`Walk` is the pure part; `PruningEnv` makes it a `gymnasium.Env`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from amc.search.bounds import SURFACE_FLOOR, Bounds, nearest_choice
from amc.search.judging import REWARD, Score, number_of, score_of_policy
from amc.search.problem import IntArray, Problem
from amc.search.rewards import Outcome, RewardFunction, r_err

FEATURES = ("t", "n", "c", "h", "w", "stride", "k", "macs", "reduced", "rest", "previous_action")

Observation = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Transition:
    """One executed step."""

    observation: Observation  # [11]
    action: float  # executed sparsity, after bounding and rounding; in [0, 1)
    next_observation: Observation  # [11]
    done: bool


@dataclass(frozen=True, slots=True)
class Rollout:
    """A finished episode, before its policy is scored."""

    keep_counts: tuple[int, ...]
    transitions: tuple[Transition, ...]


class Walk:
    """One episode in progress. It depends only on the actions; nothing is scored."""

    def __init__(self, problem: Problem, bounds: Bounds) -> None:
        self._problem, self._bounds = problem, bounds
        self._cost = problem.costs[problem.metric]
        self._dense, self._least = problem.dense, problem.least
        self._dense_cost = float(self._cost(self._dense))
        self._layers = _layer_features(problem)
        self._keep: list[int] = []
        self._transitions: list[Transition] = []
        self.observation = self._observe(0.0)

    @property
    def done(self) -> bool:
        """Whether every group is decided."""
        return len(self._keep) == len(self._dense)

    @property
    def keep_counts(self) -> tuple[int, ...]:
        """The decided groups' keep counts."""
        return tuple(self._keep)

    def advance(self, sparsity: float) -> Transition:
        """Decide the next group: keep the feasible number of units nearest to (1 - sparsity) * size."""
        decision = self._problem.decisions[len(self._keep)]
        allowed = self._bounds.allowed(self._keep)
        keep = nearest_choice(allowed, (1.0 - sparsity) * decision.size)
        executed = 1.0 - keep / decision.size
        before = self.observation
        self._keep.append(keep)
        self.observation = self._observe(executed)
        transition = Transition(before, executed, self.observation, self.done)
        self._transitions.append(transition)
        return transition

    def finish(self) -> Rollout:
        """The finished episode. Every group must be decided."""
        assert self.done, f"{len(self._dense) - len(self._keep)} groups are undecided"
        return Rollout(self.keep_counts, tuple(self._transitions))

    def _observe(self, previous_action: float) -> Observation:
        """The paper's eleven features (section 3.1), each in [0, 1].

        `reduced` and `rest` are fractions of the dense cost, in the first budget's metric. `reduced` is the cost
        that the decided groups removed. `rest` is the cost that the groups after this one can still remove. The
        paper's `rest` is the whole cost of the later layers. Ours is the quantity that Algorithm 1 uses; it is
        exact where one group belongs to several layers (also depthwise ones), and it ends at zero.
        """
        step, groups = len(self._keep), len(self._dense)
        dense_rest, least_rest = self._dense.copy(), self._dense.copy()
        dense_rest[:step] = least_rest[:step] = self._keep
        least_rest[step + 1 :] = self._least[step + 1 :]
        now, then = self._cost(np.stack([dense_rest, least_rest])) / self._dense_cost
        observation = np.zeros(len(FEATURES), dtype=np.float32)
        observation[0] = step / groups
        observation[1:8] = self._layers[step]
        observation[8:] = 1.0 - now, now - then, previous_action
        return np.clip(observation, 0.0, 1.0)


def roll_out(problem: Problem, bounds: Bounds, act: Callable[[Observation], float]) -> Rollout:
    """Play one episode without scoring it; `act` maps an observation [11] to a sparsity in [0, 1]."""
    walk = Walk(problem, bounds)
    while not walk.done:
        walk.advance(act(walk.observation))
    return walk.finish()


class PruningEnv(gym.Env[Observation, npt.NDArray[np.float32]]):
    """The search as a gymnasium environment, for any reinforcement-learning library.

    Observation: the eleven `FEATURES`, float32 [11] in [0, 1]. Action: sparsity, the fraction of the group's
    units to remove, float32 [1] in [0, 1]. The last group's step ends the episode and returns the policy's
    reward; all other rewards are 0. `info` holds `executed_action` [1] and `keep_count`. The last step's `info`
    also holds `policy`, `costs`, `score` and `standard_error` (None if the score is a plain number).
    """

    def __init__(
        self,
        problem: Problem,
        score: Score,
        *,
        reward: RewardFunction = r_err,
        floor: float | None = SURFACE_FLOOR,
    ) -> None:
        """`score` maps a policy (keep counts) to an accuracy, higher is better; `floor` as in `Bounds`."""
        self.observation_space = gym.spaces.Box(0.0, 1.0, (len(FEATURES),), np.float32)
        self.action_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
        self.problem = problem
        self._score, self._reward = score, reward
        self._dense_costs = problem.policy_costs(problem.dense.tolist())
        self._bounds = Bounds(problem, floor=floor)
        self._walk = Walk(problem, self._bounds)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode. `seed` has no effect: the environment is deterministic."""
        super().reset(seed=seed)
        self._walk = Walk(self.problem, self._bounds)
        return self._walk.observation, {}

    def step(
        self, action: npt.NDArray[np.float32] | Sequence[float]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Decide the next group. Raises EvaluationError if the policy's score or reward is not a finite number."""
        if self._walk.done:
            raise gym.error.ResetNeeded("the episode is over; call reset() first")
        transition = self._walk.advance(float(np.asarray(action, dtype=np.float64).reshape(-1)[0]))
        info: dict[str, Any] = {
            "executed_action": np.array([transition.action], dtype=np.float32),
            "keep_count": self._walk.keep_counts[-1],
        }
        reward = 0.0
        if transition.done:
            policy = self._walk.keep_counts
            score, error = score_of_policy(self._score(policy))
            outcome = Outcome(score, self.problem.policy_costs(policy), self._dense_costs, error)
            reward = number_of(self._reward(outcome), REWARD)
            info.update(policy=policy, costs=outcome.costs, score=score, standard_error=error)
        return transition.next_observation, reward, transition.done, False, info


def _layer_features(problem: Problem) -> npt.NDArray[np.float32]:
    """Rows [groups + 1, 7] of n, c, h, w, stride, k, macs over their maxima; zeros after the last group."""
    rows: IntArray = np.array(
        [(x.n, x.c, x.h, x.w, x.stride, x.k, x.macs) for x in (d.layer for d in problem.decisions)],
        dtype=np.int64,
    )
    scaled = rows / np.maximum(rows.max(axis=0), 1)
    return np.vstack([scaled, np.zeros((1, rows.shape[1]))]).astype(np.float32)
