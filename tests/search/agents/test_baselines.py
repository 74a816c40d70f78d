"""Random and uniform policies."""

import numpy as np
import pytest

from amc.search.agents.baselines import RUNGS, RampAgent, RandomAgent, UniformAgent
from amc.search.bounds import Bounds
from amc.search.budget import Metric, parse_budgets
from amc.search.environment import roll_out
from amc.search.problem import Decision, LayerFeatures, Problem
from amc.search.surface import Surface
from tests.search.toys import ProductCost, chain_problem, residual_problem


def play(problem, agent, episode=0):
    agent.begin_episode(episode, 0)
    return roll_out(problem, Bounds(problem), agent.act).keep_counts


@pytest.mark.parametrize("make", [residual_problem, chain_problem])
@pytest.mark.parametrize("budget", ["macs<=50%", "macs<=33%", "macs<=70%,params<=50%"])
def test_random_policies_are_on_the_surface(make, budget):
    problem, _ = make(budget=budget)
    agent, bounds = RandomAgent(problem, seed=0), Bounds(problem)
    policies = [play(problem, agent, episode) for episode in range(20)]
    full = bounds.fullness(np.array(policies)).max(axis=-1)
    assert (full <= 1).all()
    assert (full >= 0.98).all()
    assert len(set(policies)) == 20


def test_projection_moves_every_group_by_the_same_amount():
    problem, _ = residual_problem(9)
    surface = Surface(problem)
    requested = np.linspace(0.5, 0.6, 9)
    projected = surface.project(requested)
    assert np.ptp(projected - requested) < 1e-12
    # macs = 442368 + sum of coefficient * keep: the surface is a plane, so the shift has a closed form.
    cost = problem.costs[problem.metric]
    dense = float(cost(problem.dense))
    slope = dense - 442_368
    expected = 442_368 + float(np.dot(requested, np.full(9, slope / 9)))
    assert projected[0] - requested[0] == pytest.approx((0.5 * dense - expected) / slope, abs=0.02)


@pytest.mark.parametrize("make", [residual_problem, chain_problem])
@pytest.mark.parametrize("budget", ["macs<=50%", "macs<=33%", "macs<=70%,params<=50%"])
def test_uniform_keeps_one_fraction_within_a_step_and_meets_the_budget(make, budget):
    problem, _ = make(budget=budget)
    agent = UniformAgent(problem)
    assert agent.max_episodes == 1
    policy = play(problem, agent)
    surface = Surface(problem)
    fractions, wanted = np.array(policy) / problem.dense, surface.project(np.full(len(problem.decisions), 0.5))
    for decision, fraction, want in zip(problem.decisions, fractions, wanted, strict=True):
        assert abs(fraction - want) * decision.size < max(np.diff(decision.choices)), decision.name
    assert 0.98 <= float(Bounds(problem).fullness(np.array(policy)).max()) <= 1


@pytest.mark.parametrize("agent", [UniformAgent, lambda problem: RampAgent(problem, "deep")])
@pytest.mark.parametrize("limit", ["30%", "45%", "50%", "62%"])
def test_a_small_last_group_does_not_take_what_the_others_leave_over(agent, limit):
    """A classifier of 640 weights after layers that are rounded to hundreds of weights."""
    sizes, steps = [9216] * 5 + [640], [100] * 5 + [1]
    layer = LayerFeatures(n=1, c=1, h=1, w=1, stride=1, k=1, macs=1)
    decisions = tuple(
        Decision(f"layer{place}", size, (*range(step, size, step), size), layer)
        for place, (size, step) in enumerate(zip(sizes, steps, strict=True))
    )
    cost = ProductCost(tuple((1.0, (place,)) for place in range(len(sizes))))
    problem = Problem(decisions, {Metric.PARAMS: cost}, parse_budgets(f"params<={limit}"))
    chosen = agent(problem)
    requested = Surface(problem).project(np.full(6, 0.5) if chosen.name == "uniform" else np.linspace(1.0, 0.0, 6))
    fractions = np.array(play(problem, chosen)) / problem.dense
    assert np.abs(fractions - requested).max() < 100 / 9216 + 1e-9
    assert 0.98 <= float(Bounds(problem).fullness(np.array(play(problem, chosen))).max()) <= 1


