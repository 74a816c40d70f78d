"""Every operation is counted: the closed form is a hand count and torch's counter, on networks and their slices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import register_flop_formula

from amc.errors import ModelError
from amc.structure import certify, check_counts, count_macs, inspect, slice_model
from amc.structure.rules import registry
from tests.structure.checks import assert_exact
from tests.structure.sequences import Experts, Gpt

B, I, H, O = 5, 6, 8, 4  # noqa: E741  examples, inputs, hidden, outputs
ENDS = B * (I * H + H * O)  # MACs of the two linear layers around the operator
ONE = B * H * H  # one product with an H x H weight


class Around(nn.Module):
    """Linear, relu, the operator in question, linear."""

    def __init__(self, middle: Callable[[Around, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(I, H), nn.Linear(H, H), nn.Linear(H, O)
        self.w, self.v = nn.Parameter(torch.randn(H, H)), nn.Parameter(torch.randn(H, H))
        self.stack, self.middle = nn.Parameter(torch.randn(3, H, H)), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self, self.first(x).relu()))


def without_gradients(net: Around, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net.inner(x).relu() @ net.w


Middle = Callable[[Around, Tensor], Tensor]
# name: the operator, its MACs counted by hand, and whether the weights that it uses can lose channels
OPERATORS: dict[str, tuple[Middle, int, bool]] = {
    "matmul": (lambda n, x: x @ n.w, ONE, True),
    "matmul, transposed": (lambda n, x: x @ n.w.t(), ONE, True),
    "matmul, weight first": (lambda n, x: (n.w @ x.mT).mT, ONE, True),
    "mm": (lambda n, x: torch.mm(x, n.w), ONE, True),
    "addmm": (lambda n, x: torch.addmm(n.inner.bias, x, n.w, beta=0.5, alpha=2), ONE, True),
    "bmm of one": (lambda n, x: torch.bmm(x[None], n.w[None])[0], ONE, True),
    "bmm of one weight, repeated": (lambda n, x: x.expand(3, -1, -1).bmm(n.w.expand(3, -1, -1)).sum(0), 3 * ONE, True),
    "baddbmm": (lambda n, x: torch.baddbmm(x[None], x[None], n.w[None])[0], ONE, True),
    "linear of a parameter": (lambda n, x: F.linear(x, n.w.mT), ONE, True),
    "inner": (lambda n, x: torch.inner(x, n.w), ONE, True),
    "tensordot": (lambda n, x: torch.tensordot(x, n.w, dims=1), ONE, True),
    "tensordot of given dimensions": (lambda n, x: torch.tensordot(n.w, x, dims=([1], [1])).t(), ONE, True),
    "einsum": (lambda n, x: torch.einsum("bi,io->bo", x, n.w), ONE, True),
    "einsum, weight first, no output": (lambda n, x: torch.einsum("io,bi", n.w, x), ONE, True),
    "einsum, ellipsis": (lambda n, x: torch.einsum("...i,oi->...o", x, n.w), ONE, True),
    "einsum of three": (lambda n, x: torch.einsum("bi,io,oj->bj", x, n.w, n.v), 2 * ONE, True),
    "einsum that multiplies": (lambda n, x: torch.einsum("bi,i->bi", x, n.inner.bias), 0, True),
    "einsum that adds up first": (lambda n, x: x * torch.einsum("bi,io->b", x, n.w)[:, None], B * H, True),
    "one matrix an expert": (lambda n, x: torch.matmul(x, n.stack).sum(0), 3 * ONE, True),
    "einsum of experts": (lambda n, x: torch.einsum("bi,eio->beo", x, n.stack).mean(1), 3 * ONE, True),
    "multi_dot": (lambda n, x: torch.linalg.multi_dot([x, n.w, n.v]), 2 * ONE, False),
    "chain_matmul": (lambda n, x: torch.chain_matmul(x, n.w, n.v), 2 * ONE, False),
    "matrix_power": (lambda n, x: x @ torch.matrix_power(n.w, 3), ONE + 2 * H**3, False),
    "mv": (lambda n, x: torch.stack([n.w.mv(row) for row in x]), 0, False),
    "dot": (lambda n, x: x * torch.dot(x[0], n.inner.bias), 0, False),
    "bilinear": (lambda n, x: F.bilinear(x, x, n.stack).repeat(1, 3)[:, :H], 0, False),
    "addmv": (lambda n, x: torch.stack([torch.addmv(n.inner.bias, n.w, row) for row in x]), 0, False),
    "addbmm": (lambda n, x: torch.addbmm(x, x.expand(3, -1, -1), n.stack), 0, False),
    "block without gradients": (without_gradients, 2 * ONE, True),
    "checkpoint": (lambda n, x: checkpoint(n.inner, x, use_reentrant=False), ONE, True),
    "the larger branch": (lambda n, x: torch.cond(x.mean() > 0, lambda y: y @ n.w, lambda y: y, (x,)), ONE, False),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_macs_are_the_hand_count_and_torchs(name: str) -> None:
    """And, on every slice, again torch's; the sliced network equals the masked one."""
    middle, macs, prunable = OPERATORS[name]
    torch.manual_seed(0)
    structure = assert_exact(Around(middle), torch.randn(B, I), certified=True)
    assert structure.macs == ENDS + macs
    assert bool(structure.groups) == prunable


