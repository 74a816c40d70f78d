"""The search: budgets, the environment, agents and the episode loop. It handles numbers only, never a network."""

from amc.search.agents import (
    AGENTS,
    BASELINES,
    LEARN_EARLIER,
    Agent,
    AgentFactory,
    DDPGAgent,
    DDPGConfig,
    RampAgent,
    RandomAgent,
    SearchTask,
    UniformAgent,
    agent_config,
    create_agent,
)
from amc.search.bounds import SURFACE_FLOOR, Bounds
from amc.search.budget import Budget, Metric, parse_budgets
from amc.search.environment import PruningEnv, Rollout, Transition, roll_out
from amc.search.journal import EpisodeRecord, Journal, JournalContent, Stop, load_journal, read_journal
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
from amc.search.stopping import StopRules

__all__ = [
    "AGENTS",
    "BASELINES",
    "LEARN_EARLIER",
    "REWARDS",
    "SURFACE_FLOOR",
    "Agent",
    "AgentFactory",
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
    "RampAgent",
    "RandomAgent",
    "RewardFunction",
    "Rollout",
    "SearchResult",
    "SearchTask",
    "SmallestWithin",
    "Stop",
    "StopRules",
    "Transition",
    "UniformAgent",
    "agent_config",
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
