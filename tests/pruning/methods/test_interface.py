"""What is asked of every method: its locks, its certificate, its warnings, and how a built network is finished."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from amc.errors import BudgetError, ModelError
from amc.pruning import GroupPolicy, LayerPolicy, Policy, Pruner, calibrate
from amc.pruning.methods import create_method, problem_of, shaped
from amc.structure import Structure, inspect


class Net(nn.Module):
    """Three layers; `b` reads the size of its input where it cannot be traced, so no slice of `a` runs."""

    def __init__(self, literal: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 2, 1)
        self.literal = literal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.a(x)
        if self.literal and hidden.shape[1] != 6:
            raise ValueError("6 channels, please")
        out: torch.Tensor = self.c(self.b(hidden))
        return out


EXAMPLE = torch.zeros(1, 3, 5, 5)


def made(literal: bool = False) -> tuple[nn.Module, Structure]:
    model = Net(literal).eval()
    return model, inspect(model, EXAMPLE)


@pytest.mark.parametrize(
    ("locks", "reason"), [({"lock": ("a",)}, "locked by --lock"), ({"only": ("b",)}, "not chosen by --only")]
)
@pytest.mark.parametrize("name", ["channel", "fine-grained"])
def test_every_method_takes_the_same_patterns(name: str, locks: dict[str, Any], reason: str) -> None:
    method = create_method(name, *made(), **locks)
    assert "a" not in [decision.name for decision in method.decisions]
    assert "b" in [decision.name for decision in method.decisions]
    assert method.whole["a"] == reason


def test_the_summary_lists_what_stays_whole() -> None:
    sliced, masked = (create_method(name, *made(), lock=("a",)) for name in ("channel", "fine-grained"))
    assert {"name": "a", "size": 6, "reason": "locked by --lock"} in sliced.locked()
    assert masked.locked() == [{"name": "a", "reason": "locked by --lock"}]


def test_only_a_method_that_masks_warns_of_layers_that_stay_dense() -> None:
    masked = create_method("fine-grained", *made(), lock=("a", "b"))
    assert masked.warnings() == ["stays dense: a (locked by --lock), and 1 more"]
    assert create_method("channel", *made(), lock=("a",)).warnings() == []
    assert create_method("fine-grained", *made()).warnings() == []


def test_channels_are_certified_and_those_that_fail_are_locked() -> None:
    method, certificate = create_method("channel", *made(literal=True)).checked(EXAMPLE, keep_sets=2)
    assert certificate is not None
    assert [name for name, _ in certificate.failed] == ["a"]
    assert [decision.name for decision in method.decisions] == ["b"]
    assert "literal size" in method.whole["a"]
    with pytest.raises(ModelError, match="there is nothing to prune in Net: "):
        create_method("channel", *made(literal=True), lock=("b",)).checked(EXAMPLE, keep_sets=2)


@pytest.mark.parametrize(("name", "keep_sets"), [("fine-grained", 3), ("channel", 0)])
def test_without_keep_sets_to_check_there_is_no_certificate(name: str, keep_sets: int) -> None:
    method = create_method(name, *made())
    assert method.checked(EXAMPLE, keep_sets=keep_sets) == (method, None)


@pytest.mark.parametrize("name", ["fine-grained", "channel"])
def test_every_method_compares_its_costs_with_the_counter(name: str) -> None:
    model, structure = made()
    with pytest.raises(ModelError, match="budgets would not hold"):
        create_method(name, model, structure).checked(torch.zeros(1, 3, 7, 7), keep_sets=0)


def test_a_method_with_every_layer_locked_says_why_nothing_can_be_pruned() -> None:
    with pytest.raises(BudgetError, match=r"nothing to prune: method rows .*, a \(locked by --lock\), and 2 more"):
        problem_of(create_method("rows", *made(), lock=("*",)), ())
    with pytest.raises(ModelError, match=r"nothing to prune in Net: .*locked by --lock"):
        create_method("channel", *made(), lock=("*",))


class Block(nn.Sequential):
    """Declares a size that nobody reads."""

    out_channels: int


@pytest.mark.parametrize(("name", "keep", "width"), [("channel", (3,), 3), ("fine-grained", (9, 12), 6)])
def test_what_a_network_declares_of_its_sizes_follows_a_slice_only(
    name: str, keep: tuple[int, ...], width: int
) -> None:
    model = nn.Sequential(Block(nn.Conv2d(3, 6, 1)), nn.Conv2d(6, 4, 1)).eval()
    model[0].out_channels = 6
    method = create_method(name, model, inspect(model, EXAMPLE))
    slim = method.builder(None).build(keep)
    assert slim[0].out_channels == 6
    method.finish_(slim, EXAMPLE)
    assert (slim[0].out_channels, model[0].out_channels) == (width, 6)


@pytest.mark.parametrize("name", ["channel", "fine-grained"])
def test_ranking_and_reconstruction_are_told_step_by_step(name: str) -> None:
    model, structure = made()
    method = create_method(name, model, structure)
    steps: list[tuple[int, int]] = []
    gathered = calibrate(model, structure, [EXAMPLE.expand(64, -1, -1, -1)], layers=method.calibrated())
    builder = method.builder(gathered, None, lambda *step: steps.append(step))
    total = len(method.decisions) + (len(builder.fits) if isinstance(builder, Pruner) else 0)
    assert steps == [(number, total) for number in range(1, total + 1)]


def test_training_may_change_the_weights_that_a_mask_has_left() -> None:
    model, structure = made()
    masked = create_method("fine-grained", model, structure, lock=("c",))
    slim = masked.builder(None).build((9, 24))
    masks = masked.masks(slim)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"a.weight": 9, "b.weight": 24}
    assert torch.equal(masks["a.weight"], slim.a.weight != 0)
    assert create_method("channel", model, structure).masks(slim) == {}


@pytest.mark.parametrize(
    ("policy", "width"),
    [
        (Policy((GroupPolicy("a", 6, (0, 2, 5)),), "channel"), 3),
        (Policy((LayerPolicy("a", 18, 9),), "fine-grained"), 6),
    ],
)
def test_weights_are_loaded_into_a_network_of_the_policys_shapes(policy: Policy, width: int) -> None:
    model, _ = made()
    found = shaped(model, EXAMPLE, policy)
    assert found is not model
    assert (found.a.weight.shape[0], model.a.weight.shape[0]) == (width, 6)
