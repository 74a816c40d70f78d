"""Sizes that networks declare for other code: they follow the slice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc import apply_policy, inspect
from amc.pruning import Policy
from amc.zoo._torchvision import import_torchvision

import_torchvision()
timm = pytest.importorskip("timm")

# Heads of every kind that timm has: pooled and linear, with a hidden layer, of convolutions, with norms.
NETWORKS = ("resnet18", "mobilenetv3_small_050", "efficientnet_b0", "convnext_atto", "dla34", "densenet121")


def halved(model: nn.Module, x: Tensor) -> nn.Module:
    structure = inspect(model, x)
    keep = {group.name: range(max(1, group.size // 2)) for group in structure.groups}
    policy = Policy.of({name: torch.tensor(list(kept)).numpy() for name, kept in keep.items()}, _sizes(structure))
    return apply_policy(model, x, policy, structure)


def _sizes(structure: Any) -> dict[str, int]:
    return {group.name: group.size for group in structure.groups}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_slim_timm_network_takes_a_new_head_and_tells_its_features(name: str) -> None:
    model, x = timm.create_model(name).eval(), torch.randn(1, 3, 64, 64)
    slim = halved(model, x)
    with torch.no_grad():
        hidden = slim.forward_head(slim.forward_features(x), pre_logits=True)
        assert slim.head_hidden_size == hidden.shape[1] < model.head_hidden_size or name == "convnext_atto"
        shapes: dict[str, int] = {}
        for entry in slim.feature_info:
            slim.get_submodule(entry["module"]).register_forward_hook(
                lambda module, args, out, at=entry["module"]: shapes.__setitem__(at, out.shape[1])
            )
        slim(x)
        assert [entry["num_chs"] for entry in slim.feature_info] == [shapes[e["module"]] for e in slim.feature_info]
        slim.reset_classifier(5)
        assert slim(x).shape == (1, 5)
    assert model.num_features == timm.create_model(name).num_features


def test_a_size_that_names_another_number_stays() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Linear(6, 2)
            self.in_channels, self.hidden_size, self.num_features = 3, 77, 2

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(self.a(x).relu()).mean((2, 3)))

    slim: Any = halved(Own(), torch.randn(1, 3, 4, 4))
    assert slim.a.out_channels == 4
    assert (slim.in_channels, slim.hidden_size, slim.num_features) == (3, 77, 2)
