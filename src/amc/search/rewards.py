"""What the agent is paid for a policy. Pure: no torch, no files."""

from collections.abc import Mapping
from typing import Protocol

from amc.errors import AmcError


class RewardFunction(Protocol):
    """The reward of a scored policy."""

    def __call__(self, score: float, costs: Mapping[str, float], /) -> float:
        """Score (an accuracy in [0, 1], higher is better) and costs by metric name -> reward."""
        ...


def r_err(score: float, costs: Mapping[str, float], /) -> float:
    """R_err = -Error (arXiv 1802.03494, section 3.2), for the resource-constrained protocol.

    The error is 1 - score. A user's own score on another scale only moves this by a constant, which the
    agent's reward baseline takes out again.
    """
    return -(1.0 - score)


REWARDS: Mapping[str, RewardFunction] = {"r_err": r_err}


def get_reward(name: str) -> RewardFunction:
    """The reward of that name; AmcError if there is none."""
    if name not in REWARDS:
        raise AmcError(f"reward {name!r} is unknown; use one of {', '.join(REWARDS)}")
    return REWARDS[name]
