"""Sizes in lists and tuples of a module, such as those of a split: each entry follows the channels that it counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc.structure import certify, inspect, slice_model
from amc.structure.literals import set_attribute_


class Mixed(nn.Module):
    """Kernels of several sizes, each on its own part of the channels, as in MixNet."""

    def __init__(self, splits: Any, dim: str = "positional") -> None:
        super().__init__()
        self.splits, self.dim = splits, dim
        self.enter = nn.Conv2d(3, sum(splits), 1)
        self.parts = nn.ModuleList(
            nn.Conv2d(size, size, 1 + 2 * n, padding=n, groups=size) for n, size in enumerate(splits)
        )
        self.leave = nn.Conv2d(sum(splits), 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        if self.dim == "positional":
            parts = torch.split(x, self.splits, 1)
        elif self.dim == "method":
            parts = x.split(self.splits, dim=1)
        else:
            parts = torch.split(x, split_size_or_sections=self.splits, dim=1)
        return self.leave(torch.cat([part(each) for part, each in zip(self.parts, parts, strict=True)], 1))


IMAGE = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize("dim", ["positional", "method", "keyword"])
@pytest.mark.parametrize("splits", [[6, 6], (6, 6), [4, 4, 4], [7, 3], (5, 2, 9), [6, 3]])
def test_each_part_of_a_split_shrinks_by_itself(splits: Sequence[int], dim: str) -> None:
    model = Mixed(splits, dim).eval()
    structure = inspect(model, IMAGE)
    assert [lock.name for lock in structure.locked] == ["leave"]
    assert sorted(group.size for group in structure.groups) == sorted(splits)
    checked, certificate = certify(model, structure, IMAGE, keep_sets=6)
    assert certificate.failed == ()
    assert checked.prunable_macs() == 1.0


def test_the_entries_follow_and_the_dense_network_keeps_its_own() -> None:
    model = Mixed((7, 3)).eval()
    structure = inspect(model, IMAGE)
    kept = {group.name: list(range(group.size - 2)) for group in structure.groups}
    slim: Any = slice_model(model, structure, structure.mask(kept))
    assert (slim.splits, model.splits) == ((5, 1), (7, 3))
    assert type(slim.splits[0]) is int
    assert slim(IMAGE).shape == (2, 5, 8, 8)


class Viewed(nn.Module):
    """A shape in a tuple, of which one number counts channels."""

    def __init__(self) -> None:
        super().__init__()
        self.shape = [8, 4, 16]
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv1d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).view(-1, *self.shape)
        return self.b(x.flatten(2))


def test_a_shape_in_a_list_follows() -> None:
    model = Viewed().eval()
    structure = inspect(model, IMAGE)
    slim: Any = slice_model(model, structure, structure.mask({"a": [0, 3, 5]}))
    assert slim.shape == [3, 4, 16]
    assert slim(IMAGE).shape == model(IMAGE).shape


def test_setting_an_entry_keeps_the_kind_of_the_list() -> None:
    module = nn.Identity()
    module.one, module.two, module.three = 4, [1, 2], (3, 4)  # type: ignore[assignment]
    shared = module.two
    for name in ("one", "two[1]", "three[0]"):
        set_attribute_(module, name, 9)
    assert (module.one, module.two, module.three) == (9, [1, 9], (9, 4))
    assert shared == [1, 2]  # another module may hold it, too
