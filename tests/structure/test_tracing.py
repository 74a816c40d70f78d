"""Models as people write them: modes, precisions, inputs, outputs, and what cannot be traced."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.errors import ModelError
from amc.structure import count_macs, inspect, slice_model
from tests.structure.checks import assert_exact
from tests.structure.toys import Residual, image


class Two(nn.Module):
    """Two inputs, one by keyword, a flag, and outputs in a nested container."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out, self.aux = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 2), nn.Linear(6, 3)

    def forward(self, x: Tensor, *, y: Tensor | None = None, double: bool = False) -> dict[str, Any]:
        z = self.a(x) if y is None else self.a(x) + self.b(y)
        z = F.relu(z * 2 if double else z)
        return {"logits": self.out(z), "more": (self.aux(z), None)}


def test_keywords_several_inputs_and_nested_outputs() -> None:
    x = {"x": torch.randn(2, 4), "y": torch.randn(2, 3), "double": True}
    structure = assert_exact(Two(), x)
    assert [(g.name, g.size) for g in structure.groups] == [("a", 6)]
    assert structure.macs == 2 * (4 * 6 + 3 * 6 + 6 * 2 + 6 * 3)


def test_a_tuple_gives_positional_arguments() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return self.out(self.a(x) - self.a(y)), x

    structure = assert_exact(Sum(), (torch.randn(2, 4), torch.randn(2, 4)))
    assert structure.macs == 2 * 2 * 4 * 6 + 2 * 6 * 2  # the shared layer counts at each call


def test_train_mode_does_not_matter() -> None:
    model, x = Residual("projection"), image()
    one, other = inspect(model.train(), x), inspect(model.eval(), x)
    assert [g.name for g in one.groups] == [g.name for g in other.groups]
    assert one.macs == other.macs


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    model, x = Residual("projection").to(dtype), image().to(dtype)
    structure = inspect(model, x)
    assert [g.size for g in structure.groups] == [8, 6, 10, 12]
    assert structure.macs == count_macs(model, x)


def test_frozen_and_unused_parameters() -> None:
    model, x = Residual("projection"), image()
    model.requires_grad_(False)
    model.spare = nn.Linear(7, 7)
    structure = assert_exact(model, x)
    assert [g.size for g in structure.groups] == [8, 6, 10, 12]
    assert structure.params == sum(p.numel() for p in model.parameters())


def test_blocks_without_gradients_or_autocast_are_followed() -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                x = self.a(x).relu()
            with torch.autocast("cpu", enabled=False):
                x = self.b(x).relu()
            return self.c(x)

    structure = assert_exact(Blocks(), torch.randn(2, 4))
    assert [g.size for g in structure.groups] == [6, 5]


def test_data_dependent_control_flow_is_refused_naming_the_line() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:  # the line to be named
                return self.a(x)
            return self.a(-x)

    with pytest.raises(ModelError, match=r"torch.export cannot trace Branch: .*test_tracing.py:\d+") as caught:
        inspect(Branch(), torch.randn(2, 4))
    assert len(str(caught.value).splitlines()) == 1
    line = int(str(caught.value).split("test_tracing.py:")[1].split(")")[0])
    assert "the line to be named" in Path(__file__).read_text().splitlines()[line - 1]


def test_a_forward_that_raises_is_refused_naming_the_line() -> None:
    with pytest.raises(ModelError, match=r"Residual does not take the example input: .*toys\.py"):
        inspect(Residual("projection"), torch.randn(2, 5, 8, 8))


def test_an_error_without_a_message_is_reported_by_its_kind() -> None:
    class SilentError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise SilentError

    with pytest.raises(ModelError, match=r"Raises does not take the example input: SilentError \(at .*test_tracing"):
        inspect(Raises(), torch.randn(1, 3))


def test_attributes_are_restored_even_if_tracing_fails() -> None:
    model = Residual("projection")
    model.count = 3
    with pytest.raises(ModelError):
        inspect(model, torch.randn(2, 5, 8, 8))
    assert type(model.count) is int
    assert model.training


def test_a_forward_that_counts_its_calls_is_unchanged() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.width = 0, 6
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.twice = self.width * 2
            return self.b(self.a(x).view(-1, self.width))

    model, x = Counting(), torch.randn(3, 4)
    structure = inspect(model, x)
    assert (model.calls, type(model.calls), type(model.width)) == (0, int, int)
    assert not hasattr(model, "twice")
    assert slice_model(model, structure, structure.mask({"a": [0, 1]})).width == 2


def test_two_calls_of_one_batch_norm_and_a_reused_activation() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1)
            self.norm, self.act, self.out = nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(12, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.cat([self.act(self.norm(self.a(x))), self.act(self.norm(self.b(x)))], 1))

    structure = assert_exact(Twice(), image())
    assert [g.size for g in structure.groups] == [6]


ATTENTION = """
import torch
from torch import nn

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = 4
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(2, 5, 3, self.heads, 4).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))

class Breaks(nn.Module):
    def forward(self, x):
        raise ValueError("not today")
"""


@pytest.mark.parametrize("folder", ["amc", "torch", "amc/torch/amc", "site-packages/torch"])
def test_a_project_may_be_called_as_a_library_is(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / folder
    home.mkdir(parents=True)
    (home / "own_networks.py").write_text(ATTENTION)
    monkeypatch.syspath_prepend(home)
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)
    networks = importlib.import_module("own_networks")
    structure = assert_exact(networks.Attention(), torch.randn(2, 5, 16))
    assert [(group.name, group.size) for group in structure.groups] == [("qkv", 4)]  # whole heads, by self.heads
    assert [lock.lock.source for lock in structure.locked] == [""]
    with pytest.raises(ModelError, match=rf"not today \(at {home}/own_networks\.py:18\)"):
        inspect(networks.Breaks(), torch.randn(1, 3))
