"""The agents that the default agent is compared with: each keeps the rules of all agents, and beats random policies."""

import itertools
import statistics
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from amc.errors import AmcError
from amc.search import AGENTS, Metric, Problem, SearchTask, create_agent, parse_budgets, search
from amc.search.rewards import REWARDS
from tests.search.toys import ProductCost, chain_problem, residual_problem

GP = pytest.param("optuna-gp", marks=pytest.mark.slow)
PLANNERS = ("planner", "around-best", "swaps", "spdy", "cma", "optuna-tpe")
RIVALS = ("ddpg-paper", *PLANNERS, "optuna-gp")
EPISODES = 24
SEEDS = {"optuna-gp": 2}  # its model takes half a minute for 60 policies
SMALL = {"ddpg-paper": {"hidden": 16, "batch_size": 8}}  # options that make an agent fast


def latency_problem(blocks=6):
    """Costs looked up in a table with plateaus, as measured latencies have."""
    problem, score = residual_problem(blocks)

    def milliseconds(keep):
        steps = np.ceil(np.asarray(keep) / np.array([d.size for d in problem.decisions]) * 5) / 5
        return 1.0 + (steps * np.linspace(0.5, 1.5, blocks)).sum(axis=-1)

    costs = {**problem.costs, Metric.LATENCY: milliseconds}
    return Problem(problem.decisions, costs, parse_budgets("latency<=60%")), score


def free_problem():
    problem, score = residual_problem(6)
    return Problem(problem.decisions, problem.costs), score


def one_choice_problem():
    """The third group must stay whole."""
    problem, score = residual_problem(6, "macs<=60%")
    decisions = list(problem.decisions)
    decisions[2] = replace(decisions[2], choices=(decisions[2].size,))
    return replace(problem, decisions=tuple(decisions)), score


PROBLEMS = {
    "macs": lambda: chain_problem(8),
    "two budgets": lambda: residual_problem(6, "macs<=60%,params<=40%"),
    "latency": latency_problem,
    "no budget": free_problem,
    "one group": lambda: residual_problem(1, "macs<=90%"),
    "one choice": one_choice_problem,
    "dense": lambda: residual_problem(4, "macs<=100%"),
    "least": lambda: residual_problem(3, "macs<=31.55%"),  # little above what the least keep counts cost
}


def run(name, problem, score, *, episodes=EPISODES, seed=0, path=None, **options):
    reward = REWARDS["r_err" if problem.budgets else "r_flops"]
    task = SearchTask(problem, episodes=episodes, seed=seed, reward=reward)
    agent = create_agent(name, task, {**SMALL.get(name, {}), **options})
    return search(problem, score, agent, episodes=episodes, seed=seed, journal_path=path, reward=reward)


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("name", RIVALS)
def test_every_policy_is_within_the_budgets(name, kind):
    problem, score = PROBLEMS[kind]()
    result = run(name, problem, score)
    assert len(result.episodes) == EPISODES
    for budget in problem.budgets:
        assert max(record.cost[budget.metric] for record in result.episodes) <= problem.limit(budget)


@pytest.mark.parametrize("kind", ["macs", "two budgets", "latency", "no budget", "one choice"])
@pytest.mark.parametrize("name", RIVALS)
def test_every_policy_is_new(name, kind):
    problem, score = PROBLEMS[kind]()
    assert len({record.keep for record in run(name, problem, score).episodes}) == EPISODES


@pytest.mark.parametrize("kind", ["macs", "no budget"])
@pytest.mark.parametrize("name", ["ddpg-paper", *PLANNERS, GP])
def test_cut_after_any_line_and_resumed_it_is_the_uninterrupted_run(tmp_path, name, kind):
    problem, score = PROBLEMS[kind]()
    answers = {5: float("nan"), 11: None}  # two episodes fail

    def scorer(first):
        calls = itertools.count(first)
        return lambda policy: answers.get(next(calls), score(policy))

    whole = run(name, problem, scorer(0), path=tmp_path / "whole", episodes=16)
    assert whole.failed == 2
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    repeats = 16 - len({record.keep for record in whole.episodes})
    assert repeats == 0  # so that the calls can be counted
    for kept in range(1, len(lines) + 1):
        (tmp_path / "part").write_bytes(b"".join(lines[:kept]))
        assert run(name, problem, scorer(kept - 1), path=tmp_path / "part", episodes=16) == whole
        assert (tmp_path / "part").read_bytes() == b"".join(lines)