def test_queries_in_groups_are_counted() -> None:
    """4 heads of queries, 2 of keys and values, 7 tokens of size 3: two products of 4 * 7 * 7 * 3."""

    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.kv = nn.Linear(12, 12), nn.Linear(12, 6)

        def forward(self, x: Tensor) -> Tensor:
            q = self.q(x).view(1, 7, 4, 3).transpose(1, 2)
            kv = self.kv(x).view(1, 7, 2, 3).transpose(1, 2)
            return F.scaled_dot_product_attention(q, kv, kv, enable_gqa=True)

    assert assert_exact(Grouped(), torch.randn(1, 7, 12)).macs == 7 * 12 * (12 + 6) + 2 * 4 * 7 * 7 * 3


@torch.library.custom_op("amc_tests::project", mutates_args=())
def project(x: Tensor, w: Tensor) -> Tensor:
    return x @ w


@project.register_fake
def _(x: Tensor, w: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], w.shape[1])


@register_flop_formula(torch.ops.amc_tests.project)
def _(x: Any, w: Any, out_shape: Any = None, **_: Any) -> int:
    return 2 * math.prod(x) * w[1]


def test_an_operator_of_ones_own_costs_what_its_formula_says() -> None:
    torch.manual_seed(0)
    net = Around(lambda n, x: torch.ops.amc_tests.project(n.inner(x), n.w))
    structure = assert_exact(net, torch.randn(B, I), certified=True)
    assert structure.macs == ENDS + 2 * ONE
    assert [group.name for group in structure.groups] == ["first"]
    assert structure.cost.macs([3]) == ENDS + 2 * ONE - B * (H - 3) * (I + H)  # the operator's own cost is fixed
    assert "operator amc_tests.project.default has no rule" in str(structure.locked[0].lock)


def test_a_product_over_one_channel_is_no_product_to_einsum() -> None:
    """Where one channel is left, torch multiplies instead of contracting, and counts nothing: nor does the form."""
    torch.manual_seed(0)
    model, x = Around(lambda n, x: torch.einsum("bi,io->bo", x, n.w)).eval(), torch.randn(B, I)
    structure = inspect(model, x)
    assert [group.name for group in structure.groups] == ["first", "w"]
    for first, hidden in ((1, 8), (2, 8), (1, 1), (2, 1)):
        slim = slice_model(model, structure, structure.mask({"first": range(first), "w": range(hidden)}))
        product = B * first * hidden if first > 1 else 0
        assert structure.cost.macs([first, hidden]) == B * I * first + product + B * hidden * O == count_macs(slim, x)


STEPS: dict[str, Middle] = {
    name: OPERATORS[name][0]
    for name in ("matmul", "matmul, transposed", "addmm", "inner", "tensordot", "einsum", "einsum, ellipsis",
                 "einsum of three", "one matrix an expert", "multi_dot", "mv", "block without gradients",
                 "bmm of one weight, repeated")
}  # fmt: skip


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=4))
def test_random_programs_of_products_are_exact(program: list[str]) -> None:
    """Weights are shared by the steps, in whatever orientation each uses them."""

    def middle(net: Around, x: Tensor) -> Tensor:
        for name in program:
            x = torch.tanh(STEPS[name](net, x))
        return x

    torch.manual_seed(0)
    assert_exact(Around(middle), torch.randn(B, I), policies=2, certified=True)


