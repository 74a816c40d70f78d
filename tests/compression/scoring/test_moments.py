"""Layer norms after approximate slicing: every channel has its dense mean and spread again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import amc
from amc.compression.scoring.moments import LEAST, MOST, Moments, match_moments_, moments_on
from amc.compression.scoring.policy import PolicyScorer
from amc.pruning.pruner import Pruner
from amc.structure.slicing import slice_model, slice_tensors
from amc.structure.trace import Example

WIDTH = 12


class Stream(nn.Module):
    """A stream of two residual branches; the norm is the test's."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.up, self.down = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)
        self.first, self.last = norm(WIDTH), norm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.down(self.up(self.first(x)).relu())
        y: Tensor = self.head(self.last(x))
        return y


def sliced(net: nn.Module, name: str, kept: int) -> tuple[nn.Module, Any]:
    """The network with the first channels of a group, and a function that slices moments likewise."""
    structure = amc.inspect(net, torch.zeros(1, 4, 5), approximate=True)
    mask = structure.mask({name: np.arange(kept)})
    return slice_model(net, structure, mask), lambda part: slice_tensors(part, structure, mask)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_every_norm_has_the_dense_moments_again(norm: Any) -> None:
    net, inputs = Stream(norm).eval(), Example.of(torch.randn(32, 4, 5, generator=torch.Generator().manual_seed(0)))
    dense = moments_on(net, inputs)
    assert list(dense.mean) == ["first.weight", "last.weight"]
    slim, cut = sliced(net, "embed", 7)
    wanted, before = Moments(cut(dense.mean), cut(dense.spread)), moments_on(slim, inputs)
    match_moments_(slim, inputs, wanted)
    after = moments_on(slim, inputs)
    for name, spread in wanted.spread.items():
        ratio = spread / before.spread[name]
        reachable = (ratio > LEAST) & (ratio < MOST) if name == "first.weight" else torch.ones(len(spread)).bool()
        assert reachable.any()
        if name == "first.weight":  # nothing before it changed
            torch.testing.assert_close(after.spread[name][reachable], spread[reachable])
        if norm is nn.LayerNorm:
            torch.testing.assert_close(after.mean[name], wanted.mean[name], atol=1e-5, rtol=1e-4)


def test_the_dense_network_is_untouched() -> None:
    net, inputs = Stream(nn.LayerNorm).eval(), Example.of(torch.randn(8, 4, 5))
    state = {name: value.clone() for name, value in net.state_dict().items()}
    slim, cut = sliced(net, "up", 4)  # the norms are whole, and may share their weights with the dense network
    dense = moments_on(net, inputs)
    match_moments_(slim, inputs, Moments(cut(dense.mean), cut(dense.spread)))
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not torch.equal(slim.last.weight, net.last.weight)
    assert slim.last.weight.requires_grad
    assert not slim.last.weight.is_inference()


def test_a_norm_that_runs_twice_and_one_over_images_stay() -> None:
    class Twice(Stream):
        def forward(self, x: Tensor) -> Tensor:
            x = self.first(self.embed(x))
            y: Tensor = self.head(self.first(x + self.down(self.up(x))))
            return y

    assert moments_on(Twice(nn.LayerNorm).eval(), Example.of(torch.randn(4, 4, 5))).mean == {}
    images = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(1, 4)).eval()
    dense = moments_on(images, Example.of(torch.randn(4, 3, 6, 6)))
    assert list(dense.mean) == ["2.weight"]
    assert dense.mean["2.weight"].shape == (4,)


def test_channels_of_images_are_the_second_axis() -> None:
    class LayerNorm2d(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    net = nn.Sequential(nn.Conv2d(3, 6, 1), LayerNorm2d(6)).eval()  # as wide as it has channels
    found = moments_on(net, Example.of(torch.randn(4, 3, 6, 6)))
    torch.testing.assert_close(found.mean["1.weight"], net(torch.zeros(1, 3, 6, 6)).new_zeros(6), atol=2.0, rtol=0)
    output = net(torch.ones(1, 3, 6, 6))[0, :, 0, 0]
    same = moments_on(net, Example.of(torch.ones(1, 3, 6, 6)))
    torch.testing.assert_close(same.mean["1.weight"], output.detach())
    torch.testing.assert_close(same.spread["1.weight"], torch.zeros(6), atol=1e-6, rtol=0)


def test_scores_are_those_of_matched_networks() -> None:
    net, batch = Stream(nn.LayerNorm).eval(), torch.randn(64, 4, 5, generator=torch.Generator().manual_seed(0))
    structure = amc.inspect(net, torch.zeros(1, 4, 5), approximate=True)
    builder = Pruner(net, structure, None)

    def distance(slim: nn.Module) -> float:
        with torch.inference_mode():
            return -float((slim(batch) - net(batch)).square().mean())

    inputs = Example.of(batch)
    plain, matched = (
        PolicyScorer(builder, distance, [inputs], dense=structure.sizes.tolist(), norms={}, moments=moments)
        for moments in (None, moments_on(net, inputs))
    )
    policy = [max(1, size * 3 // 4) for size in structure.sizes.tolist()]
    assert matched(policy) > plain(policy)
    assert matched(policy) == distance(matched.build(policy))
    assert matched(structure.sizes.tolist()) == 0.0
