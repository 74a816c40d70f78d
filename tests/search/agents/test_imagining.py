"""The actor-critic that plays in a model of the score."""

from __future__ import annotations

import pytest

from amc.errors import AmcError
from amc.search import Metric, Problem, SearchTask, create_agent, get_reward, search
from amc.search.agents import ImaginingConfig
from tests.search.agents.test_planner import noisy, optimum
from tests.search.toys import residual_problem

FEW = {"imagined_episodes": 20, "updates_per_episode": 1}


def found(name, problem, score, seed, options=None, episodes=40):
    dense = score(tuple(problem.dense.tolist()))
    agent = create_agent(name, SearchTask(problem, episodes, seed, dense_score=dense), options)
    return search(problem, noisy(score), agent, episodes=episodes, seed=seed)


def test_it_comes_nearer_to_the_optimum_than_random_policies() -> None:
    shares = []
    for seed in range(3):
        problem, score = residual_problem(9, seed=seed)
        best = optimum(problem, score)
        random = score(found("random", problem, score, seed + 1000).best.keep)
        shares.append((score(found("ddpg-model", problem, score, seed, FEW).best.keep) - random) / (best - random))
    assert sorted(shares)[1] > 0.2


def test_equal_seeds_give_equal_searches() -> None:
    problem, score = residual_problem(9, seed=0)
    first, second = (found("ddpg-model", problem, score, 5, FEW, episodes=14).episodes for _ in range(2))
    assert first == second


def test_it_learns_from_earlier_searches() -> None:
    problem, score = residual_problem(9, seed=0)
    earlier = found("random", problem, score, 1, episodes=20).episodes
    agent = create_agent("ddpg-model", SearchTask(problem, 5, 0, earlier=earlier), FEW)
    assert agent.settings()["earlier"] == 20
    search(problem, noisy(score), agent, episodes=5, seed=0)  # it imagines from its second episode on


def test_it_needs_no_budget() -> None:
    bounded, score = residual_problem(9, seed=0)
    problem = Problem(bounded.decisions, {Metric.MACS: bounded.costs[Metric.MACS]}, ())
    agent = create_agent("ddpg-model", SearchTask(problem, 14, 0, reward=get_reward("r_flops")), FEW)
    result = search(problem, noisy(score), agent, episodes=14, seed=0, reward=get_reward("r_flops"))
    assert len({record.keep for record in result.episodes}) > 7


@pytest.mark.parametrize(
    "options", [{"imagined_episodes": 0}, {"updates_per_episode": -1}, {"narrowing": 2}, {"warmup_episodes": 0}]
)
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(AmcError, match=r"DDPG: .*must be"):
        ImaginingConfig(**options)