def test_uniform_respects_the_least_keep_counts():
    problem, _ = residual_problem(9, "macs<=33%")
    assert (Surface(problem).uniform() >= problem.least / problem.dense).all()


def test_same_seed_same_random_policies():
    problem, _ = residual_problem(9)
    first, second = RandomAgent(problem, seed=3), RandomAgent(problem, seed=3)
    other = RandomAgent(problem, seed=4)
    a, b, c = ([play(problem, agent, i) for i in range(5)] for agent in (first, second, other))
    assert a == b
    assert a != c


def test_without_a_budget_requested_fractions_are_only_clipped():
    problem, _ = residual_problem(9)
    free = Surface(Problem(problem.decisions, problem.costs))
    assert free.project(np.full(9, 2.0)).tolist() == [1.0] * 9
    assert free.project(np.full(9, 0.0)).tolist() == free.least_fractions.tolist()


@pytest.mark.parametrize("make", [residual_problem, chain_problem])
def test_without_a_budget_random_policies_cover_the_range_of_costs(make):
    problem, _ = make()
    free = Problem(problem.decisions, problem.costs)
    agent = RandomAgent(free, seed=0)
    costs = [free.cost(free.metric, play(free, agent, episode)) for episode in range(200)]
    least, dense = free.cost(free.metric, free.least), free.cost(free.metric, free.dense)
    where = np.histogram((np.array(costs) - least) / (dense - least), bins=5, range=(0, 1))[0]
    # Independent draws would all lie within the middle fifths.
    assert (where >= 0.08 * 200).all()
    fractions = np.stack([Surface(free).sample(np.random.default_rng(i)) for i in range(50)])
    assert (fractions >= free.least / free.dense).all()
    assert (fractions <= 1).all()
    assert np.ptp(fractions, axis=1).max() > 0.5  # policies are not all uniform


def test_without_a_budget_uniform_offers_a_ladder():
    problem, _ = residual_problem(9)
    free = Problem(problem.decisions, problem.costs)
    agent = UniformAgent(free)
    assert agent.max_episodes == RUNGS
    policies = [play(free, agent, episode) for episode in range(RUNGS)]
    assert policies[0] == tuple(free.dense)
    assert policies[-1] == tuple(free.least)
    costs = [free.cost(free.metric, policy) for policy in policies]
    assert costs == sorted(costs, reverse=True)
    # Dense 1.0 down to 0.25 (the least of 16 and 32 channels), in equal steps.
    least = float((free.least / free.dense).min())
    fractions = np.array(policies[10]) / free.dense
    assert fractions == pytest.approx(1 - 10 / (RUNGS - 1) * (1 - least), abs=1 / 16 + 1e-9)


@pytest.mark.parametrize("name", ["shallow", "deep"])
def test_without_a_budget_ramps_are_offered_at_every_level(name):
    problem, _ = residual_problem(9)
    free = Problem(problem.decisions, problem.costs)
    agent = RampAgent(free, name)
    assert agent.max_episodes == RUNGS
    policies = [play(free, agent, episode) for episode in range(RUNGS)]
    assert (policies[0], policies[-1]) == (tuple(free.dense), tuple(free.least))
    middle = np.array(policies[RUNGS // 2]) / free.dense
    assert (middle[-1] - middle[0] > 0.4) == (name == "shallow")
    assert (middle[0] - middle[-1] > 0.4) == (name == "deep")


def test_projection_to_a_cost_replaces_the_budget():
    problem, _ = chain_problem()
    free = Problem(problem.decisions, problem.costs)
    requested, dense = np.linspace(0.4, 0.9, len(free.decisions)), free.cost(free.metric, free.dense)
    projected = Surface(free).project(requested, cost=0.3 * dense)
    assert free.cost(free.metric, np.rint(projected * free.dense)) == pytest.approx(0.3 * dense, rel=0.02)
    assert projected == pytest.approx(Surface(chain_problem(budget="macs<=30%")[0]).project(requested))
