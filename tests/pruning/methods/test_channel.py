"""From structure to decisions: keep counts on offer, the layer each decision is about, and budgets that hold."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from amc.errors import BudgetError
from amc.pruning import Pruner
from amc.pruning.methods.channel import channel_costs, channel_decisions, keep_choices
from amc.search import Budget, LayerFeatures, Metric, Problem, SearchTask, create_agent, parse_budgets, search
from amc.structure import Structure, count_macs, count_params, inspect
from amc.zoo import create_model

WIDTHS = range(1, 2049)


def make_problem(structure: Structure, budgets: tuple[Budget, ...], *, round_to: int | None = None) -> Problem:
    return Problem(channel_decisions(structure, round_to=round_to), channel_costs(structure), budgets)


POWERS = (1, 2, 4, 8)


def test_default_rounding_is_8_or_the_largest_power_of_two_that_leaves_8_multiples() -> None:
    """Rounding alone, before the largest sparsity takes the smallest counts away."""
    for size in WIDTHS:
        fitting = [power for power in POWERS if size // power >= 8]
        step = max(fitting, default=1)
        assert keep_choices(size, None, 1 - 1e-9) == tuple(sorted({*range(step, size, step), size}))
        if size >= 64:
            assert step == 8


def test_default_rounding_leaves_most_groups_8_choices_at_the_largest_sparsity_of_the_paper() -> None:
    counts = {size: len(keep_choices(size, None, 0.8)) for size in WIDTHS}
    assert all(count >= 7 for size, count in counts.items() if size >= 8)
    assert all(counts[size] == size - math.ceil(size / 5) + 1 for size in range(1, 16))  # every count from a fifth
    assert (counts[16], counts[32], counts[64], counts[128]) == (7, 7, 7, 13)


@given(st.integers(1, 2048), st.one_of(st.none(), st.integers(1, 64)), st.floats(0, 0.99))
def test_choices_ascend_to_the_whole_group_within_the_largest_sparsity(
    size: int, round_to: int | None, max_sparsity: float
) -> None:
    choices = keep_choices(size, round_to, max_sparsity)
    assert choices[-1] == size
    assert all(a < b for a, b in pairwise(choices))
    assert choices[0] >= 1
    assert all(count / size >= 1 - max_sparsity - 1e-9 for count in choices)
    if round_to:
        assert all(count % round_to == 0 for count in choices[:-1])


@pytest.mark.parametrize(
    ("size", "round_to", "max_sparsity", "expected"),
    [
        (16, None, 0.8, (4, 6, 8, 10, 12, 14, 16)),
        (20, 4, 0.8, (4, 8, 12, 16, 20)),
        (10, 1, 0.8, (2, 3, 4, 5, 6, 7, 8, 9, 10)),  # exactly a fifth, despite rounding errors
        (24, 16, 0.8, (16, 24)),
        (6, 8, 0.8, (6,)),  # nothing to round to
        (12, 1, 0.0, (12,)),
        (1, None, 0.8, (1,)),
    ],
)
def test_choices_by_hand(size: int, round_to: int | None, max_sparsity: float, expected: tuple[int, ...]) -> None:
    assert keep_choices(size, round_to, max_sparsity) == expected


class Small(nn.Module):
    """A stem, a branch that strides beside one that does not, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3, padding=1)
        self.wide, self.narrow = nn.Conv2d(10, 12, 3, stride=2, padding=1), nn.Conv2d(10, 12, 1, stride=2)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((self.wide(x) + self.narrow(x)).relu().mean((2, 3)))


