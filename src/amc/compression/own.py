"""The caller's own functions among the settings: a reward, an agent, a loss of recovery."""

from __future__ import annotations

from typing import Any

from amc.errors import AmcError
from amc.recovery.distances import DistillLoss
from amc.search import AGENTS, REWARDS, AgentFactory, RewardFunction, get_reward, reward_name


def own_reward(settings: dict[str, Any]) -> RewardFunction | None:
    """The caller's own reward, its name left in `settings`; None where it is one of ours.

    AmcError for an own one under the name of one of ours: budget and latency would be settled as if it were that.
    """
    reward = settings.get("reward", "r_err")
    function = get_reward(reward)  # refuses what is neither a name nor a function
    if isinstance(reward, str):
        return None
    name = settings["reward"] = reward_name(function)
    if name not in REWARDS:
        return function
    if function != REWARDS[name]:
        raise AmcError(f"reward is a function called {name!r}, as a built-in reward is; give it another name")
    return None


def own_agent(settings: dict[str, Any]) -> AgentFactory | None:
    """The caller's own agent, its name left in `settings`; None where it is one of ours."""
    agent = settings.get("agent", "")
    if isinstance(agent, str):
        return None
    if not callable(agent):
        raise AmcError(f"agent must be a name, or a function of a SearchTask that returns an agent; got {agent!r}")
    name = settings["agent"] = str(getattr(agent, "name", None) or getattr(agent, "__name__", type(agent).__name__))
    if name in AGENTS:
        raise AmcError(f"agent is a function called {name!r}, as a built-in agent is; give it another name")
    factory: AgentFactory = agent
    return factory


def own_loss(settings: dict[str, Any]) -> DistillLoss | None:
    """The caller's own loss of recovery, taken out of `settings`; None without one."""
    loss: DistillLoss | None = settings.pop("distill_loss", None)
    if loss is not None and not callable(loss):
        raise AmcError(f"distill_loss must be a function (student outputs, teacher outputs) -> scalar, got {loss!r}")
    return loss
