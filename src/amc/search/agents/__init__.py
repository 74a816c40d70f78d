"""Agents by name: what proposes policies and learns from their scores."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from amc.errors import AmcError
from amc.search.agents.around_best import AroundBestAgent, AroundBestConfig
from amc.search.agents.base import Agent, AgentFactory, PlannedAgent, SearchTask, Setting
from amc.search.agents.baselines import RampAgent, RandomAgent, UniformAgent
from amc.search.agents.cma_es import CMAAgent, CMAConfig
from amc.search.agents.ddpg import DDPGAgent, DDPGConfig, PaperDDPGAgent, PaperDDPGConfig
from amc.search.agents.extras import require
from amc.search.agents.imagining import ImaginingAgent, ImaginingConfig
from amc.search.agents.optuna_samplers import OptunaAgent, OptunaConfig
from amc.search.agents.planner import PlannerAgent, PlannerConfig
from amc.search.agents.spdy import SPDYAgent, SPDYConfig
from amc.search.agents.swaps import SwapsAgent, SwapsConfig


@dataclass(frozen=True, slots=True)
class NoOptions:
    """The options of an agent that has none."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """How an agent is made."""

    options: type[Any]  # a frozen dataclass; its fields are the agent's options
    make: Callable[[SearchTask, Any], Agent]  # from an instance of it
    module: str = ""  # of the extra `rivals`, if the agent needs one
    learns_earlier: bool = False  # from `SearchTask.earlier`


_KINDS: Mapping[str, _Kind] = {
    "planner": _Kind(PlannerConfig, PlannerAgent, learns_earlier=True),
    "ddpg": _Kind(
        DDPGConfig, lambda task, config: DDPGAgent(task.problem, config, seed=task.seed, episodes=task.episodes)
    ),
    "random": _Kind(NoOptions, lambda task, _: RandomAgent(task.problem, seed=task.seed)),
    "uniform": _Kind(NoOptions, lambda task, _: UniformAgent(task.problem)),
    "shallow": _Kind(NoOptions, lambda task, _: RampAgent(task.problem, "shallow")),
    "deep": _Kind(NoOptions, lambda task, _: RampAgent(task.problem, "deep")),
    "ddpg-paper": _Kind(PaperDDPGConfig, PaperDDPGAgent),
    "ddpg-model": _Kind(ImaginingConfig, ImaginingAgent, learns_earlier=True),
    "around-best": _Kind(AroundBestConfig, AroundBestAgent),
    "swaps": _Kind(SwapsConfig, SwapsAgent),
    "spdy": _Kind(SPDYConfig, SPDYAgent),
    "cma": _Kind(CMAConfig, CMAAgent, "cma"),
    "optuna-tpe": _Kind(OptunaConfig, lambda task, config: OptunaAgent(task, config, name="optuna-tpe"), "optuna"),
    "optuna-gp": _Kind(OptunaConfig, lambda task, config: OptunaAgent(task, config, name="optuna-gp"), "optuna"),
}
AGENTS = tuple(_KINDS)
LEARN_EARLIER = tuple(name for name, kind in _KINDS.items() if kind.learns_earlier)  # from earlier searches
BASELINES = AGENTS  # names that may be scored beside the agent


def create_agent(agent: str | AgentFactory, task: SearchTask, options: Mapping[str, Any] | None = None) -> Agent:
    """The agent of that name, or what the factory makes of the task.

    `options`: settings of the agent, by name; a factory has none. Raises AmcError for an unknown name or option, and
    for an option's value that the agent cannot use.
    """
    if not isinstance(agent, str):
        if options:
            raise AmcError(f"an agent of your own takes no options here; let its factory set {', '.join(options)}")
        return agent(task)
    config = agent_config(agent, task.episodes, options or {})
    return _KINDS[agent].make(task, config)


def agent_config(agent: str, episodes: int, options: Mapping[str, Any]) -> Any:
    """The settings of an agent for a search of that length, a frozen dataclass.

    Raises AmcError like `create_agent`, also for a package that the agent needs and that is missing.
    """
    if agent not in _KINDS:
        raise AmcError(f"agent {agent!r} is unknown; {_nearest(agent, AGENTS, 'use one of')}")
    kind = _KINDS[agent].options
    if _KINDS[agent].module:
        require(_KINDS[agent].module, agent)
    known = [field.name for field in dataclasses.fields(kind)]
    for name in options:
        if not known:
            raise AmcError(f"agent {agent!r} has no options; leave out {name!r}")
        if name not in known:
            raise AmcError(f"agent {agent!r} has no option {name!r}; {_nearest(name, known, 'its options are')}")
    return kind.for_episodes(episodes, **options) if hasattr(kind, "for_episodes") else kind(**options)


def _nearest(name: str, known: tuple[str, ...] | list[str], otherwise: str) -> str:
    """The remedy for an unknown name: the nearest of the known ones, or all of them after the words `otherwise`."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"{otherwise} {', '.join(known)}"


__all__ = [
    "AGENTS",
    "BASELINES",
    "LEARN_EARLIER",
    "Agent",
    "AgentFactory",
    "AroundBestAgent",
    "AroundBestConfig",
    "CMAAgent",
    "CMAConfig",
    "DDPGAgent",
    "DDPGConfig",
    "ImaginingAgent",
    "ImaginingConfig",
    "NoOptions",
    "OptunaAgent",
    "OptunaConfig",
    "PaperDDPGAgent",
    "PaperDDPGConfig",
    "PlannedAgent",
    "PlannerAgent",
    "PlannerConfig",
    "RampAgent",
    "RandomAgent",
    "SPDYAgent",
    "SPDYConfig",
    "SearchTask",
    "Setting",
    "SwapsAgent",
    "SwapsConfig",
    "UniformAgent",
    "agent_config",
    "create_agent",
]
