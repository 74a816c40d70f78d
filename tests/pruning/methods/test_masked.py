"""Masked methods: what they cost in closed form, what they build, and what they leave alone."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from amc.errors import AmcError, BudgetError, ModelError
from amc.pruning import Calibration, LayerPolicy, Policy, calibrate
from amc.pruning.methods import (
    MaskedMethod,
    Method,
    MethodOptions,
    apply_policy,
    check_method,
    create_method,
    problem_of,
)
from amc.run.weights import unpack
from amc.search import Metric, SearchTask, create_agent, parse_budgets, search
from amc.structure import Structure, count_macs, count_params, inspect

NAMES = ("fine-grained", "1:2", "2:4", "n:8", "rows", "columns", "blocks:2x2", "blocks:3x5")


class Mixed(nn.Module):
    """Plain, grouped, depthwise and tied layers, batch norm, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 16, 3, groups=2, padding=1, bias=False)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16, stride=2)
        self.twice = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.norm(self.stem(x)).relu()).relu()
        x = self.twice(self.twice(self.depthwise(x)).relu()).relu()
        return self.head(x.mean((2, 3)))


EXAMPLE = torch.zeros(1, 3, 8, 8)
BATCHES = [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


@cache
def mixed() -> tuple[nn.Module, Structure]:
    torch.manual_seed(0)
    model = Mixed().eval()
    return model, inspect(model, EXAMPLE)


@cache
def gathered() -> Calibration:
    model, structure = mixed()
    return calibrate(model, structure, BATCHES, layers=method("fine-grained").calibrated())


def method(name: str, **options: object) -> Method:
    model, structure = mixed()
    return create_method(name, model, structure, MethodOptions(**options))  # type: ignore[arg-type]


def random_counts(which: Method, seed: int) -> list[int]:
    generator = np.random.default_rng(seed)
    return [int(generator.choice(decision.choices)) for decision in which.decisions]


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**16))
@settings(max_examples=8, deadline=None)
def test_costs_in_closed_form_are_those_counted_on_the_network(name: str, seed: int) -> None:
    which = method(name)
    keep = random_counts(which, seed)
    counted = which.recount(which.builder(None).build(keep), EXAMPLE)
    claimed = problem_of(which, ()).policy_costs(keep)
    assert counted["macs"] == claimed["macs"]
    assert counted["params"] == claimed["params"]
    assert counted["size"] <= claimed["size"] <= counted["size"] * 1.05 + 200


def test_macs_and_params_of_a_masked_network_by_hand() -> None:
    model, _ = mixed()
    which = method("fine-grained", ranking="magnitude", reconstruct=False)
    names = [decision.name for decision in which.decisions]
    assert names == ["stem", "grouped", "depthwise", "twice", "head"]
    keep = [decision.size for decision in which.decisions]
    keep[names.index("stem")] = 108  # half of 8 * 3 * 9
    keep[names.index("twice")] = 200  # of 256, used twice
    keep[names.index("head")] = 20  # of 80
    costs = {metric: int(cost(np.array(keep))) for metric, cost in which.costs.items()}
    dense = count_macs(model, EXAMPLE)
    assert costs[Metric.MACS] == dense - 108 * 64 - 56 * 2 * 9 - 60  # 8x8 outputs, then 3x3, then one
    assert costs[Metric.PARAMS] == count_params(model) - 108 - 56 - 60


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reconstruct", [False, True])
def test_what_is_dropped_is_zero_and_the_model_untouched(name: str, reconstruct: bool) -> None:
    model, _ = mixed()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    which = method(name, reconstruct=reconstruct)
    keep = [decision.choices[len(decision.choices) // 3] for decision in which.decisions]
    built = which.builder(gathered()).build(keep)
    assert isinstance(which, MaskedMethod)
    kept = {target: int(torch.count_nonzero(dict(built.named_parameters())[target])) for target in which.weights()}
    claimed = problem_of(which, ()).policy_costs(keep)["params"]
    assert count_params(built) - sum(built.get_parameter(t).numel() - n for t, n in kept.items()) == claimed
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(model.parameters(), built.parameters(), strict=True))


def test_two_of_four_consecutive_inputs_stay() -> None:
    which = method("2:4")
    assert [decision.name for decision in which.decisions] == ["grouped", "twice", "head"]
    assert "3 inputs" in which.whole["stem"]
    assert "1 inputs" in which.whole["depthwise"]
    built = which.builder(gathered()).build([decision.choices[0] for decision in which.decisions])
    for weight in (built.grouped.weight, built.twice.weight, built.head.weight):  # type: ignore[union-attr]
        runs = weight.detach().reshape(weight.shape[0], weight.shape[1] // 4, 4, -1)  # type: ignore[operator,union-attr]
        assert (torch.count_nonzero(runs, dim=2) == 2).all()


def test_two_of_four_cannot_reach_a_quarter_and_says_what_it_can() -> None:
    with pytest.raises(BudgetError, match=r"params<=25% cannot be reached: even at the largest sparsity"):
        problem_of(method("2:4"), parse_budgets("params<=25%"))


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("2:5", {}, ("stem (its 3 inputs per group are no multiple of 5", "and 4 more; choose another method")),
        ("rows", {"max_sparsity": 0.0, "max_sparsity_linear": 0.0}, ("; raise max-sparsity or max-sparsity-linear",)),
    ],
)
def test_a_method_that_fits_no_layer_says_why(name: str, options: dict[str, float], parts: tuple[str, ...]) -> None:
    with pytest.raises(BudgetError) as refusal:
        problem_of(method(name, **options), ())
    for part in (f"nothing to prune: method {name} leaves every layer as it is", *parts):
        assert part in str(refusal.value)
    assert "locked" not in str(refusal.value)


