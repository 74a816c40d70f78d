"""Rankings against brute force: every candidate removed and the rest refitted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc.pruning.ranking import elimination, group_columns, magnitude
from amc.structure import Group, Layer, Structure, inspect
from tests.pruning.samples import correlated, flat

SAMPLES = 600


class TwoReaders(nn.Module):
    """One group, read by a 3x3 and a 1x1 convolution with outputs of very different size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 1)
        self.a, self.b = nn.Conv2d(7, 4, 3, padding=1), nn.Conv2d(7, 6, 1)
        self.out = nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(torch.cat([self.a(x), 20 * self.b(x)], 1))


class Doubled(nn.Module):
    """Every channel of the group is read at two positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 6, 1), nn.Conv2d(12, 3, (1, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(torch.cat([x, x.tanh()], 1))


class Flattened(nn.Module):
    """Every channel is four inputs of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 6, 1), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.nn.functional.adaptive_avg_pool2d(self.stem(x), 2).flatten(1))


CASES: dict[str, Callable[[], nn.Module]] = {
    "kernel 1": lambda: nn.Sequential(nn.Conv2d(3, 9, 1), nn.Conv2d(9, 4, 1)),
    "kernel 3": lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 3)),
    "two readers": TwoReaders,
    "two positions a channel": Doubled,
    "flattened": Flattened,
    "groups, tied across": lambda: nn.Sequential(
        nn.Conv2d(3, 12, 1), nn.Conv2d(12, 6, (3, 1), groups=2), nn.Conv2d(6, 2, 1)
    ),
}


