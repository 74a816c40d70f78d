"""Channels of zeros that a shortcut adds: pruned where a slice can change their number, locked where it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import amc
from amc.structure.certificate import certify
from amc.structure.slicing import slice_model
from amc.zoo import create_model
from tests.structure.checks import assert_sliced_is_masked, random_keep

IMAGE = torch.zeros(1, 3, 8, 8)


class Shortcut(nn.Module):
    """[N, 8, H, W] -> [N, 12, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after, self.added, self.none = 1, 3, 2, 0
        self.numbers = (0, 0, 0, 0, 1, 3)

    def padded(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))

    forward = padded


class Both(Shortcut):
    """One number for both sides."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, [0, 0, 0, 0, self.added, self.added])


class OneSide(Shortcut):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, self.none, 2 * self.added), "constant", 0.0)


class Listed(Shortcut):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.numbers)


class Literal(Shortcut):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, 1, 3))


class Ones(Shortcut):
    """Channels of ones are no channels of zeros."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, self.before, self.after), value=1.0)


class Joined(Shortcut):
    """The number of rows in the middle comes from the same attribute as that of the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 1, 1, self.before, self.after))[:, :, 1:-1]


class Net(nn.Module):
    def __init__(self, shortcut: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 12, 1)
        self.shortcut, self.head = shortcut, nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y: Tensor = self.head((self.second(self.first(x)) + self.shortcut(x)).relu())
        return y


@pytest.mark.parametrize(
    ("shortcut", "groups"),
    [
        (Shortcut, {"stem": 8, "first": 6, "second": 4}),
        (Both, {"stem": 8, "first": 6, "second": 2}),  # a channel before and one after go together
        (OneSide, {"stem": 8, "first": 6, "second": 2}),  # twice a number: two channels go together
        (Joined, {"stem": 8, "first": 6, "second": 4}),
        (Listed, {"stem": 8, "first": 6, "second": 4}),
        (Literal, {"stem": 8, "first": 6}),
        (Ones, {"stem": 8, "first": 6}),
    ],
)
def test_which_channels_can_be_pruned_and_the_slices_are_exact(shortcut: Any, groups: dict[str, int]) -> None:
    net = Net(shortcut()).eval()
    structure = amc.inspect(net, IMAGE)
    assert {group.name: group.size for group in structure.groups} == groups
    certified, certificate = certify(net, structure, IMAGE, keep_sets=5)
    assert certificate.passed
    assert certified.groups == structure.groups
    reasons = [str(item.lock) for item in structure.locked]
    assert any("padding adds a literal number of channels" in reason for reason in reasons) == (len(groups) < 3)


def test_a_slice_has_the_numbers_of_what_it_keeps() -> None:
    net = Net(Shortcut()).eval()
    structure = amc.inspect(net, IMAGE)
    group = structure.group("second")
    mask = torch.ones(sum(each.size for each in structure.groups), dtype=torch.bool).numpy()
    mask[group.offset : group.offset + 2] = False  # the one before, and the first of three after
    slim = slice_model(net, structure, mask)
    assert (slim.shortcut.before, slim.shortcut.after) == (0, 2)
    assert slim(IMAGE).shape == (1, 2, 8, 8)
    again = amc.inspect(slim, IMAGE)
    assert {group.name: group.size for group in again.groups} == {"stem": 8, "first": 6, "second": 2}


def test_every_channel_of_our_residual_networks_but_the_logits_can_be_pruned() -> None:
    net, image = create_model("resnet20").eval(), torch.zeros(1, 3, 32, 32)
    structure = amc.inspect(net, image)
    assert [str(item) for item in structure.locked] == [str(item) for item in structure.locked if "linear" in item.name]
    assert (structure.group("layer2.0.conv2").size, structure.group("layer3.0.conv2").size) == (16, 32)
    slim = assert_sliced_is_masked(net, structure, image, random_keep(structure, 0))
    assert slim(image).shape == (1, 10)
