"""Whatever the coupling, the sliced network equals the masked one and costs what the closed form says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from amc.structure import count_macs, count_params, inspect, slice_model
from tests.structure.checks import assert_exact, assert_sliced_is_masked, random_keep
from tests.structure.toys import CASES, image


@pytest.mark.parametrize("name", CASES)
def test_slicing_equals_masking(name: str) -> None:
    torch.manual_seed(0)
    model, x = CASES[name]()
    structure = assert_exact(model, x)
    # The text toy's stream is tied to its output through the embedding; everywhere else most is prunable.
    assert structure.prunable_macs() > (0.5 if name == "tied embedding" else 0.99)


OPERATIONS = ("conv", "strided", "depthwise", "grouped", "residual", "concat", "chunk", "shuffle", "gate", "pad")


class Random(nn.Module):
    """A network made of a list of operations on one stream, each of which keeps, widens or couples channels."""

    def __init__(self, program: list[tuple[str, int]]) -> None:
        super().__init__()
        self.program, self.layers = program, nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1)])
        width = 8
        for operation, amount in program:
            made, width = self._made(operation, width, amount)
            self.layers.append(made)
        self.head = nn.Linear(width, 3)

    def _made(self, operation: str, width: int, amount: int) -> tuple[nn.Module, int]:
        wider = 4 * amount
        if operation in ("conv", "strided"):
            return nn.Conv2d(width, wider, 3, 2 if operation == "strided" else 1, 1), wider
        if operation == "depthwise":
            return nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width)), width
        if operation == "grouped":
            return nn.Conv2d(width, wider, 3, padding=1, groups=2 if amount % 2 else 4), wider
        if operation == "residual":
            return nn.Sequential(nn.Conv2d(width, 5, 1), nn.ReLU(), nn.Conv2d(5, width, 1)), width
        if operation == "concat":
            return nn.Conv2d(width, 4, 1), width + 4
        if operation == "chunk":
            return nn.Conv2d(width // 2, width // 2, 1), width
        if operation == "gate":
            return nn.Conv2d(width, width, 1), width
        return nn.Identity(), width + 4 if operation == "pad" else width

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        for (operation, _), layer in zip(self.program, list(self.layers)[1:], strict=True):
            x = F.relu(self._step(operation, layer, x))
        return self.head(x.mean((2, 3)))

    def _step(self, operation: str, layer: nn.Module, x: Tensor) -> Tensor:
        if operation == "residual":
            return x + layer(x)
        if operation == "concat":
            return torch.cat([x, layer(x)], 1)
        if operation == "chunk":
            a, b = x.chunk(2, 1)
            return torch.cat([layer(a), b], 1)
        if operation == "shuffle":
            n, c, h, w = x.shape
            return x.reshape(n, 2, c // 2, h, w).transpose(1, 2).flatten(1, 2)
        if operation == "gate":
            return x * layer(F.adaptive_avg_pool2d(x, 1)).sigmoid()
        return F.pad(x, (0, 0, 0, 0, 1, 3)) if operation == "pad" else layer(x)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(1, 5)), min_size=1, max_size=6))
def test_random_architectures_are_exact(program: list[tuple[str, int]]) -> None:
    """Certified, because a shuffle of shuffles makes the forward's literal 2 matter."""
    torch.manual_seed(0)
    assert_exact(Random(program), image(batch=1), policies=2, certified=True)


def test_pruning_the_pruned_is_exact() -> None:
    torch.manual_seed(0)
    model, x = CASES["residual, zero padding"]()
    structure = inspect(model.eval(), x)
    slim = assert_sliced_is_masked(model, structure, x, random_keep(structure, 0))
    assert_exact(slim, x, policies=2)


def test_torch_pruning_removes_the_same_parameters() -> None:
    """The usual library agrees on a plain residual network, channel for channel."""
    tp = pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    model, x = CASES["residual, projection"]()
    model.eval()
    structure = inspect(model, x)
    drop = [1, 4, 6]
    slim = slice_model(model, structure, structure.mask({"stem": np.setdiff1d(np.arange(8), drop)}))
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    graph.get_pruning_group(model.stem, tp.prune_conv_out_channels, idxs=drop).prune()
    ours, theirs = slim.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)
    assert count_params(slim) == sum(p.numel() for p in model.parameters())
    assert count_macs(slim, x) == count_macs(model, x)