class Case:
    """The first group of a network, with made-up patches for every layer that reads it."""

    def __init__(self, name: str, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = CASES[name]().eval()
        self.structure: Structure = inspect(self.model, torch.zeros(1, 3, 6, 6))
        self.group: Group = self.structure.groups[0]
        self.readers: list[Layer] = [self.structure.layers[index] for index in self.group.consumers]
        named = dict(self.model.named_parameters())
        self.weights = {layer.weight: flat(named[layer.weight], layer.groups) for layer in self.readers}
        self.x: dict[str, Tensor] = {}
        for index, (key, weight) in enumerate(self.weights.items()):
            parts, n, _ = weight.shape
            self.x[key] = torch.stack([correlated(SAMPLES, n, 10 * seed + index + g) for g in range(parts)])
        self.grams = {key: x.mT @ x / SAMPLES for key, x in self.x.items()}

    def columns(self, layer: Layer, channels: list[int]) -> list[int]:
        """Columns of X that belong to these channels of the group, counted out position by position."""
        inputs = layer.input[: layer.input.size // layer.groups]
        kernel = int(np.prod(layer.kernel))
        return [
            position * kernel + k
            for position, slot in enumerate(inputs.tolist())
            if slot - self.group.offset in channels
            for k in range(kernel)
        ]

    def error(self, channels: list[int]) -> float:
        """Least squared error with these channels, over all readers, each by the energy of its output."""
        total = 0.0
        for layer in self.readers:
            x, target = self.x[layer.weight], self.x[layer.weight] @ self.weights[layer.weight]
            part = x[:, :, self.columns(layer, channels)]
            rest = target - part @ torch.linalg.lstsq(part, target).solution
            total += float(rest.square().sum() / target.square().sum())
        return total

    def greedy(self) -> list[int]:
        """The order that brute force finds, most valuable first."""
        alive, removed = list(range(self.group.size)), []
        while len(alive) > 1:
            errors = [self.error([c for c in alive if c != candidate]) for candidate in alive]
            removed.append(alive.pop(int(np.argmin(errors))))
        return [*alive, *reversed(removed)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_elimination_is_the_greedy_order_of_brute_force(name: str, seed: int) -> None:
    case = Case(name, seed)
    order = elimination(case.structure, case.group, case.weights, case.grams)
    assert order.tolist() == case.greedy()


@pytest.mark.parametrize("name", CASES)
def test_magnitude_is_the_norm_of_the_weights_that_read_each_channel(name: str) -> None:
    case = Case(name)
    total = np.zeros(case.group.size)
    for layer in case.readers:
        weight = case.weights[layer.weight].numpy()
        whole = (weight**2).sum()
        for channel in range(case.group.size):
            total[channel] += (weight[:, case.columns(layer, [channel])] ** 2).sum() / whole
    order = magnitude(case.structure, case.group, case.weights)
    assert order.tolist() == np.argsort(-total, kind="stable").tolist()


def test_magnitude_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 2, 1)).eval()
    structure = inspect(model, torch.zeros(1, 1, 2, 2))
    weight = torch.tensor([[1.0, 2.0, 0.0], [2.0, 0.0, -3.0]])  # squared norms of the columns: 5, 4, 9
    order = magnitude(structure, structure.groups[0], {"1.weight": flat(weight, 1)})
    assert order.tolist() == [2, 0, 1]


@pytest.mark.parametrize("name", CASES)
def test_elimination_errs_no_more_than_magnitude_on_correlated_data(name: str) -> None:
    case = Case(name, seed=3)
    by_error = elimination(case.structure, case.group, case.weights, case.grams).tolist()
    by_norm = magnitude(case.structure, case.group, case.weights).tolist()
    counts = range(1, case.group.size)
    ours = [case.error(by_error[:count]) for count in counts]
    norms = [case.error(by_norm[:count]) for count in counts]
    assert sum(ours) < sum(norms)
    assert ours[-1] <= norms[-1] + 1e-9  # one channel removed: elimination is optimal


def test_a_copy_of_another_channel_goes_first_whatever_its_norm() -> None:
    case = Case("kernel 1")
    x = case.x["1.weight"].clone()
    x[..., 5] = x[..., 2]  # one of the two is not needed
    case.weights["1.weight"][:, 5] *= 100
    noise = 1e-6 * torch.eye(9, dtype=torch.float64)
    order = elimination(case.structure, case.group, case.weights, {"1.weight": x.mT @ x / SAMPLES + noise})
    assert order[-1] in (2, 5)
    assert magnitude(case.structure, case.group, case.weights)[0] == 5


def test_a_wide_group_is_ranked_in_few_steps_with_every_channel_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 300, 1), nn.Conv2d(300, 8, 1)).eval()
    structure = inspect(model, torch.zeros(1, 3, 2, 2))
    x = correlated(1000, 300, 0, rank=40)[None]
    x[..., 7::50] *= 1e-3  # six channels that hardly speak
    weight = flat(dict(model.named_parameters())["1.weight"], 1)
    order = elimination(structure, structure.groups[0], {"1.weight": weight}, {"1.weight": x.mT @ x / 1000})
    assert sorted(order.tolist()) == list(range(300))
    assert set(range(7, 300, 50)) <= set(order[-40:].tolist())


def test_a_group_that_no_weight_reads_keeps_its_order() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.scale = nn.Conv2d(3, 5, 1), nn.Parameter(torch.rand(5, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return (self.stem(x) * self.scale).sum(1)

    structure = inspect(Pooled().eval(), torch.zeros(1, 3, 4, 4))
    for group in structure.groups:
        assert magnitude(structure, group, {}).tolist() == list(range(group.size))
        assert elimination(structure, group, {}, {}).tolist() == list(range(group.size))


def test_group_columns_lists_every_position_of_a_channel() -> None:
    structure = inspect(Doubled().eval(), torch.zeros(1, 3, 4, 4))
    layer = structure.layers[-1]
    columns = group_columns(structure.groups[0], layer)
    assert columns is not None
    assert columns.tolist() == [[2 * c, 2 * c + 1, 12 + 2 * c, 13 + 2 * c] for c in range(6)]
    assert group_columns(structure.groups[0], structure.layers[0]) is None  # the stem reads the image
