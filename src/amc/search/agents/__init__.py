"""Agents by name: what proposes policies and learns from their scores."""

from collections.abc import Mapping
from typing import Any

from amc.errors import AmcError
from amc.search.agents.base import Agent, AgentFactory, SearchTask, Setting
from amc.search.agents.baselines import RampAgent, RandomAgent, UniformAgent
from amc.search.agents.ddpg import DDPGAgent, DDPGConfig
from amc.search.agents.planner import PlannerAgent, PlannerConfig

AGENTS = ("planner", "ddpg", "random", "uniform", "shallow", "deep")
BASELINES = AGENTS[2:]


def create_agent(agent: str | AgentFactory, task: SearchTask, options: Mapping[str, Any] | None = None) -> Agent:
    """The agent of that name, or what the factory makes of the task.

    `options`: settings of the agent, by name. Raises AmcError for an unknown name or option.
    """
    if not isinstance(agent, str):
        return agent(task)
    problem, seed = task.problem, task.seed
    if agent == "ddpg":
        return DDPGAgent(problem, DDPGConfig.for_episodes(task.episodes, **(options or {})), seed=seed)
    if agent == "planner":
        return PlannerAgent(task, PlannerConfig(**(options or {})))
    if agent == "random":
        return RandomAgent(problem, seed=seed)
    if agent == "uniform":
        return UniformAgent(problem)
    if agent in ("shallow", "deep"):
        return RampAgent(problem, agent)
    raise AmcError(f"agent {agent!r} is unknown; use one of {', '.join(AGENTS)}")


__all__ = [
    "AGENTS",
    "BASELINES",
    "Agent",
    "AgentFactory",
    "DDPGAgent",
    "DDPGConfig",
    "PlannerAgent",
    "PlannerConfig",
    "RampAgent",
    "RandomAgent",
    "SearchTask",
    "Setting",
    "UniformAgent",
    "create_agent",
]
