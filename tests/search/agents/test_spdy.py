"""Dynamic programming over a table of errors: exact where costs add up, and within every limit where they do not."""

import itertools

import numpy as np
import pytest

from amc.search import SearchTask, create_agent, search
from amc.search.agents.spdy import Programme
from amc.search.surface import Surface
from tests.search.toys import chain_problem, residual_problem


def errors_of(problem, seed):
    """Errors that fall with the keep count, of very unequal groups."""
    draw = np.random.default_rng(seed)
    return [draw.lognormal(0, 1.5) * (1 - np.array(d.choices) / d.size) ** 2 for d in problem.decisions]


def by_brute_force(problem, errors):
    """Every policy within the budgets, with its sum of errors; the best first."""
    places = itertools.product(*(range(len(d.choices)) for d in problem.decisions))
    found = []
    for place in places:
        keep = tuple(d.choices[p] for d, p in zip(problem.decisions, place, strict=True))
        if all(problem.cost(b.metric, keep) <= problem.limit(b) for b in problem.budgets):
            found.append((sum(row[p] for row, p in zip(errors, place, strict=True)), keep))
    return sorted(found)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("budget", ["macs<=40%", "macs<=50%", "macs<=75%", "macs<=100%"])
def test_the_optimum_is_exact_where_costs_add_up(budget, seed):
    problem, _ = residual_problem(4, budget)
    errors = errors_of(problem, seed)
    keep = tuple(Programme(problem, Surface(problem)).solve(errors))
    assert keep == by_brute_force(problem, errors)[0][1]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("make", "budget"),
    [(residual_problem, "macs<=50%,params<=45%"), (chain_problem, "macs<=50%"), (chain_problem, "macs<=30%")],
)
def test_other_costs_are_held_exactly_and_few_policies_are_better(make, budget, seed):
    problem, _ = make(4, budget)
    errors = errors_of(problem, seed)
    keep = tuple(Programme(problem, Surface(problem)).solve(errors))
    ranked = [policy for _, policy in by_brute_force(problem, errors)]
    assert ranked.index(keep) < 0.01 * len(ranked)


def test_without_a_budget_a_cost_is_the_limit():
    problem, _ = residual_problem(4, "macs<=100%")
    errors, programme = errors_of(problem, 0), Programme(problem, Surface(problem))
    for share in (0.5, 0.8):
        limit = share * problem.cost(problem.metric, problem.dense)
        bounded, _ = residual_problem(4, f"macs<={share:%}")
        expected = by_brute_force(bounded, errors)[0][1]
        assert tuple(programme.solve(errors, cost=limit)) == expected


def test_the_first_policy_is_the_best_by_the_tasks_table_alone():
    problem, score = residual_problem(4)
    errors = errors_of(problem, 3)
    agent = create_agent("spdy", SearchTask(problem, episodes=1, seed=0, errors=tuple(errors)))
    best = search(problem, score, agent, episodes=1, seed=0).best
    assert best.keep == by_brute_force(problem, errors)[0][1]
    # Without a table, the error is the squared share of what is removed.
    assumed = [(1 - np.array(d.choices) / d.size) ** 2 for d in problem.decisions]
    agent = create_agent("spdy", SearchTask(problem, episodes=1, seed=0))
    best = search(problem, score, agent, episodes=1, seed=0).best
    least, equal = by_brute_force(problem, assumed)[0][0], [1 - np.array(best.keep) / problem.dense]
    assert float((np.array(equal) ** 2).sum()) == pytest.approx(least)