def test_features_and_costs_of_a_small_network_by_hand() -> None:
    structure = inspect(Small().eval(), torch.zeros(1, 3, 8, 6))
    problem = make_problem(structure, parse_budgets("macs<=50%"), round_to=2)
    stem, both = problem.decisions
    assert (stem.name, stem.size, stem.choices) == ("stem", 10, (2, 4, 6, 8, 10))
    assert (both.name, both.size, both.choices) == ("wide", 12, (4, 6, 8, 10, 12))
    wide, narrow = 12 * 10 * 9 * 4 * 3, 12 * 10 * 4 * 3  # outputs, inputs, kernel, 4x3 output pixels
    # The stem's channels are read by both branches; the 3x3 one is the main layer and sees 8x6 pixels.
    assert stem.layer == LayerFeatures(n=12, c=10, h=8, w=6, stride=2, k=3, macs=wide + narrow)
    assert both.layer == LayerFeatures(n=4, c=12, h=1, w=1, stride=1, k=1, macs=12 * 4)

    def macs(a: int, b: int) -> int:
        return a * 3 * 9 * 48 + b * a * 9 * 12 + b * a * 12 + 4 * b

    def params(a: int, b: int) -> int:
        return (a * 27 + a) + (b * a * 9 + b) + (b * a + b) + (4 * b + 4)

    for counts in [(10, 12), (2, 4), (6, 8)]:
        assert problem.cost(Metric.MACS, counts) == macs(*counts)
        assert problem.cost(Metric.PARAMS, counts) == params(*counts)
        assert problem.policy_costs(counts) == {"macs": macs(*counts), "params": params(*counts)}
    assert problem.limit(problem.budgets[0]) == macs(10, 12) / 2


def test_features_of_one_dimensional_and_linear_layers() -> None:
    conv = nn.Sequential(nn.Conv1d(2, 6, 3), nn.Conv1d(6, 5, 7, stride=3), nn.Flatten(), nn.Linear(20, 3))
    structure = inspect(conv.eval(), torch.zeros(1, 2, 18))
    first, second = make_problem(structure, ()).decisions
    assert first.layer == LayerFeatures(n=5, c=6, h=16, w=1, stride=3, k=7, macs=5 * 6 * 7 * 4)
    # The flattened layer reads 4 positions of each of the 5 channels.
    assert (second.layer.n, second.layer.k, second.layer.macs) == (3, 1, 3 * 20)


def test_nothing_to_prune_is_refused() -> None:
    structure = inspect(nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), torch.zeros(1, 3, 4, 4))
    with pytest.raises(BudgetError, match="nothing to prune"):
        make_problem(structure, parse_budgets("macs<=50%"))


def test_a_budget_out_of_reach_says_what_is_reachable() -> None:
    with pytest.raises(BudgetError) as refusal:
        make_problem(digits()[1], parse_budgets("macs<=3%"))
    least = make_problem(digits()[1], ()).least
    percent = math.ceil(1000 * digits()[1].cost.macs(least) / digits()[1].macs) / 10
    assert f"{percent:g}% of the macs remain" in str(refusal.value)
    assert f"raise the budget to {percent:g}% or more" in str(refusal.value)
    make_problem(digits()[1], parse_budgets(f"macs<={percent}%"))  # and that is true


@cache
def digits() -> tuple[nn.Module, Structure]:
    model = create_model("digits_cnn").eval()
    return model, inspect(model, torch.zeros(1, 1, 8, 8))


def searched(problem: Problem, agent: str, seed: int) -> tuple[int, ...]:
    weights = np.random.default_rng(seed).random(len(problem.decisions))
    best = search(
        problem,
        lambda policy: float(weights @ np.log(policy)),
        create_agent(agent, SearchTask(problem, episodes=4, seed=seed)),
        episodes=4,
        seed=seed,
    ).best
    return best.keep


@settings(max_examples=12, deadline=None)
@given(
    st.floats(0.12, 1.0),
    st.one_of(st.none(), st.floats(0.15, 1.0)),
    st.sampled_from(["ddpg", "random", "uniform"]),
    st.integers(0, 1000),
)
def test_no_budget_is_overshot_by_the_network_that_comes_out(
    macs: float, params: float | None, agent: str, seed: int
) -> None:
    model, structure = digits()
    text = f"macs<={macs:%}" + ("" if params is None else f",params<={params:%}")
    problem = make_problem(structure, parse_budgets(text))
    keep = searched(problem, agent, seed)
    slim = Pruner(model, structure).build(keep)
    assert count_macs(slim, torch.zeros(1, 1, 8, 8)) <= macs * structure.macs + 1e-6 * structure.macs
    assert count_macs(slim, torch.zeros(1, 1, 8, 8)) == problem.cost(Metric.MACS, keep)
    assert count_params(slim) == problem.cost(Metric.PARAMS, keep)
    for budget in problem.budgets:
        assert problem.cost(budget.metric, keep) <= problem.limit(budget)
    assert all(count in decision.choices for count, decision in zip(keep, problem.decisions, strict=True))
