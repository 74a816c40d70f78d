"""The DDPG agent: what it stores, how it explores, and that it repeats itself bit for bit."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from amc.search.agents.baselines import RandomAgent, UniformAgent
from amc.search.agents.ddpg import DDPGAgent, DDPGConfig, ReplayBuffer
from amc.search.bounds import Bounds
from amc.search.budget import Metric
from amc.search.environment import roll_out
from amc.search.loop import search
from amc.search.problem import Problem
from tests.search.toys import record_of, residual_problem

SMALL = DDPGConfig(warmup_episodes=4, hidden=16, batch_size=8, replay_size=40, updates_per_episode=2)


def play(agent, problem, score, episodes):
    bounds, rollouts = Bounds(problem), []
    for episode in range(episodes):
        agent.begin_episode(episode, 0)
        rollout = roll_out(problem, bounds, agent.act)
        agent.end_episode(rollout, record_of(problem, rollout.keep_counts, score(rollout.keep_counts)))
        rollouts.append(rollout)
    return rollouts


def test_defaults_are_the_papers():
    config = DDPGConfig()
    assert (config.hidden, config.tau, config.batch_size, config.replay_size) == (300, 0.01, 64, 2000)
    assert (config.gamma, config.actor_lr, config.critic_lr, config.sigma) == (1.0, 1e-4, 1e-3, 0.5)
    assert config.warmup_episodes == DDPGConfig.for_episodes(400).warmup_episodes == 100


@pytest.mark.parametrize(("episodes", "warmup"), [(1, 1), (3, 1), (40, 10), (100, 25), (400, 100), (800, 100)])
def test_warmup_is_a_quarter_of_the_episodes_up_to_the_papers_hundred(episodes, warmup):
    assert DDPGConfig.for_episodes(episodes).warmup_episodes == warmup


def test_replay_holds_executed_actions_and_explicit_next_states():
    problem, score = residual_problem(9)
    agent = DDPGAgent(problem, SMALL, seed=0)
    rollouts = play(agent, problem, score, 4)
    transitions = [t for rollout in rollouts for t in rollout.transitions]
    observation, action, reward, following, done = agent.replay.batch(np.arange(36))
    executed = [1 - k / d.size for r in rollouts for k, d in zip(r.keep_counts, problem.decisions, strict=True)]
    np.testing.assert_allclose(action[:, 0].numpy(), executed, rtol=1e-6)
    np.testing.assert_array_equal(observation.numpy(), [t.observation for t in transitions])
    np.testing.assert_array_equal(following.numpy(), [t.next_observation for t in transitions])
    assert done[:, 0].tolist() == ([0.0] * 8 + [1.0]) * 4
    rewards = np.repeat([score(r.keep_counts) - 1 for r in rollouts], 9)
    np.testing.assert_allclose(reward[:, 0].numpy(), rewards, rtol=1e-6)


def test_replay_forgets_the_oldest():
    problem, score = residual_problem(9)
    agent = DDPGAgent(problem, SMALL, seed=0)
    rollouts = play(agent, problem, score, 5)
    assert len(agent.replay) == 40
    # 45 transitions went into 40 rows: the last five lie where the first five were.
    _, action, *_ = agent.replay.batch(np.arange(5))
    np.testing.assert_allclose(action[:, 0], [t.action for t in rollouts[-1].transitions[-5:]], rtol=1e-6)


def test_failed_episode_leaves_no_trace():
    problem, score = residual_problem(9)
    first, second = (DDPGAgent(problem, SMALL, seed=0) for _ in range(2))
    play(first, problem, score, 3)
    play(second, problem, score, 3)
    first.begin_episode(3, 0)
    rollout = roll_out(problem, Bounds(problem), first.act)
    first.end_episode(rollout, record_of(problem, rollout.keep_counts, None))
    assert len(first.replay) == len(second.replay) == 27


def test_untrained_actor_answers_the_uniform_policys_sparsity():
    problem, _ = residual_problem(9)
    agent = DDPGAgent(problem, SMALL, seed=0)
    uniform = 1 - float(agent.surface.uniform().mean())
    means = [agent.mean_action(np.full(11, x, dtype=np.float32)) for x in (0.0, 0.5, 1.0)]
    assert means == pytest.approx([uniform] * 3, abs=0.02)


def test_same_seed_same_run_whatever_the_number_of_threads():
    problem, score = residual_problem(9)
    config = DDPGConfig.for_episodes(12)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            agent = DDPGAgent(problem, config, seed=7)
            runs.append([r.keep_counts for r in play(agent, problem, score, 12)])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert runs[0] == runs[1] == runs[2]
    other = DDPGAgent(problem, config, seed=8)
    assert [r.keep_counts for r in play(other, problem, score, 12)] != runs[0]


def test_global_random_states_are_neither_read_nor_moved():
    problem, score = residual_problem(9)
    runs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global generator is what this test watches
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
        runs.append([r.keep_counts for r in play(DDPGAgent(problem, SMALL, seed=3), problem, score, 8)])
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
        assert random.getstate() == before[2]
    assert runs[0] == runs[1]


def test_empty_replay_buffer_has_no_transitions():
    assert len(ReplayBuffer(3)) == 0


def test_a_budget_of_the_dense_cost_can_be_searched() -> None:
    problem, score = residual_problem(3, "macs<=100%", 0)
    agent = DDPGAgent(problem, DDPGConfig.for_episodes(3), seed=0)
    result = search(problem, score, agent, episodes=3, seed=0)
    dense = problem.cost(Metric.MACS, problem.dense)
    assert all(record.cost["macs"] >= 0.98 * dense for record in result.episodes)


def test_without_a_budget_it_begins_with_the_dense_network_and_explores_about_the_cost_of_its_best() -> None:
    problem, _ = residual_problem(9)
    free = Problem(problem.decisions, problem.costs)
    config = DDPGConfig(warmup_episodes=20, hidden=16, batch_size=8, updates_per_episode=1, elite_fraction=1)
    agent = DDPGAgent(free, config, seed=0)
    bounds, shares = Bounds(free), []
    for episode in range(40):
        agent.begin_episode(episode, 0)
        rollout = roll_out(free, bounds, agent.act)
        # A reward that only the third policy has: all later ones explore around it.
        agent.end_episode(rollout, record_of(free, rollout.keep_counts, 1.0 if episode == 2 else 0.0))
        shares.append(free.cost(Metric.MACS, rollout.keep_counts) / free.cost(Metric.MACS, free.dense))
        if episode == 0:
            assert rollout.keep_counts == tuple(free.dense)
    assert min(shares[1:20]) < 0.4  # the warm-up covers the range
    assert max(shares[1:20]) > 0.8
    best = shares[2]
    assert all(0.9 * best <= share <= 1.06 * best for share in shares[20:])


def test_the_first_policy_under_a_budget_is_the_uniform_one_and_is_learnt_from() -> None:
    problem, score = residual_problem(9)
    (uniform,) = play(UniformAgent(problem), problem, score, 1)
    agent = DDPGAgent(problem, SMALL, seed=0)
    rollouts = play(agent, problem, score, 2)
    assert rollouts[0].keep_counts == uniform.keep_counts != rollouts[1].keep_counts
    _, action, reward, *_ = agent.replay.batch(np.arange(9))
    np.testing.assert_allclose(action[:, 0], [t.action for t in uniform.transitions], rtol=1e-6)
    np.testing.assert_allclose(reward[:, 0], [score(uniform.keep_counts) - 1] * 9, rtol=1e-6)


def test_a_search_of_an_earlier_version_begins_at_random_and_its_journal_names_no_first_policy() -> None:
    problem, score = residual_problem(9)
    (drawn,) = play(RandomAgent(problem, seed=5), problem, score, 1)  # the agents' generators begin alike
    earlier = DDPGAgent(problem, replace(SMALL, uniform_first=False), seed=5)
    assert play(earlier, problem, score, 1)[0].keep_counts == drawn.keep_counts
    assert "uniform_first" not in earlier.settings()
    assert DDPGAgent(problem, SMALL, seed=5).settings()["uniform_first"] is True
    assert not DDPGConfig.for_episodes(40, uniform_first=False).uniform_first
    assert DDPGConfig.for_episodes(40).uniform_first
