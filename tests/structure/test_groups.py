"""Groups, ties, costs and locks of small networks, against hand-made expectations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc.errors import ModelError
from amc.structure import Structure, count_macs, inspect, lock_groups, restrict, slice_model
from amc.structure.channels import Lock
from tests.structure.toys import C2f, Residual, Shuffle, Text, image


def sizes(structure: Structure) -> dict[str, int]:
    return {group.name: group.size for group in structure.groups}


def reasons(structure: Structure) -> dict[str, str]:
    return {locked.name: locked.lock.reason for locked in structure.locked}


def test_groups_come_in_execution_order_whatever_the_order_of_definition() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.middle, self.first = nn.Conv2d(5, 2, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.middle(self.first(x)))

    assert list(sizes(inspect(Backwards(), image())).items()) == [("first", 4), ("middle", 5)]


def test_residual_sum_ties_its_terms() -> None:
    structure = inspect(Residual("projection"), image())
    assert sizes(structure) == {"stem": 8, "a1": 6, "b1": 10, "b2": 12}
    names = [layer.name for layer in structure.layers]
    stem, b2 = structure.group("stem"), structure.group("b2")
    assert sorted(names[i] for i in stem.producers) == ["a2", "stem"]
    assert sorted(names[i] for i in stem.consumers) == ["a1", "b1", "project"]
    assert sorted(names[i] for i in b2.producers) == ["b2", "project"]


def test_zero_padded_shortcut_aligns_channel_i_with_i_plus_2() -> None:
    """Channels 2 to 9 of the second stream are those of the first; its ends 0, 1, 10 and 11 meet zeros, and stay."""
    structure = inspect(Residual("padding"), image())
    assert sizes(structure) == {"stem": 8, "a1": 6, "b1": 10}
    slots = structure.tensors["b2.weight"][0]
    stem = structure.group("stem")
    assert slots is not None
    assert slots.tolist() == [-1, -1, *range(stem.offset, stem.offset + 8), -1, -1]


def test_conv_macs_match_hand_count() -> None:
    """6x6 output positions, 3x3 kernel, 3 -> 5 channels; then 1x1, 5 -> 4."""
    structure = inspect(nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 1)), image(batch=1))
    assert structure.macs == 36 * 9 * 3 * 5 + 36 * 5 * 4
    assert structure.params == (9 * 3 * 5 + 5) + (5 * 4 + 4)
    assert structure.cost.macs([2]) == 36 * 9 * 3 * 2 + 36 * 2 * 4
    assert structure.cost.params([2]) == (9 * 3 * 2 + 2) + (2 * 4 + 4)
    assert [layer.macs for layer in structure.layers] == [36 * 9 * 3 * 5, 36 * 5 * 4]


def test_cost_is_vectorised_over_policies() -> None:
    structure = inspect(Residual("projection"), image())
    counts = np.array([[8, 6, 10, 12], [1, 1, 1, 1], [4, 3, 5, 6]])
    assert structure.cost(counts).tolist() == [structure.cost.macs(row) for row in counts]


@pytest.mark.parametrize(("groups", "tied"), [(2, True), (8, False)])
def test_grouped_convolution_is_pruned_inside_wide_groups_and_by_narrow_ones(groups: int, tied: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=groups), nn.Conv2d(16, 4, 1))
    structure = inspect(model, image())
    grouped = structure.layers[1]
    assert grouped.tied_across is tied
    # inside 2 groups of 8: input and output are separate choices of 8; by 8 groups of 2: one choice of 8
    assert [g.size for g in structure.groups] == ([8, 8] if tied else [8])
    keep = {structure.groups[0].name: [0, 5]}
    slim = slice_model(model, structure, structure.mask(keep))
    assert (slim[1].groups, slim[1].in_channels) == (2, 4)
    assert slim[1].weight.shape == ((16, 2, 3, 3) if tied else (4, 2, 3, 3))


def test_shuffled_halves_are_tied_in_pairs() -> None:
    """The branch reads the second half of the stem; every channel goes with the one it is shuffled with."""
    structure = inspect(Shuffle(), image())
    assert sizes(structure) == {"stem": 6}


def test_attribute_that_the_forward_splits_by_follows_the_slice() -> None:
    model = C2f()
    structure = inspect(model, image())
    assert sizes(structure) == {"cv1": 5, "cv2": 6}
    slim = slice_model(model, structure, structure.mask({"cv1": [0, 2, 3]}))
    assert (slim.c, model.c) == (3, 5)
    assert slim(image()).shape == (2, 4, 8, 8)


class One(nn.Module):
    """conv -> `function` -> conv."""

    def __init__(self, function, width: int = 6, out: int = 6) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.function, self.a, self.b = function, nn.Conv2d(3, width, 1), nn.Conv2d(out, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


@pytest.mark.parametrize(
    ("function", "out", "reason"),
    [
        (lambda x: x[:, :4], 4, "literal size or index"),
        (lambda x: x[:, 1:5:2], 2, "literal size or index"),
        (lambda x: x[:, torch.tensor([0, 3])], 2, "literal size or index"),
        (lambda x: torch.cat(x[:, :5].split([2, 3], 1)[::-1], 1), 5, "literal size or index"),
        (lambda x: x.softmax(1), 6, "runs over these channels"),
        (lambda x: x.mean(1, keepdim=True), 1, "reduces over these channels"),
        (lambda x: x.sort(1)[0], 6, "reorders"),
        (lambda x: x.flip(1), 6, "reorders"),
        (lambda x: nn.functional.layer_norm(x.mT, x.mT.shape[1:]).mT, 6, "layer norm averages"),
        (lambda x: nn.functional.group_norm(x, 1), 6, "one group"),
        (lambda x: nn.functional.local_response_norm(x, 3), 6, ""),
        (lambda x: x + torch.arange(6.0)[:, None, None], 6, "fixed size"),
        (lambda x: torch.fft.fft2(x, dim=(1, 2)).real, 6, "has no rule"),
    ],
)
def test_a_layer_that_cannot_be_pruned_is_locked_with_its_reason(function, out: int, reason: str) -> None:  # type: ignore[no-untyped-def]
    structure = inspect(One(function, out=out), image())
    assert "a" not in sizes(structure)
    assert reason in reasons(structure)["a"]


def test_a_lock_names_module_and_line_of_the_user() -> None:
    structure = inspect(One(lambda x: x.softmax(1)), image())
    lock = next(locked.lock for locked in structure.locked if locked.name == "a")
    assert "test_groups.py:" in lock.source
    assert "aten.softmax" in str(lock)


def test_output_of_the_network_is_locked() -> None:
    structure = inspect(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), torch.randn(2, 4))
    assert sizes(structure) == {"0": 6}
    assert reasons(structure) == {"1": "network output"}


def test_vocabulary_and_layer_norm_stay_but_the_hidden_width_goes() -> None:
    structure = inspect(Text(), torch.tensor([[1, 2]]))
    assert sizes(structure) == {"embed": 8, "inside": 6} or sizes(structure) == {"outside": 8, "inside": 6}


def test_restrict_locks_by_pattern_and_keeps_costs() -> None:
    model = Residual("projection")
    structure = inspect(model, image())
    some = restrict(structure, lock=("b*",))
    assert sizes(some) == {"stem": 8, "a1": 6}
    assert some.macs == structure.macs
    assert some.cost.macs([4, 3]) == structure.cost.macs([4, 3, 10, 12])
    assert reasons(some)["b1"] == "locked by --lock"
    assert sizes(restrict(structure, only=("a1",))) == {"a1": 6}
    assert sizes(inspect(model, image(), only=("a1", "b1"))) == {"a1": 6, "b1": 10}
    with pytest.raises(ModelError, match="'nothing' matches no prunable group"):
        restrict(structure, lock=("nothing",))


def test_locked_groups_are_renumbered_consistently() -> None:
    model, x = Residual("projection"), image()
    structure = lock_groups(inspect(model, x), {"stem": Lock("because")})
    slim = slice_model(model, structure, structure.mask({"a1": [1], "b2": [0, 11]}))
    assert slim.a1.weight.shape == (1, 8, 3, 3)
    assert slim.head.in_features == 2
    assert structure.cost.macs([1, 10, 2]) == count_macs(slim, x)


def test_a_mask_refuses_nonsense() -> None:
    structure = inspect(Residual("projection"), image())
    for keep in ([], [0, 0], [8], [-1]):
        with pytest.raises(ModelError, match="'stem' keeps"):
            structure.mask({"stem": keep})
    with pytest.raises(ModelError, match="no prunable group is called 'steam'"):
        structure.mask({"steam": [0]})
