"""The agent's reward for a policy. Pure: no torch, no files.

The paper has two protocols (arXiv 1802.03494, section 3.2): `r_err` with a budget and, without a budget, a reward that
grows as the network shrinks. `SmallestWithin` adds a third: the smallest network within a limit on the accuracy loss.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from amc.errors import AmcError, EvaluationError
from amc.run.settings import CONFIDENCE
from amc.search.budget import Metric
from amc.search.statistics import quantile, upper_bound


@dataclass(frozen=True, slots=True)
class Outcome:
    """A scored policy: the argument of a reward."""

    score: float  # higher is better; an accuracy in [0, 1], or a user's score on any scale
    costs: Mapping[str, float]  # of the policy, by metric name, in the metric's unit
    dense: Mapping[str, float]  # of the dense network
    standard_error: float | None = None  # of the score's difference from the dense score; None: unknown


class RewardFunction(Protocol):
    """The reward of a scored policy.

    An AmcError that the function raises ends the search, because no later policy could be rewarded either.
    """

    def __call__(self, outcome: Outcome, /) -> float:
        """Any finite number, higher is better."""
        ...


def r_err(outcome: Outcome, /) -> float:
    """R_err = -Error, for the resource-constrained protocol.

    The error is 1 - score. A user's score may have another scale: the constant 1 then has no meaning, and the
    agent's reward baseline removes it.
    """
    return -(1.0 - outcome.score)


@dataclass(frozen=True, slots=True)
class LogCostReward:
    """-Error * log(cost), for the accuracy-guaranteed protocol.

    The cost is an absolute count, as in the paper. A latency is converted to microseconds, so that its logarithm is not
    negative.
    """

    name: str
    metric: Metric

    def __call__(self, outcome: Outcome, /) -> float:
        """At most 0. Raises AmcError if the cost is unknown or the score is not in [0, 1]."""
        cost = _cost(outcome.costs, self.metric, self.name)
        if not 0.0 <= outcome.score <= 1.0:
            raise EvaluationError(
                f"reward {self.name} needs a score in [0, 1], got {outcome.score:g}: its error is 1 - score; "
                "return a fraction (0.93 for 93%), or use a budget with reward r_err"
            )
        count = cost * 1000 if self.metric is Metric.LATENCY else cost
        return -(1.0 - outcome.score) * math.log(max(1.0, count))


@dataclass(frozen=True, slots=True)
class SmallestWithin:
    """The smallest network whose score drops by at most `max_drop`, with the score's uncertainty included.

    A policy is feasible if the upper confidence bound of its drop is at most `max_drop`. A feasible policy's reward is
    minus its share of the dense cost, in [-1, 0]. Any other reward is below -1 by the excess over `max_drop`.
    """

    max_drop: float  # in the score's unit: 0.005 is half a point of accuracy
    dense_score: float
    metric: Metric  # the cost to minimise
    confidence: float = CONFIDENCE  # one-sided, of one comparison; in [0.5, 1)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise AmcError(f"max-drop must be at least 0 and finite, got {self.max_drop:g}")
        quantile(self.confidence)

    @property
    def name(self) -> str:
        """The name in the journal's header. Omits the dense score: its last digits differ between machines."""
        return f"fewest {self.metric} within a drop of {self.max_drop:g} at confidence {self.confidence:g}"

    def excess(self, drop: float, standard_error: float | None) -> float:
        """The upper confidence bound of a drop, minus `max_drop`. The policy is feasible if this is at most 0."""
        # A drop of exactly max_drop is feasible; the tolerance covers the rounding of binary fractions.
        return upper_bound(drop, standard_error, self.confidence) - self.max_drop - 1e-12

    def __call__(self, outcome: Outcome, /) -> float:
        """The reward, see the class. Raises AmcError if the cost is unknown."""
        share = _cost(outcome.costs, self.metric, self.name) / _cost(outcome.dense, self.metric, self.name)
        excess = self.excess(self.dense_score - outcome.score, outcome.standard_error)
        return -share if excess <= 0 else -1.0 - excess


REWARDS: Mapping[str, RewardFunction] = {
    "r_err": r_err,
    "r_flops": LogCostReward("r_flops", Metric.MACS),
    "r_params": LogCostReward("r_params", Metric.PARAMS),
    "r_latency": LogCostReward("r_latency", Metric.LATENCY),
}


def get_reward(reward: str | Callable[[Outcome], float]) -> RewardFunction:
    """The reward of that name, or the callable itself. Raises AmcError for anything else."""
    if isinstance(reward, str):
        if reward not in REWARDS:
            raise AmcError(f"reward {reward!r} is unknown; use one of {', '.join(REWARDS)}")
        return REWARDS[reward]
    if not callable(reward):
        raise AmcError(f"reward is a {type(reward).__name__}; give one of {', '.join(REWARDS)} or a function")
    return reward


def reward_name(reward: RewardFunction) -> str:
    """The reward's name in a journal's header."""
    return str(getattr(reward, "name", None) or getattr(reward, "__name__", None) or type(reward).__name__)


def rewarded_metric(reward: RewardFunction) -> Metric | None:
    """The cost that the reward depends on; None if it depends on none, or is a user's function."""
    return reward.metric if isinstance(reward, LogCostReward | SmallestWithin) else None


def check_costs(reward: RewardFunction, costs: Mapping[str, float]) -> None:
    """Raise AmcError if the reward depends on a cost that is not in `costs`. Call this before any score."""
    metric = rewarded_metric(reward)
    if metric is not None:
        _cost(costs, metric, reward_name(reward))


def _cost(costs: Mapping[str, float], metric: Metric, what: str) -> float:
    if metric not in costs:
        known = ", ".join(str(name) for name in costs)
        raise AmcError(f"reward {what!r} needs the network's {metric}, which is not measured here; known: {known}")
    return costs[metric]