def test_a_rule_that_miscounts_gives_way_to_the_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator then costs what torch counts, and what it touches is locked: slices are right all the same."""
    right = registry._RULES["linear"]

    def wrong(ctx, x, weight, bias=None):  # type: ignore[no-untyped-def]
        out = right(ctx, x, weight, bias)
        if weight.name == "inner.weight":
            ctx.cost((7,), (None,))
        return out

    monkeypatch.setitem(registry._RULES, "linear", wrong)
    torch.manual_seed(0)
    net = Around(lambda n, x: n.inner(x).relu() @ n.w)
    structure = assert_exact(net, torch.randn(B, I), certified=True)
    assert structure.macs == ENDS + 2 * ONE
    assert [group.name for group in structure.groups] == ["w"]
    assert next(layer.macs for layer in structure.layers if layer.name == "inner") == ONE


class Moody(nn.Module):
    """Does one product more than it lets torch.export see."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(I, H), nn.Sequential(nn.ReLU(), Around(self.more))

    @staticmethod
    def more(net: Around, x: Tensor) -> Tensor:
        return x if torch.compiler.is_exporting() else x @ net.w

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[:, :I])


def test_a_difference_stops_there_and_names_module_and_operators() -> None:
    model, x = Moody().eval(), torch.randn(B, I)
    structure = inspect(model, x)
    expected = (
        rf"torch counts {ENDS + ONE:,} MACs in 'head\.1' \(aten\.addmm {ENDS:,}, aten\.mm {ONE:,}\) "
        rf"and the closed form {ENDS:,} \(aten\.linear\.default {ENDS:,}\): budgets would not hold"
    )
    for check in (check_counts, certify):
        with pytest.raises(ModelError, match=expected):
            check(model, structure, x)


def test_a_difference_on_a_slice_is_found_by_the_certificate() -> None:
    """A network that does more as soon as it is narrower: its outputs are the same, its costs are not."""

    def middle(net: Around, x: Tensor) -> Tensor:
        return x if x.shape[1] == H else x + 0 * (x @ x.new_zeros(x.shape[1], x.shape[1]))

    model, x = Around(middle).eval(), torch.randn(B, I)
    structure = inspect(model, x)
    check_counts(model, structure, x)
    with pytest.raises(ModelError, match=r"MACs in Around after pruning .*aten\.mm"):
        certify(model, structure, x)


def test_an_operator_unknown_to_torchs_counter_is_reported() -> None:
    from torch._higher_order_ops.map import map as over

    model = Around(lambda n, x: over(lambda row: row * 2, x)).eval()
    with pytest.raises(ModelError, match=r"cannot be counted: torch's counter .* fails .*test_counting\.py:\d+"):
        count_macs(model, torch.randn(B, I))


def test_kernels_that_the_counter_cannot_see_into_are_counted_off_meta_too() -> None:
    """A forward that needs values runs where it is; there, too, a recurrent layer and attention are counted."""

    class Valued(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.rnn(x)[0]
            assert float(x.sum()) != 7  # needs the value
            return F.scaled_dot_product_attention(y, y, y)

    x = torch.randn(7, 2, 6)
    assert count_macs(Valued(), x) == 7 * 2 * 4 * 5 * (6 + 5) + 2 * 7 * 2 * 2 * 5


def test_gpt2_writes_its_linear_layers_as_addmm() -> None:
    """6 tokens, width 24, hidden 40: per block 3 + 1 squares, two hidden products, causal attention in full."""
    torch.manual_seed(0)
    structure = assert_exact(Gpt(), torch.arange(6).reshape(1, 6), certified=True)
    block = 6 * 24 * (3 * 24 + 24 + 2 * 40) + 2 * 4 * 6 * 6 * 6
    assert structure.macs == 2 * block + 24 * 5
    names = [layer.name for layer in structure.layers]
    assert names == [f"h.{i}.{part}" for i in (0, 1) for part in ("c_attn", "c_proj", "c_fc", "c_out")] + ["head"]
    layer = structure.layers[2]
    assert (layer.kind, layer.bias, layer.filters, layer.macs) == ("linear", "h.0.c_fc.bias", (40, 24), 6 * 24 * 40)
    groups = {group.name: group.size for group in structure.groups}
    assert groups == {f"h.{i}.{part}": size for i in (0, 1) for part, size in (("c_attn", 4), ("c_fc", 40))}


def test_a_stack_of_experts_is_a_layer_with_a_matrix_each() -> None:
    torch.manual_seed(0)
    structure = assert_exact(Experts(), torch.randn(5, 6), certified=True)
    up, down = (next(layer for layer in structure.layers if layer.name == name) for name in ("up", "down"))
    assert (up.groups, up.filters, up.macs) == (3, (27, 6), 5 * 3 * 6 * 9)
    assert (down.groups, down.filters, down.macs) == (3, (21, 9), 5 * 3 * 9 * 7)
    hidden = next(group for group in structure.groups if group.name == "up")
    assert hidden.size == 9
    assert np.array_equal(down.input, np.tile(hidden.offset + np.arange(9), 3))