def test_linear_and_convolution_layers_have_bounds_of_their_own() -> None:
    which = method("fine-grained", max_sparsity=0.5, max_sparsity_linear=0.9)
    least = {decision.name: decision.choices[0] / decision.size for decision in which.decisions}
    assert least["head"] == 8 / 80
    assert least["stem"] == 108 / 216


def test_compensation_lowers_the_error_of_every_layer() -> None:
    model, _ = mixed()
    plain, fitted = (method("fine-grained", reconstruct=way, ranking="magnitude") for way in (False, True))
    keep = [decision.choices[0] for decision in plain.decisions]
    nets = [which.builder(gathered()).build(keep) for which in (plain, fitted)]
    assert isinstance(plain, MaskedMethod)
    ratios = []
    for name in plain.weights():
        gram = gathered().grams[name].damped()
        errors = []
        for net in nets:
            off = (net.get_parameter(name) - model.get_parameter(name)).detach().double()
            rows = off.reshape(gram.shape[0], -1, gram.shape[-1])
            errors.append(float(((rows @ gram) * rows).sum()))
        ratios.append(errors[1] / errors[0])
    assert all(ratio < 1 for ratio in ratios)
    assert min(ratios) < 0.5  # where inputs are correlated; those of the first layer are white noise


@pytest.mark.parametrize("metric", ["macs", "params", "size"])
@pytest.mark.parametrize(("name", "percent"), [("fine-grained", 60), ("n:4", 90), ("columns", 60)])
def test_searched_policies_hold_their_budget_on_the_stored_file(name: str, percent: int, metric: str) -> None:
    which = method(name, max_sparsity=0.9)
    problem = problem_of(which, parse_budgets(f"{metric}<={percent}%"))
    agent = create_agent("ddpg", SearchTask(problem, episodes=8, seed=0))
    found = search(problem, lambda keep: float(np.log(keep).sum()), agent, episodes=8, seed=0).best.keep
    built = which.builder(gathered()).build(found)
    counted = which.recount(built, EXAMPLE)
    limit = problem.limit(problem.budgets[0])
    assert 0.9 * limit <= counted[metric] <= limit
    data = which.stored(built)
    assert len(data) == counted["size"]
    state = unpack(data)
    assert all(torch.equal(value, state[key]) for key, value in built.state_dict().items())


def test_policies_are_kept_as_json_and_applied_by_magnitude() -> None:
    model, _ = mixed()
    which = method("fine-grained", ranking="magnitude", reconstruct=False)
    keep = random_counts(which, 1)
    policy = which.builder(None).policy(keep)
    again = Policy.from_json(policy.to_json())
    assert again == policy
    assert again.keep_counts == tuple(keep)
    applied, built = apply_policy(model, EXAMPLE, again), which.builder(None).build(keep)
    assert all(torch.equal(a, b) for a, b in zip(applied.parameters(), built.parameters(), strict=True))
    with pytest.raises(ModelError, match="'stem' has 216 weights or units, not 10"):
        apply_policy(model, EXAMPLE, Policy((LayerPolicy("stem", 10, 5),), "fine-grained"))


def test_layers_are_locked_and_chosen_by_pattern() -> None:
    model, structure = mixed()
    locked = create_method("fine-grained", model, structure, lock=("stem", "tw*"))
    assert [decision.name for decision in locked.decisions] == ["grouped", "depthwise", "head"]
    assert locked.whole == {"stem": "locked by --lock", "twice": "locked by --lock"}
    chosen = create_method("rows", model, structure, only=("head",))
    assert [decision.name for decision in chosen.decisions] == ["head"]
    assert chosen.whole["grouped"] == "not chosen by --only"
    with pytest.raises(ModelError, match="pattern 'nothing' matches no layer"):
        create_method("rows", model, structure, lock=("nothing",))


def test_method_names() -> None:
    assert [check_method(name) for name in (" Channel", "2:4", "Blocks:4x4", "fine-grained")] == [
        "channel",
        "2:4",
        "blocks:4x4",
        "fine-grained",
    ]
    with pytest.raises(AmcError, match="unknown method 'fine'; choose channel, fine-grained"):
        check_method("fine")
