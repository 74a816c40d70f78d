"""Channels that an average runs over: locked, and pruned with `approximate`, with the difference measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import amc
from amc.errors import AmcError
from amc.structure import certificate as certificates
from amc.structure.slicing import slice_model
from amc.structure.structure import Structure
from tests.structure.checks import assert_sliced_is_masked

STREAM = 16
TOKENS = torch.zeros(1, 5, 6)


class HandWritten(nn.Module):
    """A norm by a mean of squares, as in most language models."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Centred(nn.Module):
    """A norm by `var_mean`, without weights."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, -1, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt()


class Responses(nn.Module):
    """Global response normalisation, as in ConvNeXt-V2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        spread = x.norm(dim=1, keepdim=True)
        return x + self.weight * x * spread / (spread.mean(-1, keepdim=True) + 1e-6)


class FromAttribute(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.weight = width, nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.width,), self.weight)


class Literal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (16,))


class OneGroup(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return y


class Blocks(nn.Module):
    """Two blocks of attention and hidden channels around a stream; the norm is the test's."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Linear(6, STREAM), nn.Linear(STREAM, 3)
        self.heads, self.width = 4, 8
        self.qkv, self.project = nn.Linear(STREAM, 24), nn.Linear(8, STREAM)
        self.up, self.down = nn.Linear(STREAM, 12), nn.Linear(12, STREAM)
        self.norms = nn.ModuleList([norm() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(self.norms[0](x)).reshape(1, 5, 3, self.heads, 2).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 5, -1)
        x = x + self.project(mixed)
        x = x + self.down(self.up(self.norms[1](x)).relu())
        y: Tensor = self.head(self.norms[2](x))
        return y


NORMS: dict[str, Any] = {
    "layer norm": lambda: nn.LayerNorm(STREAM),
    "RMS norm": lambda: nn.RMSNorm(STREAM),
    "by hand": lambda: HandWritten(STREAM),
    "without weights": Centred,
    "responses": lambda: Responses(STREAM),
    "an attribute": lambda: FromAttribute(STREAM),
    "one group": lambda: OneGroup(STREAM),
}


def kept(structure: Structure, name: str, count: int) -> Any:
    return structure.mask({name: np.arange(count)})


@pytest.mark.parametrize("norm", NORMS)
def test_the_stream_is_locked_and_goes_with_approximate(norm: str) -> None:
    net = Blocks(NORMS[norm]).eval()
    exact = amc.inspect(net, TOKENS)
    assert {group.name: group.size for group in exact.groups} == {"qkv": 4, "up": 12}
    structure = amc.inspect(net, TOKENS, approximate=True)
    assert {group.name: group.size for group in structure.groups} == {"embed": STREAM, "qkv": 4, "up": 12}
    assert [group.name for group in structure.groups if group.averaged] == ["embed"]
    assert "norms.0" in str(structure.group("embed").averaged)
    certified, certificate = amc.certify(net, structure, TOKENS)
    assert certified.groups == structure.groups
    assert certificate.passed
    assert certificate.worst_error < 1e-9
    ((name, difference),) = certificate.approximate
    assert name == "embed"
    assert 1e-6 < difference < certificates.APPROXIMATE_LIMIT
    slim = slice_model(net, structure, kept(structure, "embed", 9))
    assert slim(torch.randn(1, 5, 6)).shape == (1, 5, 3)
    assert amc.count_params(slim) == structure.cost.params([9, 4, 12])


def test_what_is_exact_stays_exact_with_approximate() -> None:
    net = Blocks(NORMS["layer norm"]).eval()
    structure = amc.inspect(net, TOKENS, approximate=True)
    assert_sliced_is_masked(net, structure, torch.randn(1, 5, 6), {"qkv": np.array([0, 3]), "up": np.arange(5)})


def test_heads_go_whole_where_a_norm_runs_over_their_features() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = 4
            self.qkv, self.norm, self.project = nn.Linear(6, 24), nn.LayerNorm(2), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).reshape(1, 5, 3, self.heads, 2).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(self.norm(q), self.norm(k), v)
            y: Tensor = self.project(mixed.transpose(1, 2).reshape(1, 5, -1))
            return y

    for approximate in (False, True):
        structure = amc.inspect(Net().eval(), TOKENS, approximate=approximate)
        assert [(group.name, group.size, group.averaged) for group in structure.groups] == [("qkv", 4, None)]


def test_standardised_weights() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            flat = self.weight.reshape(1, self.out_channels, -1)
            weight = F.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
            return F.conv2d(x, weight, self.bias, padding=1)

    net = nn.Sequential(Standardised(3, 8, 3), nn.ReLU(), Standardised(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    image = torch.randn(1, 3, 6, 6)
    exact, structure = (amc.inspect(net, image, approximate=approximate) for approximate in (False, True))
    assert [group.name for group in exact.groups] == ["2"]
    assert [(group.name, bool(group.averaged)) for group in structure.groups] == [("0", True), ("2", False)]
    _, certificate = amc.certify(net, structure, image)
    assert certificate.passed
    assert [name for name, _ in certificate.approximate] == ["0"]


def test_a_literal_width_locks_the_group() -> None:
    net = Blocks(Literal).eval()
    structure, certificate = amc.certify(net, amc.inspect(net, TOKENS, approximate=True), TOKENS)
    assert {group.name for group in structure.groups} == {"qkv", "up"}
    assert certificate.approximate == ()
    ((name, lock),) = certificate.failed
    assert name == "embed"
    assert "literal size" in str(lock)


def test_a_group_that_is_too_far_off_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "APPROXIMATE_LIMIT", 1e-4)
    net = Blocks(NORMS["layer norm"]).eval()
    structure, certificate = amc.certify(net, amc.inspect(net, TOKENS, approximate=True), TOKENS)
    assert {group.name for group in structure.groups} == {"qkv", "up"}
    assert not certificate.passed
    assert "differs from the masked one" in str(certificate.failed[0][1])


def test_a_search_prunes_the_stream_and_says_that_it_is_approximate(tmp_path: Any) -> None:
    net = Blocks(NORMS["layer norm"]).eval()
    tokens = torch.randn(64, 5, 6, generator=torch.Generator().manual_seed(0))

    def near(slim: nn.Module) -> float:
        with torch.inference_mode():
            return -float(sum((slim(x[None]) - net(x[None])).square().mean() for x in tokens[:8]))

    result = amc.compress(
        net, TOKENS, calibration=[x[None] for x in tokens], evaluate=near, budget="params<=70%", episodes=4,
        approximate=True, round_to=1, finalists=0, recover="none", run_dir=tmp_path / "run",
    )  # fmt: skip
    kept = {group["name"]: group["kept"] for group in result.summary["groups"]}
    assert kept.keys() == {"embed", "qkv", "up"}
    assert "embed" in result.summary["certificate"]["approximate"]
    assert "embed is approximate" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    again = amc.load_run(tmp_path / "run", net, TOKENS)
    assert torch.equal(again(tokens[:1]), result.model(tokens[:1]))


def test_masks_are_exact_anyway() -> None:
    with pytest.raises(AmcError, match="leave approximate out"):
        amc.SearchConfig(method="fine-grained", approximate=True)
