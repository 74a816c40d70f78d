"""The search: budgets, the environment, agents and the episode loop. It handles numbers only, never a network."""

from amc.errors import AmcError
from amc.search.baselines import Agent, RampAgent, RandomAgent, UniformAgent
from amc.search.bounds import SURFACE_FLOOR, Bounds
from amc.search.budget import Budget, Metric, parse_budgets
from amc.search.ddpg import DDPGAgent, DDPGConfig
from amc.search.environment import PruningEnv, Rollout, Transition, roll_out
from amc.search.journal import EpisodeRecord, Journal, JournalContent, load_journal, read_journal
from amc.search.judging import judged, rewarded
from amc.search.loop import EpisodeTiming, SearchResult, search
from amc.search.problem import CostFunction, Decision, LayerFeatures, Problem
from amc.search.rewards import (
    REWARDS,
    LogCostReward,
    Outcome,
    RewardFunction,
    SmallestWithin,
    check_costs,
    get_reward,
    r_err,
    reward_name,
    rewarded_metric,
)

AGENTS = ("ddpg", "random", "uniform", "shallow", "deep")
BASELINES = AGENTS[1:]


def create_agent(name: str, problem: Problem, *, episodes: int, seed: int, uniform_first: bool = True) -> Agent:
    """The agent named `name`, with its default settings for `episodes` episodes. Raises AmcError for other names.

    uniform_first: whether the first policy of "ddpg" under a budget is the uniform one. The other agents ignore it.
    """
    if name == "ddpg":
        return DDPGAgent(problem, DDPGConfig.for_episodes(episodes, uniform_first=uniform_first), seed=seed)
    if name == "random":
        return RandomAgent(problem, seed=seed)
    if name == "uniform":
        return UniformAgent(problem)
    if name in ("shallow", "deep"):
        return RampAgent(problem, name)
    raise AmcError(f"agent {name!r} is unknown; use one of {', '.join(AGENTS)}")


__all__ = [
    "AGENTS",
    "BASELINES",
    "REWARDS",
    "SURFACE_FLOOR",
    "Agent",
    "Bounds",
    "Budget",
    "CostFunction",
    "DDPGAgent",
    "DDPGConfig",
    "Decision",
    "EpisodeRecord",
    "EpisodeTiming",
    "Journal",
    "JournalContent",
    "LayerFeatures",
    "LogCostReward",
    "Metric",
    "Outcome",
    "Problem",
    "PruningEnv",
    "RewardFunction",
    "Rollout",
    "SearchResult",
    "SmallestWithin",
    "Transition",
    "check_costs",
    "create_agent",
    "get_reward",
    "judged",
    "load_journal",
    "parse_budgets",
    "r_err",
    "read_journal",
    "reward_name",
    "rewarded",
    "rewarded_metric",
    "roll_out",
    "search",
]
