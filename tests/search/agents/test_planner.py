"""The default agent: nearer to the known optimum than its opponents under noise, and what it does at the ends."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from amc.search import Metric, Problem, SearchTask, SmallestWithin, create_agent, search
from amc.search.agents import PlannerAgent, PlannerConfig
from amc.search.planning import Planner
from amc.search.score_model import Damages
from amc.search.statistics import Measured
from tests.search.toys import chain_problem, residual_problem


def noisy(score, images=2000):
    """The share of right answers among `images`, the same for the same policy."""

    def measured(keep):
        right = np.random.default_rng(keep).binomial(images, score(keep)) / images
        return Measured(right, math.sqrt(right * (1 - right) / images))

    return measured


def optimum(problem, score):
    """The best policy of an additive toy: planned with its own damages."""
    tables = np.zeros((len(problem.decisions), max(len(d.choices) for d in problem.decisions)))
    for row, decision, size, factor, power in zip(
        tables, problem.decisions, score.sizes, score.sensitivity, score.power, strict=True
    ):
        row[: len(decision.choices)] = factor * (1 - np.array(decision.choices) / size) ** power
    return score(Planner(problem).plan(Damages(tables, np.zeros(len(tables) - 1))))


def found(name, problem, score, seed, episodes=60):
    dense = score(tuple(problem.dense.tolist()))
    agent = create_agent(name, SearchTask(problem, episodes, seed, dense_score=dense))
    return score(search(problem, noisy(score), agent, episodes=episodes, seed=seed).best.keep)


@pytest.mark.parametrize(
    "make", [lambda seed: residual_problem(9, seed=seed), lambda seed: chain_problem(14, seed=seed)]
)
def test_it_closes_most_of_the_gap_to_the_optimum_with_the_noise_of_2000_images(make) -> None:
    shares = []
    for seed in range(4):
        problem, score = make(seed)
        best, random = optimum(problem, score), found("random", problem, score, seed + 1000)
        shares.append((found("planner", problem, score, seed) - random) / (best - random))
    assert statistics.median(shares) > 0.5


def test_the_policy_it_returns_is_the_one_that_it_expects_most_of() -> None:
    """Not the luckiest score."""
    gains = []
    for seed in range(6):
        problem, score = residual_problem(9, seed=seed)
        agent = PlannerAgent(SearchTask(problem, 40, seed))
        result = search(problem, noisy(score, 300), agent, episodes=40, seed=seed)
        estimates = agent.estimates()
        assert result.best.keep == max(estimates, key=lambda keep: estimates[keep])
        lucky = max(result.episodes, key=lambda record: record.score)
        gains.append(score(result.best.keep) - score(lucky.keep))
    assert statistics.mean(gains) > 0


def test_scores_of_an_earlier_search_make_it_begin_where_that_one_ended() -> None:
    """Also under another budget: its first planned policies are better than random ones."""
    gains = []
    for seed in range(4):
        before, score = residual_problem(9, "macs<=60%", seed)
        records = search(before, score, create_agent("planner", SearchTask(before, 60, seed)), episodes=60, seed=seed)
        problem, _ = residual_problem(9, "macs<=40%", seed)
        warm, cold = (
            search(problem, score, PlannerAgent(SearchTask(problem, 4, seed, earlier=known)), episodes=4, seed=seed)
            for known in (records.episodes, ())
        )
        gains.append(warm.best.score - cold.best.score)
    assert min(gains) >= 0
    assert statistics.median(gains) > 0.005


def test_the_journal_says_how_it_explored_and_what_it_knew_before() -> None:
    problem, score = residual_problem(9)
    records = search(problem, score, create_agent("random", SearchTask(problem, 3, 0)), episodes=3, seed=0).episodes
    agent = PlannerAgent(SearchTask(problem, 10, 0, earlier=records), PlannerConfig(temperature=0.5))
    assert agent.settings() == {"warmup_episodes": 8, "temperature": 0.5, "narrowing": 0.5, "earlier": 3}


def test_the_smallest_network_within_a_drop_is_near_the_smallest_there_is() -> None:
    problem, score = residual_problem(9)
    free = Problem(problem.decisions, problem.costs)
    dense = score(tuple(problem.dense.tolist()))
    reward = SmallestWithin(0.05, dense, Metric.MACS)
    costs = {}
    for name in ("planner", "random"):
        agent = create_agent(name, SearchTask(free, 60, 0, reward=reward, dense_score=dense))
        costs[name] = search(free, score, agent, episodes=60, seed=0, reward=reward).best.cost["macs"]
    assert costs["planner"] < 0.95 * costs["random"]


@pytest.mark.parametrize("budget", ["macs<=50%", None])
def test_a_reward_that_is_not_defined_for_an_expected_score_is_no_error(budget) -> None:
    """The reward knows only measured scores. So nothing can be said of what the model expects."""
    problem, score = residual_problem(9, budget or "macs<=50%")
    problem = problem if budget else Problem(problem.decisions, problem.costs)
    measured = []

    def measure(keep):
        measured.append(score(keep))
        return measured[-1]

    def reward(outcome):
        if outcome.score not in measured:
            raise ValueError("never measured")
        return outcome.score - 0.5 * outcome.costs["macs"] / outcome.dense["macs"]

    agent = create_agent("planner", SearchTask(problem, 15, 0, reward=reward, dense_score=score.top))
    result = search(problem, measure, agent, episodes=15, seed=0, reward=reward)
    assert (len(result.episodes), result.failed) == (15, 0)
    assert agent.expected_gain() == math.inf


def test_a_search_that_fails_at_first_goes_on_at_random() -> None:
    problem, score = residual_problem(9)
    calls = []

    def failing(keep):
        calls.append(keep)
        if len(calls) <= 9:
            raise RuntimeError("not yet")
        return score(keep)

    agent = create_agent("planner", SearchTask(problem, 20, 0))
    result = search(problem, failing, agent, episodes=20, seed=0)
    assert result.failed == 9
    assert len(set(calls)) == 20


def test_scores_that_are_all_alike_are_no_error() -> None:
    problem, _ = residual_problem(9)
    agent = create_agent("planner", SearchTask(problem, 20, 0))
    result = search(problem, lambda keep: 0.5, agent, episodes=20, seed=0)
    assert result.best.episode == 0
