"""Sizes in settings that a module holds: objects, dictionaries, and lists in them."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import logging
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.structure import inspect, slice_model
from tests.structure.checks import assert_exact


@dataclasses.dataclass(frozen=True)
class Frozen:
    heads: int
    size: int


class Block(nn.Module):
    """Attention whose sizes are in an object that all blocks share."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg
        inner = self.of("heads") * self.of("size")
        self.qkv, self.out = nn.Linear(6, 3 * inner), nn.Linear(inner, 6)

    def of(self, name: str) -> Any:
        return self.cfg[name] if isinstance(self.cfg, dict) else getattr(self.cfg, name)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        heads, size = self.of("heads"), self.of("size")
        q, k, v = self.qkv(x).reshape(b, n, 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + self.out(y.reshape(b, n, heads * size) if isinstance(self.cfg, Frozen) else y.reshape(b, n, -1))


HOLDERS = [Frozen, types.SimpleNamespace, argparse.Namespace, dict]


@pytest.mark.parametrize("holder", HOLDERS)
def test_heads_that_settings_count_go_block_by_block(holder: Any) -> None:
    cfg = holder(heads=5, size=4)
    net = nn.Sequential(Block(cfg), Block(cfg))
    before = copy.deepcopy(cfg)
    structure = assert_exact(net, torch.randn(2, 7, 6))
    assert [(g.name, g.size) for g in structure.groups] == [("0.qkv", 5), ("1.qkv", 5)]
    slim: Any = slice_model(net, structure, structure.mask({"0.qkv": [0, 2], "1.qkv": [0, 1, 4]}))
    assert [(block.of("heads"), block.of("size")) for block in slim] == [(2, 4), (3, 4)]
    assert type(slim[0].cfg) is type(cfg)
    assert type(slim[0].of("heads")) is int
    assert net[0].cfg is net[1].cfg is cfg
    assert cfg == before


def test_settings_that_nothing_changes_are_still_shared() -> None:
    cfg = types.SimpleNamespace(heads=5, size=4)
    net = nn.Sequential(Block(cfg), Block(cfg))
    structure = inspect(net, torch.randn(1, 7, 6))
    slim: Any = slice_model(net, structure, structure.mask({}))
    assert slim[0].cfg == slim[1].cfg == cfg


def test_a_list_in_settings() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cfg = types.SimpleNamespace(widths=[3, 5], name="parts")
            self.enter, self.a, self.b = nn.Linear(4, 8), nn.Linear(3, 2), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.enter(x).split(self.cfg.widths, -1)
            return self.a(a) + self.b(b)

    net = Parts()
    structure = assert_exact(net, torch.randn(2, 4))
    assert sorted(g.size for g in structure.groups) == [3, 5]
    keep = {g.name: range(g.size - 1) for g in structure.groups}
    assert slice_model(net, structure, structure.mask(keep)).cfg.widths == [2, 4]
    assert net.cfg.widths == [3, 5]


class Counting:
    """Not settings: it is changed while the network runs."""

    def __init__(self) -> None:
        self.calls = 0


def test_an_object_that_the_network_changes_is_left_alone() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.state, self.layer = Counting(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.state.calls += 1
            return self.layer(x)

    net = nn.Sequential(Counted(), nn.ReLU(), nn.Linear(4, 2))
    assert_exact(net, torch.randn(2, 4))
    assert type(net[0].state.calls) is int


class Sole:
    """Cannot be copied."""

    def __init__(self) -> None:
        self.count = 3

    def __copy__(self) -> Any:
        raise TypeError("there is only one")

    def __deepcopy__(self, memo: Any) -> Any:
        return self


@pytest.mark.parametrize("holder", [logging.getLogger("amc.tests.settings"), Sole()])
def test_an_object_that_is_its_own_copy_is_left_alone(holder: Any) -> None:
    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.holder, self.layer = holder, nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    before = dict(vars(holder))
    assert_exact(nn.Sequential(Holding(), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 4))
    assert vars(holder) == before
    assert all(type(vars(holder)[name]) is type(value) for name, value in before.items())