@pytest.mark.parametrize("name", RIVALS)
def test_the_seed_alone_decides_and_global_generators_are_left_alone(name):
    problem, score = residual_problem(6)
    runs = []
    for state in (0, 1):
        torch.manual_seed(state)
        np.random.seed(state)  # noqa: NPY002 - the global generator is what this test watches
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
        runs.append(run(name, problem, score, seed=3))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert runs[0] == runs[1]
    assert run(name, problem, score, seed=4) != runs[0]


@pytest.mark.parametrize("name", [*PLANNERS, "optuna-gp"])
def test_the_first_policy_is_the_uniform_one_and_without_a_budget_the_dense_one(name):
    problem, score = residual_problem(9)
    uniform = run("uniform", problem, score).best.keep
    if name != "spdy":  # which begins with what the free table alone gives, see test_spdy.py
        assert run(name, problem, score, episodes=1).best.keep == uniform
    problem, score = free_problem()
    assert run(name, problem, score, episodes=1).best.keep == tuple(problem.dense)


@pytest.mark.parametrize("name", [*PLANNERS, GP])
def test_it_beats_as_many_random_policies(name):
    gains = []
    for seed in range(SEEDS.get(name, 6)):
        problem, score = residual_problem(9, "macs<=50%", seed)
        best = {n: run(n, problem, score, episodes=60, seed=seed).best.score for n in (name, "random")}
        gains.append(best[name] - best["random"])
    assert statistics.median(gains) > 0.005  # half a point of accuracy


@pytest.mark.parametrize("name", [*PLANNERS, GP])
def test_without_a_budget_it_beats_as_many_random_policies(name):
    gains = []
    for seed in range(SEEDS.get(name, 6)):
        problem, score = residual_problem(9, "macs<=50%", seed)
        free = Problem(problem.decisions, problem.costs)
        best = {n: run(n, free, score, episodes=60, seed=seed).best.reward for n in (name, "random")}
        gains.append(best[name] - best["random"])
    assert statistics.median(gains) > 0


def test_options_are_given_by_name_and_named_in_errors():
    problem, _ = residual_problem(3)
    task = SearchTask(problem, episodes=40, seed=0)
    assert create_agent("swaps", task, {"levels": 4}).settings()["levels"] == 4
    assert create_agent("ddpg", task, {"elite_fraction": 0.5}).settings()["elite_fraction"] == 0.5
    assert create_agent("ddpg", task, {"warmup_episodes": 20}).settings()["noise_decay"] == pytest.approx(0.2**0.05)
    for name, options, message in (
        ("swap", {}, "agent 'swap' is unknown; did you mean 'swaps'"),
        ("swaps", {"level": 4}, "agent 'swaps' has no option 'level'; did you mean 'levels'"),
        ("swaps", {"zeal": 4}, "'swaps' has no option 'zeal'; its options are warmup_episodes, most_swaps, levels"),
        ("random", {"seed": 4}, "agent 'random' has no options; leave out 'seed'"),
        ("swaps", {"levels": 0}, "agent 'swaps': levels must be at least 1, got 0"),
        ("swaps", {"levels": "four"}, "agent 'swaps': levels must be a whole number, got 'four'"),
        ("swaps", {"most_swaps": 10**9}, r"agent 'swaps': most-swaps must be in \[1, 1000\], got 1000000000"),
        ("spdy", {"spread": 1e9}, "agent 'spdy': spread must be above 0 and at most 10, got 1000000000.0"),
        ("cma", {"population": 2}, r"agent 'cma': population must be in \[3, 1000\], got 2"),
        ("optuna-tpe", {"startup_episodes": 0}, "Optuna: startup-episodes must be at least 1, got 0"),
        (
            "ddpg",
            {"elite_sigma": 1e300},
            r"DDPG: elite-sigma must be above 0 and at most 1, got 1e\+300",
        ),  # never truncated
        ("ddpg-paper", {"sigma": 2}, "DDPG: sigma must be above 0 and at most 1, got 2"),
        ("around-best", {"groups": 0}, "agent 'around-best': groups must be above 0 and at most 1, got 0"),
        ("ddpg", {"batch_size": 0}, "DDPG: batch-size must be at least 1, got 0"),
        ("ddpg", {"tau": float("nan")}, "DDPG: tau must be above 0 and at most 1, got nan"),
        ("ddpg-paper", {"warmup_episodes": "few"}, "DDPG: warmup_episodes must be a whole number, got 'few'"),
        (lambda task: None, {"levels": 4}, "an agent of your own takes no options here; let its factory set levels"),
    ):
        with pytest.raises(AmcError, match=message):
            create_agent(name, task, options)


