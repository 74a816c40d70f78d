"""The planner against every policy of small problems."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from amc.search import Metric, Problem, parse_budgets
from amc.search.planning import Planner
from amc.search.score_model import Damages
from tests.search.toys import chain_problem, residual_problem

MAKE = {"sums of costs": (residual_problem, 5), "products of costs": (chain_problem, 4)}


def small(make, budget: str, groups: int = 4) -> Problem:
    return make(groups, budget)[0]


def drawn(problem: Problem, seed: int, pairs: float, apart: float = 0.0) -> Damages:
    """Damages that grow as groups lose more, in unequal steps; neighbours' products of either sign, and distances."""
    generator = np.random.default_rng(seed)
    widest = max(len(d.choices) for d in problem.decisions)
    tables = np.zeros((len(problem.decisions), widest))
    for row, decision in zip(tables, problem.decisions, strict=True):
        steps = generator.lognormal(0, 1.5, len(decision.choices) - 1)
        row[: len(decision.choices) - 1] = steps[::-1].cumsum()[::-1]
    pairs, apart = (scale * generator.normal(size=len(tables) - 1) for scale in (pairs, apart))
    return Damages(tables, pairs, np.abs(apart))


def everything(problem: Problem) -> np.ndarray:
    policies = np.array(list(itertools.product(*(d.choices for d in problem.decisions))))
    for budget in problem.budgets:
        policies = policies[problem.costs[budget.metric](policies) <= problem.limit(budget)]
    return policies


@pytest.mark.parametrize(
    ("pairs", "apart"), [(0.0, 0.0), (1.0, 0.0), (0.0, 10.0)], ids=["alone", "with neighbours", "that must agree"]
)
@pytest.mark.parametrize("budget", ["macs<=50%", "macs<=30%", "macs<=60%,params<=45%"])
@pytest.mark.parametrize(("make", "groups"), MAKE.values(), ids=MAKE)
def test_a_plan_is_the_best_policy_or_next_to_it(make, groups: int, budget: str, pairs: float, apart: float) -> None:
    """Of all policies within the budgets: the best in most draws, and always among the best fiftieth."""
    problem = small(make, budget, groups)
    planner, policies, exact = Planner(problem), everything(problem), 0
    for seed in range(20):
        damages = drawn(problem, seed, pairs, apart)
        values = planner.damage(damages, policies)
        plan = planner.plan(damages)
        value = float(planner.damage(damages, np.array(plan)))
        assert plan in set(map(tuple, policies.tolist()))
        assert np.mean(values < value - 1e-9) <= 0.02
        exact += value <= values.min() + 1e-9
    assert exact >= 12


def test_a_start_is_improved_and_never_worsened() -> None:
    problem = small(chain_problem, "macs<=50%")
    planner, policies = Planner(problem), everything(problem)
    damages = drawn(problem, 3, 1.0)
    best = policies[int(np.argmin(planner.damage(damages, policies)))]
    assert planner.plan(damages, [tuple(best.tolist())]) == tuple(best.tolist())


def test_a_known_plan_gives_way_to_its_best_neighbour() -> None:
    problem = small(residual_problem, "macs<=50%")
    planner, damages, known = Planner(problem), drawn(problem, 1, 0.0), set()
    values = []
    for _ in range(30):
        plan = planner.plan(damages, known=known)
        assert plan not in known
        assert problem.cost(Metric.MACS, plan) <= problem.limit(problem.budgets[0])
        known.add(plan)
        values.append(float(planner.damage(damages, np.array(plan))))
    policies = everything(problem)
    assert values[0] == min(values)
    assert np.median(values) <= np.quantile(planner.damage(damages, policies), 0.3)


@pytest.mark.parametrize("share", [0.2, 0.55, 1.0])
def test_a_limit_replaces_the_budgets(share: float) -> None:
    problem = small(residual_problem, "macs<=50%")
    limit = share * problem.cost(Metric.MACS, problem.dense)
    limit = max(limit, problem.cost(Metric.MACS, problem.least))
    planner, damages = Planner(problem), drawn(problem, 0, 0.0)
    plan = planner.within(limit).plan(damages)
    assert problem.cost(Metric.MACS, plan) <= limit
    if share == 1.0:
        assert plan == tuple(problem.dense.tolist())
    assert problem.cost(Metric.MACS, planner.plan(damages)) <= problem.limit(problem.budgets[0])  # its own, still


def test_a_cost_that_falls_only_when_several_groups_shrink_is_met() -> None:
    """Like the latency of a runtime that pads: no single move frees anything."""
    problem = small(residual_problem, "macs<=100%", groups=3)

    def padded(keep):
        return 10.0 + 30.0 * (np.asarray(keep) / problem.dense > 0.5).any(axis=-1)

    stairs = Problem(problem.decisions, {Metric.MACS: padded}, parse_budgets("macs<=50%"))
    plan = Planner(stairs).plan(drawn(stairs, 0, 0.0))
    assert stairs.cost(Metric.MACS, plan) == 10.0
    assert all(keep / size > 0.25 for keep, size in zip(plan, stairs.dense, strict=True))


def test_equal_damages_give_equal_plans() -> None:
    problem = small(chain_problem, "macs<=50%", groups=8)
    first, second = (Planner(problem).plan(drawn(problem, 7, 0.5)) for _ in range(2))
    assert first == second
