"""Rewards: the paper's by hand arithmetic, the smallest network within a loss, and how the search uses them."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from amc.errors import AmcError, EvaluationError, RunError
from amc.search import (
    Metric,
    Outcome,
    Problem,
    PruningEnv,
    RandomAgent,
    SearchTask,
    SmallestWithin,
    create_agent,
    get_reward,
    r_err,
    reward_name,
    rewarded_metric,
    search,
)
from amc.search.journal import EpisodeRecord
from amc.search.statistics import Measured
from tests.search.toys import residual_problem

DENSE = {"macs": 40_000_000.0, "params": 270_000.0, "latency": 4.0}


def outcome(score=0.9, error=None, **costs):
    return Outcome(score, {**DENSE, **costs}, DENSE, error)


def free_problem():
    """Without a budget, and with a score that half the channels cost about six points."""
    problem, score = residual_problem(6)
    milder = tuple(x / 3 for x in score.sensitivity)
    return Problem(problem.decisions, problem.costs), dataclasses.replace(score, sensitivity=milder, top=0.8)


def test_error_reward():
    assert get_reward("r_err") is r_err
    assert r_err(outcome(0.9)) == pytest.approx(-0.1)
    assert r_err(outcome(93.2)) == pytest.approx(92.2)  # a scale of the user's own


@pytest.mark.parametrize(
    ("name", "costs", "logarithm"),
    [
        ("r_flops", {"macs": 2e7}, math.log(2e7)),
        ("r_params", {"params": 1e5}, math.log(1e5)),
        ("r_latency", {"latency": 0.25}, math.log(250)),  # microseconds: the logarithm of 0.25 would be negative
        ("r_latency", {"latency": 1e-5}, 0.0),
    ],
)
def test_log_rewards_are_the_papers(name, costs, logarithm):
    assert get_reward(name)(outcome(0.92, **costs)) == pytest.approx(-0.08 * logarithm)
    assert get_reward(name)(outcome(1.0, **costs)) == 0


def test_smaller_is_better_at_the_same_error():
    reward = get_reward("r_flops")
    assert reward(outcome(0.9, macs=1e7)) > reward(outcome(0.9, macs=2e7)) > reward(outcome(0.89, macs=2e7))


@pytest.mark.parametrize("score", [93.2, -0.1, 1.0001])
def test_log_rewards_refuse_a_score_that_is_no_accuracy(score):
    with pytest.raises(EvaluationError, match=r"r_flops needs a score in \[0, 1\].*0.93 for 93%"):
        get_reward("r_flops")(outcome(score))


def test_names_and_callables():
    with pytest.raises(AmcError, match="'r_speed' is unknown; use one of r_err, r_flops, r_params, r_latency"):
        get_reward("r_speed")
    with pytest.raises(AmcError, match="reward is a int"):
        get_reward(3)

    def mine(result):
        return result.score

    assert get_reward(mine) is mine
    within = SmallestWithin(0.005, 0.9, Metric.PARAMS)
    assert [reward_name(r) for r in (r_err, mine, get_reward("r_params"))] == ["r_err", "mine", "r_params"]
    assert reward_name(within) == "fewest params within a drop of 0.005 at confidence 0.8"
    assert [rewarded_metric(r) for r in (r_err, mine, within)] == [None, None, Metric.PARAMS]


def test_within_the_loss_the_reward_is_minus_the_share_of_the_cost():
    reward = SmallestWithin(0.005, 0.9, Metric.MACS, confidence=0.8)
    assert reward(outcome(0.9, macs=1e7)) == -0.25
    assert reward(outcome(0.91, macs=2e7)) == -0.5
    assert reward(outcome(0.895, macs=1e7)) == -0.25  # exactly at the limit
    assert reward(outcome(0.893, macs=1e7)) == pytest.approx(-1.002)
    # 0.9 - 0.898 + 0.8416 * 0.0035 = 0.00495; at 0.004 it is 0.00537.
    assert reward(outcome(0.898, 0.0035, macs=1e7)) == -0.25
    assert reward(outcome(0.898, 0.0040, macs=1e7)) == pytest.approx(-1 - 0.000366, abs=1e-6)


def test_every_feasible_policy_beats_every_other():
    reward = SmallestWithin(0.005, 0.9, Metric.MACS)
    assert reward(outcome(0.9)) == -1.0  # the dense network
    infeasible = [reward(outcome(score, macs=1.0)) for score in (0.5, 0.8, 0.89, 0.8949)]
    assert infeasible == sorted(infeasible)  # nearer is better
    assert infeasible[-1] < -1


def test_nonsense_limits_are_refused():
    for drop in (-0.1, float("nan"), float("inf")):
        with pytest.raises(AmcError, match="max-drop must be at least 0"):
            SmallestWithin(drop, 0.9, Metric.MACS)
    with pytest.raises(AmcError, match="confidence must be"):
        SmallestWithin(0.005, 0.9, Metric.MACS, confidence=95)


@pytest.mark.parametrize("reward", [get_reward("r_latency"), SmallestWithin(0.01, 0.9, Metric.LATENCY)])
def test_a_cost_that_is_not_known_is_refused_before_anything_is_scored(reward):
    problem, _ = free_problem()
    scored = []
    with pytest.raises(AmcError, match=r"needs the network's latency, which is not measured here; known: macs, params"):
        search(problem, scored.append, RandomAgent(problem, seed=0), episodes=5, seed=0, reward=reward)
    assert scored == []


def test_score_that_the_reward_refuses_ends_the_search_at_once(tmp_path):
    problem, _ = free_problem()
    calls = []

    def percent(policy):
        calls.append(policy)
        return 93.0

    with pytest.raises(EvaluationError, match=r"got 93"):
        search(problem, percent, RandomAgent(problem, seed=0), episodes=5, seed=0, reward=get_reward("r_flops"))
    assert len(calls) == 1


def test_users_reward_that_fails_costs_only_its_episode():
    problem, score = free_problem()

    def mine(result):
        if result.costs["macs"] < 0.5 * result.dense["macs"]:
            raise ZeroDivisionError("mine")
        return float("inf") if result.costs["macs"] < 0.7 * result.dense["macs"] else result.score

    found = search(problem, score, RandomAgent(problem, seed=0), episodes=30, seed=0, reward=mine)
    errors = {record.error for record in found.episodes}
    assert errors == {
        None,
        "the reward fails (ZeroDivisionError: mine)",
        "the reward is inf, it must be finite",
    }


@pytest.mark.parametrize("answer", ["0.5", True, np.True_, None, [0.5], np.array([0.5, 0.6])])
def test_reward_that_is_no_number_is_refused_and_the_message_names_the_reward(answer):
    problem, score = free_problem()
    with pytest.raises(EvaluationError) as refusal:
        search(problem, score, RandomAgent(problem, seed=0), episodes=30, seed=0, reward=lambda _: answer)
    assert str(refusal.value) == (
        f"all of the first 10 episodes failed, the last: the reward is {answer!r}, not a number; "
        "check the reward, then start a new run"
    )
    env = PruningEnv(problem, score, reward=lambda _: answer)
    env.reset()
    for _ in problem.decisions[1:]:
        env.step([0.5])
    with pytest.raises(EvaluationError, match=r"the reward is .*, not a number"):
        env.step([0.5])


def test_a_resumed_search_also_names_a_reward_that_always_raises(tmp_path):
    problem, score = free_problem()
    for _ in range(2):
        with pytest.raises(EvaluationError, match=r"the last: the reward fails \(KeyError: 'fps'\); check the reward,"):
            search(
                problem, score, RandomAgent(problem, seed=0), episodes=30, seed=0,
                reward=lambda outcome: outcome.costs["fps"], journal_path=tmp_path / "j",
            )  # fmt: skip


def test_rewards_of_other_libraries_are_numbers():
    problem, score = free_problem()
    answers = [np.float32(0.5), np.int64(2), torch.tensor(0.25)]
    agent = RandomAgent(problem, seed=0)
    found = search(problem, score, agent, episodes=3, seed=0, reward=lambda _: answers.pop())
    assert [record.reward for record in found.episodes] == [0.25, 2.0, 0.5]


def test_standard_error_reaches_reward_journal_and_environment(tmp_path):
    problem, score = free_problem()
    seen = []

    def mine(result):
        seen.append(result)
        return result.score

    def search_again():
        agent = RandomAgent(problem, seed=0)
        path = tmp_path / "j"
        judge = lambda policy: Measured(score(policy), 0.001)  # noqa: E731
        return search(problem, judge, agent, episodes=4, seed=0, reward=mine, journal_path=path)

    found = search_again()
    assert [record.standard_error for record in found.episodes] == [0.001] * 4
    assert [result.standard_error for result in seen] == [0.001] * 4
    assert seen[0].dense == problem.policy_costs(problem.dense.tolist())
    header, first, *_ = (json.loads(line) for line in (tmp_path / "j").read_text().splitlines())
    assert header["reward"] == "mine"
    assert first["standard_error"] == 0.001
    assert search_again() == found
    assert len(seen) == 4  # replayed
    with pytest.raises(RunError, match="its reward is 'mine', this search's is None"):
        search(problem, score, RandomAgent(problem, seed=0), episodes=4, seed=0, journal_path=tmp_path / "j")

    env = PruningEnv(problem, lambda policy: Measured(score(policy), 0.002), reward=get_reward("r_flops"))
    env.reset()
    for _ in problem.decisions:
        _, reward, _, _, info = env.step(np.array([0.5], dtype=np.float32))
    assert info["standard_error"] == 0.002
    assert reward == pytest.approx(-(1 - info["score"]) * math.log(info["costs"]["macs"]))


def test_journals_of_the_error_reward_do_not_name_it(tmp_path):
    problem, score = residual_problem(6)
    search(problem, score, RandomAgent(problem, seed=0), episodes=2, seed=0, journal_path=tmp_path / "j")
    header, first, _ = (json.loads(line) for line in (tmp_path / "j").read_text().splitlines())
    assert list(header) == ["journal", "seed", "agent", "decisions", "floor", "settings", "sum"]
    assert list(first) == ["episode", "keep", "cost", "score", "reward", "sum"]


def test_record_of_a_failure_has_no_standard_error():
    with pytest.raises(ValueError, match=r"standard error of 0.1 for no score"):
        EpisodeRecord(0, (1,), {}, None, None, "boom", 0.1)


def test_agent_finds_a_smaller_network_within_the_loss_than_its_baselines():
    problem, score = free_problem()
    reward = SmallestWithin(0.02, score(problem.dense.tolist()), Metric.MACS)

    def share(name, seed):
        agent = create_agent(name, SearchTask(problem, episodes=60, seed=seed))
        return -search(problem, score, agent, episodes=60, seed=seed, reward=reward).best.reward

    ddpg, random = (np.mean([share(name, seed) for seed in (0, 1)]) for name in ("ddpg", "random"))
    assert ddpg < min(random, share("uniform", 0)) < 1


def test_log_reward_is_maximised():
    problem, score = free_problem()
    reward = get_reward("r_flops")
    agent = create_agent("ddpg", SearchTask(problem, episodes=60, seed=0))
    best = search(problem, score, agent, episodes=60, seed=0, reward=reward).best
    dense = score(problem.dense.tolist())
    assert best.reward == pytest.approx(-(1 - best.score) * math.log(best.cost["macs"]))
    assert best.reward > -(1 - dense) * math.log(problem.cost(Metric.MACS, problem.dense))