@pytest.mark.parametrize(("name", "module"), [("cma", "cma"), ("optuna-tpe", "optuna"), ("optuna-gp", "optuna")])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, name, module):
    problem, _ = residual_problem(3)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(AmcError, match=rf"^agent '{name}' needs the extra: pip install 'amc-compress\[rivals\]'$"):
        create_agent(name, SearchTask(problem, episodes=4, seed=0))


def _options():
    problem, _ = residual_problem(3)
    task = SearchTask(problem, episodes=40, seed=0)
    return [
        pytest.param(name, option, value, id=f"{name}: {option}")
        for name in AGENTS
        for option, value in create_agent(name, task).settings().items()
        if option not in ("seed", "earlier")  # not options: the task's
    ]


@pytest.mark.parametrize(("name", "option", "value"), _options())
def test_every_option_can_be_given_and_refuses_what_is_no_value(name, option, value):
    problem, _ = residual_problem(3)
    task = SearchTask(problem, episodes=40, seed=0)
    assert create_agent(name, task, {option: value}).settings()[option] == value
    for wrong in ("much", float("nan"), [value], -1 if not isinstance(value, bool) else 2):
        with pytest.raises(AmcError, match=rf"{option}|{option.replace('_', '-')}"):
            create_agent(name, task, {option: wrong})


class TestPaper:
    """`ddpg-paper` decides as published."""

    def test_its_settings_are_the_papers(self):
        problem, _ = residual_problem(3)
        settings = create_agent("ddpg-paper", SearchTask(problem, episodes=400, seed=0)).settings()
        assert settings == {
            "warmup_episodes": 100, "hidden": 300, "actor_lr": 1e-4, "critic_lr": 1e-3, "tau": 0.01, "batch_size": 64,
            "replay_size": 2000, "gamma": 1.0, "sigma": 0.5, "noise_decay": 0.95, "baseline_decay": 0.95,
        }  # fmt: skip
        short = create_agent("ddpg-paper", SearchTask(problem, episodes=40, seed=0)).settings()
        assert (short["warmup_episodes"], short["noise_decay"]) == (10, 0.95)

    def test_it_learns_to_prune_the_group_that_costs_no_accuracy(self):
        """Two groups that cost the same; only the first one's channels matter."""
        problem, _ = residual_problem(2)
        problem = replace(problem, costs={Metric.MACS: ProductCost(((1.0 / 16, (0,)), (1.0 / 32, (1,))))})
        options = {"hidden": 64, "batch_size": 64, "actor_lr": 1e-3, "noise_decay": 0.97}
        result = run("ddpg-paper", problem, lambda keep: keep[0] / 16, episodes=160, **options)
        first = np.array([record.score for record in result.episodes])
        assert first[-30:].mean() > first[:40].mean() + 0.1
