"""The gymnasium environment."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from amc.errors import EvaluationError
from amc.search.bounds import Bounds
from amc.search.budget import Budget, Metric
from amc.search.environment import FEATURES, PruningEnv, Walk, roll_out
from amc.search.problem import Decision, LayerFeatures, Problem
from tests.search.toys import ProductCost, chain_problem, residual_problem


def make_env():
    problem, score = residual_problem(9)
    return PruningEnv(problem, score), problem, score


def test_check_env_passes():
    check_env(make_env()[0], skip_render_check=True)


def test_only_the_last_step_has_a_reward():
    env, problem, score = make_env()
    env.reset(seed=0)
    rewards, infos, ends = [], [], []
    for _ in problem.decisions:
        observation, reward, terminated, truncated, info = env.step(np.array([0.5], dtype=np.float32))
        rewards.append(reward)
        infos.append(info)
        ends.append((terminated, truncated))
    policy = tuple(info["keep_count"] for info in infos)
    assert rewards[:-1] == [0.0] * (len(rewards) - 1)
    assert rewards[-1] == pytest.approx(score(policy) - 1)
    assert ends == [(False, False)] * (len(ends) - 1) + [(True, False)]
    assert infos[-1]["policy"] == policy
    assert infos[-1]["costs"]["macs"] == problem.cost(Metric.MACS, policy)
    assert observation[-2] == 0  # nothing is left to remove
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.array([0.5], dtype=np.float32))


def test_executed_action_is_that_of_the_bounded_and_rounded_keep_count():
    env, problem, _ = make_env()
    env.reset()
    kept = []
    for decision in problem.decisions:
        _, _, _, _, info = env.step(np.array([0.0], dtype=np.float32))
        kept.append(info["keep_count"])
        assert info["keep_count"] in decision.choices
        assert info["executed_action"][0] == pytest.approx(1 - info["keep_count"] / decision.size)
    # All requested sparsities are 0: the first groups stay dense, the last are pruned to meet the budget.
    assert kept[0] == problem.decisions[0].size
    assert kept[-1] == problem.decisions[-1].choices[0]
    assert 0.49 <= problem.cost(Metric.MACS, kept) / problem.cost(Metric.MACS, problem.dense) <= 0.5


def test_features_match_hand_arithmetic():
    # Widths 4 and 8; macs = 10 + 3 a + 2 a b, so dense 10 + 12 + 64 = 86.
    decisions = (
        Decision("a", 4, (1, 2, 4), LayerFeatures(n=8, c=4, h=6, w=6, stride=2, k=3, macs=76)),
        Decision("b", 8, (2, 8), LayerFeatures(n=5, c=8, h=3, w=3, stride=1, k=1, macs=64)),
    )
    cost = ProductCost(((10.0, ()), (3.0, (0,)), (2.0, (0, 1))))
    problem = Problem(decisions, {Metric.MACS: cost}, (Budget.parse("macs<=60%"),))
    walk = Walk(problem, Bounds(problem, floor=None))
    # b can go from 8 to 2 while a is dense: 2 * 4 * 6 = 48 of 86.
    expected = [0, 8 / 8, 4 / 8, 1, 1, 1, 1, 1, 0, 48 / 86, 0]
    assert walk.observation.tolist() == pytest.approx(expected)
    walk.advance(0.4)  # wants 2.4 of 4: keeps 2; macs are then 10 + 6 + 32 = 48
    expected = [0.5, 5 / 8, 8 / 8, 0.5, 0.5, 0.5, 1 / 3, 64 / 76, 38 / 86, 0, 0.5]
    assert walk.observation.tolist() == pytest.approx(expected)
    walk.advance(0.0)  # 8 stay: 48 <= 51.6
    assert walk.keep_counts == (2, 8)
    assert walk.observation.tolist() == pytest.approx([1, 0, 0, 0, 0, 0, 0, 0, 38 / 86, 0, 0])


@pytest.mark.parametrize("make", [residual_problem, chain_problem])
def test_observations_and_transitions_are_consistent(make):
    problem, _ = make()
    generator = np.random.default_rng(0)
    rollout = roll_out(problem, Bounds(problem), lambda _: float(generator.random()))
    assert len(rollout.transitions) == len(problem.decisions) == len(rollout.keep_counts)
    assert [t.done for t in rollout.transitions] == [False] * (len(problem.decisions) - 1) + [True]
    for first, second in itertools.pairwise(rollout.transitions):
        np.testing.assert_array_equal(first.next_observation, second.observation)
        assert second.observation[FEATURES.index("previous_action")] == pytest.approx(first.action)
    every = np.stack([t.next_observation for t in rollout.transitions])
    assert every.min() >= 0
    assert every.max() <= 1
    assert (np.diff(every[:, FEATURES.index("reduced")]) >= 0).all()
    for keep, transition, decision in zip(rollout.keep_counts, rollout.transitions, problem.decisions, strict=True):
        assert transition.action == pytest.approx(1 - keep / decision.size)


def test_score_that_is_not_finite_is_refused():
    problem, _ = residual_problem(3)
    env = PruningEnv(problem, lambda _: float("nan"))
    env.reset()
    half = np.array([0.5], dtype=np.float32)
    for _ in problem.decisions[1:]:
        env.step(half)
    with pytest.raises(EvaluationError, match="nan"):
        env.step(half)


def test_stable_baselines3_ddpg_drives_it():
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    env, problem, _ = make_env()
    agent = stable_baselines3.DDPG("MlpPolicy", env, learning_starts=90, batch_size=16, seed=0)
    agent.learn(270)
    assert agent.num_timesteps == 270
    observation, _ = env.reset()
    terminated = False
    while not terminated:
        action, _ = agent.predict(observation, deterministic=True)
        observation, reward, terminated, _, info = env.step(action)
    assert -1 < reward < 0
    assert 0.98 * 0.5 <= info["costs"]["macs"] / problem.cost(Metric.MACS, problem.dense) <= 0.5
