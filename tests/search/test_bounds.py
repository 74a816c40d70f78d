"""The feasible set: no overshoot, no false refusal, and the surface is met whenever it can be."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from amc.errors import BudgetError
from amc.search.bounds import Bounds, nearest_choice
from amc.search.budget import Budget, Metric
from amc.search.environment import Walk
from amc.search.problem import Decision, LayerFeatures, Problem
from tests.search.toys import ProductCost, residual_problem

LAYER = LayerFeatures(n=8, c=8, h=4, w=4, stride=1, k=3, macs=100)


@st.composite
def problems(draw, max_groups=4, max_choices=5):
    """Random affine-product costs, one to three budgets, and any reachable limits."""
    groups = draw(st.integers(1, max_groups))
    choices = [
        tuple(sorted(draw(st.sets(st.integers(1, 20), min_size=1, max_size=max_choices)))) for _ in range(groups)
    ]
    costs = {}
    for metric in (Metric.MACS, Metric.PARAMS, Metric.SIZE):
        single = [(float(draw(st.integers(0, 50))), (i,)) for i in range(groups)]
        pairs = [(float(draw(st.integers(0, 9))), (i, i + 1)) for i in range(groups - 1)]
        costs[metric] = ProductCost(((float(draw(st.integers(1, 40))), ()), *single, *pairs))
    decisions = tuple(Decision(f"g{i}", c[-1], c, LAYER) for i, c in enumerate(choices))
    free = Problem(decisions, costs)
    budgets = []
    limited = [(Metric.MACS,), (Metric.PARAMS, Metric.MACS), (Metric.SIZE, Metric.MACS, Metric.PARAMS)]
    for metric in draw(st.sampled_from(limited)):
        least, dense = free.cost(metric, free.least), free.cost(metric, free.dense)
        budgets.append(Budget(metric, absolute=least + draw(st.floats(0, 1)) * (dense - least)))
    return Problem(decisions, costs, tuple(budgets))


def policies(problem):
    return [np.array(p) for p in itertools.product(*(d.choices for d in problem.decisions))]


def fits(problem, policy):
    return all(problem.cost(b.metric, policy) <= problem.limit(b) for b in problem.budgets)


def fullness(problem, policy):
    return max(problem.cost(b.metric, policy) / problem.limit(b) for b in problem.budgets)


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([1, 30, 4096]))
def test_upper_bound_allows_exactly_the_keep_counts_with_a_feasible_completion(problem, lookahead):
    bounds = Bounds(problem, floor=None, lookahead=lookahead)
    feasible = [tuple(p) for p in policies(problem) if fits(problem, p)]
    for step in range(len(problem.decisions)):
        for prefix in {p[:step] for p in feasible}:
            completed = sorted({p[step] for p in feasible if p[:step] == prefix})
            assert bounds.allowed(prefix).tolist() == completed


GRID = 200  # weights of a layer, one keep count each: sparsity in steps of half a percent


@st.composite
def fine_grained(draw):
    """Fine-grained pruning, whose costs are linear in the keep counts, and the sparsities to request."""
    layers = draw(st.integers(1, 8))
    weights = draw(st.lists(st.integers(1, 500), min_size=layers, max_size=layers))  # cost of one keep count
    a_max = draw(st.lists(st.sampled_from([Fraction(4, 5), Fraction(49, 50)]), min_size=layers, max_size=layers))
    removed = draw(st.floats(0, 1))  # alpha: the share of the whole cost to remove
    requests = draw(st.lists(st.floats(0, 1), min_size=layers, max_size=layers))
    return weights, a_max, removed, requests


def algorithm_1(action, *, a_max, layer, rest, reduced, total, alpha):
    """The paper's Algorithm 1, with an a_max of each layer's own: `rest` sums a_max * W of the layers to come."""
    duty = alpha * total - rest - reduced
    return max(min(action, a_max), duty / layer)


@settings(max_examples=200, deadline=None)
@given(fine_grained())
def test_linear_costs_give_the_papers_algorithm_1(drawn):
    weights, a_max, share, requests = drawn
    choices = [tuple(range(int(GRID * (1 - a)), GRID + 1)) for a in a_max]
    decisions = tuple(Decision(f"g{i}", GRID, c, LAYER) for i, c in enumerate(choices))
    cost = ProductCost(tuple((float(w), (i,)) for i, w in enumerate(weights)))
    total, least = GRID * sum(weights), sum(w * c[0] for w, c in zip(weights, choices, strict=True))
    limit = math.floor(total - share * (total - least))
    assume(0 < limit <= total)
    alpha = Fraction(total - limit, total)
    problem = Problem(decisions, {Metric.PARAMS: cost}, (Budget(Metric.PARAMS, absolute=float(limit)),))
    walk, bounds = Walk(problem, Bounds(problem, floor=None)), Bounds(problem, floor=None)
    reduced = Fraction(0)
    for i, requested in enumerate(requests):
        layers = [Fraction(GRID * w) for w in weights]
        rest = sum((a * w for a, w in zip(a_max[i + 1 :], layers[i + 1 :], strict=True)), Fraction(0))
        paper = {"a_max": a_max[i], "layer": layers[i], "rest": rest, "reduced": reduced, "total": total}
        bounded = [algorithm_1(Fraction(a), alpha=alpha, **paper) for a in (0.0, requested, 1.0)]
        # The whole range that the paper leaves, on the grid: rounding only ever goes to the feasible side.
        most = math.floor(GRID * (1 - max(bounded[0], Fraction(0))))
        allowed = bounds.allowed(walk.keep_counts)
        assert allowed.tolist() == list(range(int(GRID * (1 - bounded[2])), most + 1))
        executed = walk.advance(requested).action
        assert abs(executed - float(max(bounded[1], Fraction(0)))) <= 1 / GRID + 1e-12
        reduced += layers[i] * (1 - Fraction(walk.keep_counts[-1], GRID))
    assert problem.cost(Metric.PARAMS, walk.keep_counts) <= limit


@settings(max_examples=80, deadline=None)
@given(problems(), st.floats(0.5, 1.0), st.sampled_from([1, 8, 30, 4096]), st.randoms(use_true_random=False))
def test_episode_never_overshoots_whatever_is_chosen(problem, floor, lookahead, random):
    bounds = Bounds(problem, floor=floor, lookahead=lookahead)
    keep = []
    for decision in problem.decisions:
        allowed = bounds.allowed(keep)
        assert len(allowed) > 0
        assert set(allowed.tolist()) <= set(decision.choices)
        keep.append(random.choice(allowed.tolist()))
    assert fits(problem, keep)


@settings(max_examples=80, deadline=None)
@given(problems(), st.floats(0.5, 1.0))
def test_surface_is_met_by_exactly_the_policies_that_lie_on_it(problem, floor):
    bounds = Bounds(problem, floor=floor)
    feasible = [tuple(p.tolist()) for p in policies(problem) if fits(problem, p)]
    wanted = min(floor, max(fullness(problem, p) for p in feasible))
    on_surface = {p for p in feasible if fullness(problem, p) >= wanted}
    reached = {()}
    for _ in problem.decisions:
        reached = {(*prefix, k) for prefix in reached for k in bounds.allowed(prefix).tolist()}
    assert reached == on_surface


@settings(max_examples=60, deadline=None)
@given(problems(max_groups=5), st.randoms(use_true_random=False))
def test_short_lookahead_meets_the_surface_if_some_completion_does(problem, random):
    bounds = Bounds(problem, floor=0.9, lookahead=25)
    keep = []
    for step in range(len(problem.decisions)):
        rest = problem.decisions[step:]
        ways = [(*keep, *p) for p in itertools.product(*(d.choices for d in rest))]
        if len(ways) <= 25:
            best = max(fullness(problem, p) for p in ways if fits(problem, p))
            break
        keep.append(random.choice(bounds.allowed(keep).tolist()))
    while len(keep) < len(problem.decisions):
        keep.append(random.choice(bounds.allowed(keep).tolist()))
    assert fits(problem, keep)
    assert fullness(problem, keep) >= min(0.9, best)


@pytest.mark.parametrize("budget", ["macs<=50%", "macs<=33%", "params<=45%", "macs<=60%,params<=50%"])
def test_large_problem_ends_within_the_window(budget):
    problem, _ = residual_problem(27, budget)
    bounds, generator = Bounds(problem), np.random.default_rng(0)
    for _ in range(5):
        keep = []
        for _ in problem.decisions:
            keep.append(int(generator.choice(bounds.allowed(keep))))
        assert 0.98 <= fullness(problem, keep) <= 1


def test_unreachable_budget_says_what_is_reachable():
    # Two groups of 10 channels, at least 2 each: 10 + 2 * (2 + 2) of 10 + 2 * (10 + 10): 18 of 50 or 36%.
    decisions = tuple(Decision(name, 10, (2, 10), LAYER) for name in "ab")
    cost = ProductCost(((10.0, ()), (2.0, (0,)), (2.0, (1,))))
    with pytest.raises(BudgetError, match=r"macs<=35% cannot be reached.* 36% of the macs remain \(18 of 50\)"):
        Problem(decisions, {Metric.MACS: cost}, (Budget.parse("macs<=35%"),))
    reachable = Problem(decisions, {Metric.MACS: cost}, (Budget.parse("macs<=36%"),))
    assert Bounds(reachable).allowed([]).tolist() == [2]


def test_missing_metric_is_refused():
    decisions = (Decision("a", 10, (2, 10), LAYER),)
    with pytest.raises(BudgetError, match="latency is not available for this network; use macs"):
        Problem(decisions, {Metric.MACS: ProductCost(((1.0, (0,)),))}, (Budget.parse("latency<=50%"),))
    with pytest.raises(BudgetError, match="nothing to prune"):
        Problem((), {Metric.MACS: ProductCost(((1.0, ()),))})


@pytest.mark.parametrize("choices", [(), (0, 10), (5, 3, 10), (2, 9), (2, 2, 10)])
def test_decision_refuses_nonsense(choices):
    with pytest.raises(ValueError, match="must ascend"):
        Decision("a", 10, choices, LAYER)


def test_without_a_budget_everything_is_allowed():
    problem, _ = residual_problem(9)
    free = Problem(problem.decisions, problem.costs)
    assert Bounds(free).allowed([4]).tolist() == list(problem.decisions[1].choices)


def test_nearest_choice_takes_the_smaller_of_two_equally_near():
    allowed = np.array([2, 4, 8])
    assert [nearest_choice(allowed, wanted) for wanted in (0, 2.9, 3, 3.1, 6, 6.1, 99)] == [
        2,
        2,
        2,
        4,
        4,
        8,
        8,
    ]
