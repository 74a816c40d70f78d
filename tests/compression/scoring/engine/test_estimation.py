"""Statistics of batch norms from pieces are those of the network itself, to the last bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from amc.compression.scoring.batchnorm import reestimate_batchnorm_
from amc.compression.scoring.engine.network import PiecewiseEngine
from amc.compression.scoring.engine.torch_piece import TorchPiece
from amc.structure.trace import Example
from amc.zoo import create_model
from tests.threads import one_thread  # noqa: F401 -- a fixture

BATCHES = [
    Example.of(torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))) for count in (9, 9, 5)
]


def separable(last: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, 2, groups=8, bias=False), nn.BatchNorm2d(8, momentum=None), nn.ReLU(inplace=True),
        nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6, affine=False), nn.Hardswish(), nn.Flatten(), nn.LazyLinear(4),
    ).eval()  # fmt: skip
    model(BATCHES[0].args[0])
    with torch.no_grad():
        model[6].weight *= last
    return model


def engine(model: nn.Module, limit: int = 1 << 26) -> PiecewiseEngine:
    return PiecewiseEngine("torch", TorchPiece, model, BATCHES[0], images=50, limit=limit)


def assert_same(model: nn.Module, on: PiecewiseEngine) -> None:
    """The whole network is afterwards as torch alone leaves it."""
    other = copy.deepcopy(model)
    reestimate_batchnorm_(model, BATCHES, on)
    reestimate_batchnorm_(other, BATCHES)
    found, wanted = model.state_dict(), other.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def test_networks_that_begin_alike_share_it_with_the_same_statistics() -> None:
    on = engine(separable())
    for last in (1.0, 2.0, 3.0):
        assert_same(separable(last), on)
    assert (on.memory.hits, on.memory.misses) == (2 * 3, 3)


def test_other_weights_at_the_beginning_share_nothing() -> None:
    on = engine(separable())
    assert_same(separable(), on)
    other = separable()
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-6
    assert_same(other, on)
    assert on.memory.hits == 0


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v1_050"])
def test_networks_of_the_zoo_have_the_same_statistics(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name).eval()
    on = engine(model, limit=1 << 28)
    for _ in range(2):
        assert_same(copy.deepcopy(model), on)
    assert on.memory.hits == 3


class Reading(nn.Module):
    """Reads the statistics of a batch norm besides."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        return y * self.norm.running_mean.sum()


class Own(nn.BatchNorm2d):
    """Computes in training mode what no other batch norm does."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(2 * input if self.training else input)


def tied() -> nn.Module:
    """Two batch norms that share their statistics and not their weights."""
    one, two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    two.running_mean, two.running_var = one.running_mean, one.running_var
    nn.init.constant_(two.weight, 2.0)
    return nn.Sequential(one, two)


@pytest.mark.parametrize("first", [Reading(), Own(3), tied()])
def test_other_kinds_of_norms_are_left_to_the_network(first: nn.Module) -> None:
    model = nn.Sequential(first, nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    on = engine(model)
    assert_same(model, on)
    assert on.memory.hits == on.memory.misses == 0


def test_a_norm_that_is_used_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b(self.norm(self.a(self.norm(x))))
            return y

    model = Twice().eval()
    on = engine(model)
    for _ in range(2):
        assert_same(copy.deepcopy(model), on)
    assert on.memory.hits == 3
