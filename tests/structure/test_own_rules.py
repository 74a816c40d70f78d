"""Rules that users register for operators of their own, and what is said of a wrong one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from amc.errors import ModelError
from amc.structure import certify, count_macs, inspect, operator_rule
from amc.structure.rules.own import remove_rule
from amc.structure.rules.registry import pointwise
from tests.structure.checks import assert_exact


@torch.library.custom_op("own_rules::scaled_relu", mutates_args=())
def scaled_relu(x: Tensor, scale: Tensor) -> Tensor:
    return x.relu() * scale


@scaled_relu.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("own_rules::halves", mutates_args=())
def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.relu(), x.neg().relu()


@halves.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@torch.library.custom_op("own_rules::project", mutates_args=())
def project(x: Tensor, w: Tensor) -> Tensor:
    return x @ w


@project.register_fake
def _(x: Tensor, w: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], w.shape[1])


@register_flop_formula(torch.ops.own_rules.project)
def _(x: Any, w: Any, out_shape: Any = None, **_: Any) -> int:
    return 2 * math.prod(x) * w[1]


@torch.library.custom_op("own_rules::flip", mutates_args=())  # aten has an operator of this name, with a rule
def flip(x: Tensor) -> Tensor:
    return x.flip(1)


@flip.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("own_rules::view", mutates_args=())  # and a view of this one
def view(x: Tensor) -> Tensor:
    return x.tanh()


@view.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("own_rules::gate", mutates_args=(), tags=(torch.Tag.pointwise,))
def gate(x: Tensor, scale: Tensor) -> Tensor:
    return x.sigmoid() * scale


@gate.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)


class Net(nn.Module):
    """[2, 4] -> a [2, 6] -> `function`, which sees the network -> b [2, 3]."""

    def __init__(self, function: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.scale, self.w = nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self, self.a(x)))


def scaled() -> Net:
    return Net(lambda net, x: torch.ops.own_rules.scaled_relu(x, net.scale))


X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    for name in ("scaled_relu", "halves", "project", "flip", "view"):
        remove_rule(f"own_rules::{name}")
    remove_rule("aten::relu")


def reasons(net: nn.Module) -> dict[str, str]:
    return {locked.name: locked.lock.reason for locked in inspect(net, X).locked}


def test_without_a_rule_the_lock_names_the_remedy() -> None:
    reason = "operator own_rules.scaled_relu.default has no rule; register one with amc.operator_rule"
    assert reasons(scaled())["a"] == reason


def test_a_rule_ties_two_inputs() -> None:
    @operator_rule("own_rules::scaled_relu")
    def rule(ctx, x, scale):
        return (x.ids[0], ctx.tie(x.ids[1], scale.ids[0]))

    structure = assert_exact(scaled(), X, certified=True)
    assert [(group.name, group.size) for group in structure.groups] == [("a", 6)]
    # One channel: a row and a bias of a, its scale, a column of b.
    assert structure.params - structure.cost.params([5]) == (4 + 1) + 1 + 3


def test_a_rule_that_is_removed_holds_no_longer() -> None:
    operator_rule("own_rules::scaled_relu")(lambda ctx, x, scale: (None, ctx.tie(x.ids[1], scale.ids[0])))
    assert inspect(scaled(), X).groups
    remove_rule("own_rules::scaled_relu")
    assert "has no rule" in reasons(scaled())["a"]


def test_a_pointwise_operator_may_use_the_rule_of_all_pointwise_ones() -> None:
    operator_rule("own_rules::view")(pointwise)
    assert_exact(Net(lambda net, x: torch.ops.own_rules.view(x)), X, certified=True)


def test_an_operator_that_is_tagged_as_pointwise_needs_no_rule() -> None:
    assert_exact(Net(lambda net, x: torch.ops.own_rules.gate(x, net.scale)), X, certified=True)


def test_a_rule_gives_the_ids_of_several_outputs() -> None:
    @operator_rule("own_rules::halves")
    def rule(ctx, x):
        return [x.ids, x.ids]

    def both(net: Net, x: Tensor) -> Tensor:
        up, down = torch.ops.own_rules.halves(x)
        return up - 2 * down

    assert assert_exact(Net(both), X, certified=True).groups[0].name == "a"


def test_a_rule_locks_with_a_reason() -> None:
    @operator_rule("own_rules::scaled_relu")
    def rule(ctx, x, scale):
        ctx.lock(x.ids[1], "its channels are in pairs")
        return x.ids

    assert reasons(scaled())["a"] == "its channels are in pairs"


def product(claimed: int) -> Callable[..., Any]:
    """A rule for x [2, 6] @ w [6, 6] that claims `claimed` MACs for each of the 6 * 6 weights."""

    def rule(ctx, x, w):
        ctx.tie(x.ids[1], w.ids[0])
        ctx.cost((claimed, 6, 6), (None, w.ids[0], w.ids[1]))
        return (x.ids[0], w.ids[1])

    return rule


def test_a_rule_states_a_cost() -> None:
    """[2, 6] @ [6, 6]: 2 * 6 * 6 MACs, which shrink with both sides."""
    operator_rule("own_rules::project")(product(2))
    structure = assert_exact(Net(lambda net, x: torch.ops.own_rules.project(x, net.w)), X, certified=True)
    assert structure.macs == 2 * 4 * 6 + 2 * 6 * 6 + 2 * 6 * 3
    assert [group.size for group in structure.groups] == [6, 6]
    assert structure.cost.macs([5, 4]) == 2 * 4 * 5 + 2 * 5 * 4 + 2 * 4 * 3


@pytest.mark.parametrize("claimed", [3, None])
def test_a_cost_that_torch_does_not_count_locks_the_channels(claimed: int | None) -> None:
    def silent(ctx, x, w):
        return (x.ids[0], w.ids[1])

    operator_rule("own_rules::project")(silent if claimed is None else product(claimed))
    net = Net(lambda net, x: torch.ops.own_rules.project(x, net.w))
    ours = 0 if claimed is None else 3 * 36
    reason = f"torch counts 72 MACs of operator own_rules.project.default, and its rule {ours}"
    assert reasons(net)["a"] == reason
    assert inspect(net, X).macs == count_macs(net, X)


def test_a_cost_of_an_operator_that_torch_does_not_count_is_none() -> None:
    @operator_rule("own_rules::scaled_relu")
    def rule(ctx, x, scale):
        ctx.cost((2, 6), (None, x.ids[1]))
        return (x.ids[0], ctx.tie(x.ids[1], scale.ids[0]))

    structure = inspect(scaled(), X)
    assert structure.macs == 2 * 4 * 6 + 2 * 6 * 3 == count_macs(scaled(), X)
    assert [group.name for group in structure.groups] == ["a"]


def test_the_certificate_locks_what_a_wrong_rule_gets_wrong() -> None:
    operator_rule("own_rules::flip")(lambda ctx, x: x.ids)  # wrong: the channels come out in reverse
    net = Net(lambda net, x: torch.ops.own_rules.flip(x)).eval()
    structure = inspect(net, X)
    assert [group.name for group in structure.groups] == ["a"]
    certified, certificate = certify(net, structure, X)
    assert certified.groups == ()
    assert [name for name, _ in certificate.failed] == ["a"]
    assert "differs from the masked one" in str(certificate.failed[0][1])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda ctx, x, scale: x.idz, r"fails \(AttributeError: .*'idz'.*\); correct it"),
        (lambda ctx, x: x.ids, r"fails \(TypeError: .*\); correct it"),
        (
            lambda ctx, x, scale: ctx.tie(x.ids[1], scale.ids[0][:3]),
            r"fails \(ValueError: cannot tie \(6,\) with \(",
        ),
        (lambda ctx, x, scale: x, r"must return the ids of the output's 2 dimensions \(2, 6\), got a Tracked"),
        (lambda ctx, x, scale: (x.ids[1],), r"must return the ids of the output's 2 dimensions \(2, 6\), got 1 dimen"),
        (
            lambda ctx, x, scale: (None, x.ids[1][:5]),
            r"must return 6 ids of channels for dimension 1 of \(2, 6\), or",
        ),
        (lambda ctx, x, scale: (None, x.ids[1] * 1.0), r"must return 6 ids of channels for dimension 1"),
        (lambda ctx, x, scale: (None, x.ids[1] + 10**6), r"must return 6 ids of channels for dimension 1"),
    ],
)
def test_a_rule_that_does_not_fit_is_one_line(rule: Callable[..., Any], message: str) -> None:
    operator_rule("own_rules::scaled_relu")(rule)
    with pytest.raises(ModelError, match=message) as error:
        inspect(scaled(), X)
    assert str(error.value).startswith("the rule '<lambda>' of operator own_rules.scaled_relu.default ")
    assert "\n" not in str(error.value)


def test_several_outputs_need_a_list() -> None:
    operator_rule("own_rules::halves")(lambda ctx, x: [x.ids])
    with pytest.raises(ModelError, match="must return a list of 2 outputs, each with its dimensions"):
        inspect(Net(lambda net, x: torch.ops.own_rules.halves(x)[0]), X)


def test_a_name_without_its_namespace_is_refused() -> None:
    with pytest.raises(ModelError, match="'relu' is no full name of an operator; write its namespace, as in 'mylib::"):
        operator_rule("relu")


def test_a_rule_of_ones_own_precedes_ours_until_it_is_removed() -> None:
    net = Net(lambda net, x: x.relu())
    operator_rule("aten::relu")(lambda ctx, x: ctx.lock(x.ids[1], "mine") or x.ids)
    assert reasons(net)["a"] == "mine"
    remove_rule("aten::relu")
    assert [group.name for group in inspect(net, X).groups] == ["a"]


@pytest.mark.parametrize("name", ["flip", "view"])
def test_an_operator_is_not_taken_for_one_of_torch_that_has_its_name(name: str) -> None:
    net = Net(lambda net, x: getattr(torch.ops.own_rules, name)(x))
    assert f"operator own_rules.{name}.default has no rule" in reasons(net)["a"]
