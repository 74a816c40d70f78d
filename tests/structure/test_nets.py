"""Whole small networks: nearly everything is prunable, and exactly so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from amc.structure import inspect, slice_model
from tests.structure import nets
from tests.structure.checks import assert_exact
from tests.structure.toys import Case


@pytest.mark.parametrize(
    ("make", "share"), [(nets.unet, 1.0), (nets.yolo, 0.99), (nets.keyword_spotter, 1.0), (nets.text_encoder, 0.99)]
)
def test_small_networks_are_exact(make: Callable[[], Case], share: float) -> None:
    torch.manual_seed(0)
    structure = assert_exact(*make(), policies=3)
    assert structure.prunable_macs() >= share


def test_a_pruned_detector_keeps_its_outputs() -> None:
    model, x = nets.yolo()
    structure = inspect(model, x)
    mask = structure.mask({g.name: range(max(1, g.size // 2)) for g in structure.groups})
    found = slice_model(model, structure, mask).eval()(x)
    # 8x8 and 4x4 places, 4 box coordinates and 4 classes
    assert {name: tuple(value.shape) for name, value in found.items()} == {"boxes": (1, 4, 80), "scores": (1, 4, 80)}


def test_a_long_chain_has_one_group_a_layer_in_order() -> None:
    structure = inspect(*nets.chain(60))
    assert [g.name for g in structure.groups] == [str(3 * i) for i in range(59)]
    assert structure.macs == 64 * 9 * (3 * 16 + 59 * 16 * 16)
