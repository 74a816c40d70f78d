"""What the agent is paid for a policy. Pure: no torch, no files.

The paper's two protocols (arXiv 1802.03494, section 3.2): with a budget, `r_err`; without one, a reward that
pays for small networks. `SmallestWithin` is what users ask for: the smallest network within a loss of accuracy.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from amc.errors import AmcError, EvaluationError
from amc.search.budget import Metric
from amc.statistics import CONFIDENCE, quantile, upper_bound


@dataclass(frozen=True, slots=True)
class Outcome:
    """A scored policy, as a reward sees it."""

    score: float  # higher is better; an accuracy in [0, 1] unless the user's own
    costs: Mapping[str, float]  # of the policy, by metric name, in the metric's unit
    dense: Mapping[str, float]  # of the dense network
    standard_error: float | None = None  # of the score's difference from the dense score; None: unknown


class RewardFunction(Protocol):
    """The reward of a scored policy.

    An AmcError that it raises ends the search: what cannot be paid for once cannot be paid for at all.
    """

    def __call__(self, outcome: Outcome, /) -> float:
        """Any finite number, higher is better."""
        ...


def r_err(outcome: Outcome, /) -> float:
    """R_err = -Error, for the resource-constrained protocol.

    The error is 1 - score. A user's own score on another scale only moves this by a constant, which the
    agent's reward baseline takes out again.
    """
    return -(1.0 - outcome.score)


@dataclass(frozen=True, slots=True)
class LogCostReward:
    """-Error * log(cost), for the accuracy-guaranteed protocol.

    The logarithm is that of the absolute count, as in the paper: one factor of cost is worth the same share of
    the error everywhere. A latency counts in microseconds, so that its logarithm is not negative.
    """

    name: str
    metric: Metric

    def __call__(self, outcome: Outcome, /) -> float:
        """At most 0. Raises AmcError if the cost is not known or the score is no accuracy."""
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
    """The smallest network that loses at most `max_drop`, with the uncertainty of the score on its side.

    A policy is feasible if the upper bound of its drop is within `max_drop`. It is then paid minus its share of
    the dense cost, in [-1, 0]; any other is paid less than -1, the less the more it exceeds the limit.
    """

    max_drop: float  # in the score's unit: 0.005 is half a point of accuracy
    dense_score: float
    metric: Metric  # what is made small
    confidence: float = CONFIDENCE  # one-sided, of one comparison; in [0.5, 1)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise AmcError(f"max-drop must be at least 0 and finite, got {self.max_drop:g}")
        quantile(self.confidence)

    @property
    def name(self) -> str:
        """For the journal's header; without the dense score, which another machine may see a rounding away."""
        return f"fewest {self.metric} within a drop of {self.max_drop:g} at confidence {self.confidence:g}"

    def excess(self, drop: float, standard_error: float | None) -> float:
        """By how much the upper bound of a drop exceeds the limit; feasible if at most 0."""
        # A drop of exactly max_drop holds; binary fractions may miss it by their last digit.
        return upper_bound(drop, standard_error, self.confidence) - self.max_drop - 1e-12

    def __call__(self, outcome: Outcome, /) -> float:
        """At most 0. Raises AmcError if the cost is not known."""
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
    """The reward of that name, or the callable itself; AmcError for anything else."""
    if isinstance(reward, str):
        if reward not in REWARDS:
            raise AmcError(f"reward {reward!r} is unknown; use one of {', '.join(REWARDS)}")
        return REWARDS[reward]
    if not callable(reward):
        raise AmcError(f"reward is a {type(reward).__name__}; give one of {', '.join(REWARDS)} or a function")
    return reward


def reward_name(reward: RewardFunction) -> str:
    """What a journal's header calls it."""
    return str(getattr(reward, "name", None) or getattr(reward, "__name__", None) or type(reward).__name__)


def rewarded_metric(reward: RewardFunction) -> Metric | None:
    """The cost that the reward pays for; None if it pays for none, or is the user's own."""
    return reward.metric if isinstance(reward, LogCostReward | SmallestWithin) else None


def check_costs(reward: RewardFunction, costs: Mapping[str, float]) -> None:
    """Raise AmcError if the reward pays for a cost that is not among those known, before anything is scored."""
    metric = rewarded_metric(reward)
    if metric is not None:
        _cost(costs, metric, reward_name(reward))


def _cost(costs: Mapping[str, float], metric: Metric, what: str) -> float:
    if metric not in costs:
        known = ", ".join(str(name) for name in costs)
        raise AmcError(f"reward {what!r} needs the network's {metric}, which is not measured here; known: {known}")
    return costs[metric]
