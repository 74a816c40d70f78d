"""Networks in which a size depends on the data: torch.export gives it a symbol, and we the example's number."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import amc
from amc.structure.certificate import certify

Forward = Callable[["Net", Tensor], object]


class Net(nn.Module):
    """[N, L, 4] -> what `forward` makes of the 8 channels of `a`."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.bias = nn.Parameter(torch.rand(1, 8))
        self.does = forward

    def forward(self, x: Tensor) -> object:
        return self.does(self, x)


def large(x: Tensor) -> Tensor:
    """[N, L]: a mask of the input alone, so that pruning changes no size."""
    return x.sum(2) > 2


def written(net: Net, x: Tensor) -> Tensor:
    h = net.a(x).clone()
    h[large(x)] = net.a(x)[large(x)].relu()
    return net.b(h)


PRUNABLE: dict[str, Forward] = {
    "rows by a mask": lambda net, x: net.b(net.a(x[0])[x[0].sum(1) > 2]),
    "a mask of two dimensions": lambda net, x: net.b(net.a(x)[large(x)]),
    "a mask of the second dimension": lambda net, x: net.b(net.a(x)[:, x[0].sum(1) > 2]),
    "a bias of one row": lambda net, x: net.b(net.a(x)[large(x)] + net.bias),
    "joined with others": lambda net, x: net.b(torch.cat([net.a(x)[large(x)], net.bias])).softmax(1),
    "positions of a mask": lambda net, x: net.b(net.a(x)[torch.where(large(x))]),
    "pairs of positions": lambda net, x: net.b(net.a(x)[large(x).nonzero()[:, 0], large(x).nonzero()[:, 1]]),
    "selected rows": lambda net, x: net.b(net.a(x).index_select(1, torch.where(x[0].sum(1) > 2)[0])),
    "written by a mask": written,
    "a number of rows as a result": lambda net, x: (net.b(net.a(x)[large(x)]), large(x).nonzero().shape[0] * 2),
    "two results of one operator": lambda net, x: net.b(sum(torch.frexp(net.a(x)))),
    "rows that the channels decide": lambda net, x: net.b(net.a(x)[net.b(net.a(x))[..., 0] > 0]),
}
LOCKED: dict[str, Forward] = {
    "positions of channels": lambda net, x: (net.b(net.a(x)), torch.where(net.a(x) > 0)),
    "single elements": lambda net, x: net.b(net.a(x).masked_select(large(x)[..., None]).view(-1, 8)),
    "masked channels": lambda net, x: net.a(x)[net.a(x) > 0.2],
    "a mask written over channels": lambda net, x: net.b(net.a(x).index_put((net.a(x) > 0.2,), torch.tensor(1.0))),
}


@pytest.fixture
def example() -> Tensor:
    torch.manual_seed(1)
    return torch.rand(5, 6, 4)


@pytest.mark.parametrize("forward", PRUNABLE.values(), ids=PRUNABLE)
def test_channels_are_pruned_where_the_data_decide_how_many_rows_there_are(forward: Forward, example: Tensor) -> None:
    net = Net(forward)
    structure = amc.inspect(net, example)
    assert [group.size for group in structure.groups] == [8]
    certified, certificate = certify(net, structure, example)
    assert certificate.passed
    assert len(certified.groups) == 1


@pytest.mark.parametrize("forward", LOCKED.values(), ids=LOCKED)
def test_channels_whose_positions_matter_are_locked(forward: Forward, example: Tensor) -> None:
    structure = amc.inspect(Net(forward), example)
    assert not structure.groups
    assert any("a" in str(lock) for lock in structure.locked)


def test_costs_are_those_of_the_example(example: Tensor) -> None:
    net = Net(PRUNABLE["a mask of two dimensions"])
    structure = amc.inspect(net, example)
    assert structure.macs == 5 * 6 * 4 * 8 + int(large(example).sum()) * 8 * 3
    assert structure.macs == amc.count_macs(net, example)


def test_the_network_and_the_random_numbers_are_left_as_they_were(example: Tensor) -> None:
    net = Net(PRUNABLE["rows by a mask"])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(7)
    amc.inspect(net, example)
    after = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(3))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_search_of_such_a_network_runs(example: Tensor) -> None:
    net = Net(PRUNABLE["a mask of two dimensions"])
    result = amc.compress(
        net, example, calibration=[example], evaluate=lambda module: -float(module(example).square().mean()),
        budget="macs<=70%", episodes=3,
    )  # fmt: skip
    assert amc.count_macs(result.model, example) <= 0.7 * amc.count_macs(net, example)
