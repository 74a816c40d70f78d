"""Patterns: what stands or falls together, nested masks of exact counts, and what a weight is worth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from amc.errors import AmcError
from amc.pruning.masks import CHOICES, NM, Blocks, Columns, FineGrained, Pattern, Rows, importance, parse_pattern
from amc.pruning.reconstruction import damp
from tests.pruning.samples import correlated

NAMES = ["fine-grained", "2:4", "n:4", "3:5", "rows", "columns", "blocks:1x1", "blocks:4x4", "blocks:3x2"]
patterns = st.sampled_from(NAMES).map(parse_pattern)
kernels = st.sampled_from([(), (1,), (1, 1), (3, 2)])


@st.composite
def weights(draw: st.DrawFn) -> tuple[Tensor, int]:
    """A weight [O, I/groups, kernel...] with few distinct values, hence ties, and its groups."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    shape = (groups * draw(st.integers(1, 7)), draw(st.integers(1, 12)), *draw(kernels))
    seed = draw(st.integers(0, 99))
    return torch.randint(0, 9, shape, generator=torch.Generator().manual_seed(seed)).double(), groups


@given(patterns, weights(), st.floats(0, 0.99))
def test_masks_are_nested_and_keep_exactly_the_stated_number_of_weights(
    pattern: Pattern, weight: tuple[Tensor, int], max_sparsity: float
) -> None:
    worth, groups = weight
    shape = tuple(worth.shape)
    choices = pattern.keep_choices(shape, max_sparsity, groups=groups)
    masks = pattern.order(worth, groups=groups)
    said = pattern.weights_kept(shape, choices, groups=groups)
    before = torch.zeros(shape, dtype=torch.bool)
    for choice, count in zip(choices, said.tolist(), strict=True):
        mask = masks.mask(choice)
        assert mask.shape == shape
        assert mask.dtype == torch.bool
        assert int(mask.sum()) == count > 0
        assert bool((mask | ~before).all())
        before = mask
    assert before.all()


@given(patterns, weights(), st.floats(0, 0.99))
def test_choices_ascend_to_all_units_within_the_largest_sparsity(
    pattern: Pattern, weight: tuple[Tensor, int], max_sparsity: float
) -> None:
    shape, groups = tuple(weight[0].shape), weight[1]
    choices = pattern.keep_choices(shape, max_sparsity, groups=groups)
    units = pattern.units(shape, groups=groups)
    assert choices[-1] == units
    assert all(0 < a < b for a, b in itertools.pairwise(choices))
    assert len(choices) <= CHOICES
    if not (isinstance(pattern, NM) and pattern.n):
        assert all((units - choice) / units <= max_sparsity for choice in choices)


@given(patterns, weights(), st.data())
def test_units_are_removed_whole_and_the_least_first(
    pattern: Pattern, weight: tuple[Tensor, int], data: st.DataObject
) -> None:
    worth, groups = weight
    shape = tuple(worth.shape)
    choice = data.draw(st.sampled_from(pattern.keep_choices(shape, 0.9, groups=groups)))
    mask = pattern.order(worth, groups=groups).mask(choice)
    if isinstance(pattern, (FineGrained, NM)):
        return
    units = list(unit_members(pattern, shape, groups))
    kept = [unit for unit in units if mask[unit].all()]
    gone = [unit for unit in units if not mask[unit].any()]
    assert len(kept) == choice
    assert len(kept) + len(gone) == len(units)
    for size in {len(unit[0]) for unit in units}:  # by definition only units of one size compete
        worth_kept = [float(worth[unit].sum()) for unit in kept if len(unit[0]) == size]
        worth_gone = [float(worth[unit].sum()) for unit in gone if len(unit[0]) == size]
        if worth_kept and worth_gone:
            assert min(worth_kept) >= max(worth_gone)


def unit_members(pattern: Pattern, shape: tuple[int, ...], groups: int) -> list[tuple[Tensor, ...]]:
    """Indices of the weights of each unit, written out from the patterns' definitions."""
    found: dict[object, list[tuple[int, ...]]] = {}
    per_group = shape[0] // groups
    for index in itertools.product(*(range(extent) for extent in shape)):
        group, output = divmod(index[0], per_group)
        if isinstance(pattern, Rows):
            key: object = index[0]
        elif isinstance(pattern, Columns):
            key = (group, index[1:])
        else:
            assert isinstance(pattern, Blocks)
            key = (group, output // pattern.r, index[1] // pattern.c)
        found.setdefault(key, []).append(index)
    return [tuple(torch.tensor(axis) for axis in zip(*members, strict=True)) for members in found.values()]


def test_fine_grained_keeps_the_largest_weights() -> None:
    worth = torch.tensor([[3.0, 1.0], [2.0, 4.0]])
    mask = FineGrained().order(worth).mask(3)
    assert mask.tolist() == [[True, False], [True, True]]


def test_two_of_four_consecutive_inputs_stay_at_every_output_and_kernel_position() -> None:
    worth = torch.rand(6, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    mask = NM(2, 4).order(worth).mask(worth.numel() // 2)
    for run in (slice(0, 4), slice(4, 8)):
        assert (mask[:, run].sum(1) == 2).all()
        least = torch.where(mask[:, run], worth[:, run], torch.inf).amin(1)
        most = torch.where(mask[:, run], -torch.inf, worth[:, run]).amax(1)
        assert (least >= most).all()


def test_n_of_m_offers_its_share_and_dense() -> None:
    assert NM(2, 4).keep_choices((6, 8, 3, 3), 0.8) == (216, 432)
    assert NM(1, 8).keep_choices((6, 8, 3, 3), 0.8) == (54, 432)  # the name says 87.5%: that is what was asked for
    assert NM(None, 8).keep_choices((6, 8, 3, 3), 0.8) == (108, 162, 216, 270, 324, 378, 432)
    assert NM(None, 8).keep_choices((6, 8, 3, 3), 0.98) == (54, 108, 162, 216, 270, 324, 378, 432)


def test_a_layer_whose_inputs_m_does_not_divide_stays_dense_with_a_reason() -> None:
    for shape in [(16, 3, 3, 3), (32, 1, 3, 3), (10, 6)]:
        pattern = NM(2, 4)
        assert pattern.keep_choices(shape, 0.8) == (math.prod(shape),)
        assert pattern.obstacle(shape) == (
            f"its {shape[1]} inputs per group are no multiple of 4, so 2:4 cannot be laid out"
        )
        assert pattern.order(torch.rand(shape)).mask(math.prod(shape)).all()
    assert NM(2, 4).obstacle((16, 8, 3, 3)) == ""


def test_ragged_blocks_are_removed_in_proportion() -> None:
    """10 rows in blocks of 4: a third of the units is small, and half of the units are half of either kind."""
    pattern = Blocks(4, 1)
    worth = torch.rand(10, 8, generator=torch.Generator().manual_seed(0))
    worth[8:] = 0  # a sum over two rows never beats one over four; here it never would be kept
    mask = pattern.order(worth).mask(12)
    assert pattern.units((10, 8)) == 24
    assert int(mask[:8].sum()) == 8 * 4
    assert int(mask[8:].sum()) == 4 * 2
    assert pattern.weights_kept((10, 8), [0, 12, 24]).tolist() == [0, 40, 80]


def test_the_largest_sparsity_is_met_to_the_weight() -> None:
    """The decimal counts, not its binary neighbour: 1 - 0.8 is below 0.2 and 0.98 * 100 rounds either way."""
    assert FineGrained().keep_choices((10, 10), 0.8)[0] == 20
    assert FineGrained().keep_choices((10, 10), 0.98)[0] == 2
    assert FineGrained().keep_choices((10, 10), 0.07)[0] == 93
    assert FineGrained().keep_choices((1, 10), 0.98)[0] == 1
    assert Rows().keep_choices((16, 3, 3, 3), 0.8)[0] == 4  # 3.2 rows would be too few
    assert FineGrained().keep_choices((10, 10), 0) == (100,)


def test_a_large_weight_has_evenly_spaced_choices() -> None:
    choices = FineGrained().keep_choices((512, 512, 3, 3), 0.8)
    assert len(choices) == CHOICES
    assert choices[0] == math.ceil(512 * 512 * 9 * 0.2)
    gaps = np.diff(choices)
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("sparsity", [1, 1.5, -0.1, math.nan])
def test_sparsity_outside_its_range_is_refused(sparsity: float) -> None:
    for name in NAMES:
        with pytest.raises(AmcError, match=r"largest sparsity must be in \[0, 1\), got"):
            parse_pattern(name).keep_choices((4, 4), sparsity)


@pytest.mark.parametrize("name", NAMES)
def test_names_read_back(name: str) -> None:
    assert parse_pattern(name).name == name
    assert parse_pattern(f" {name.upper()} ") == parse_pattern(name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("5:4", "pattern '5:4' keeps 5 of 4 weights"),
        ("4:4", "keeps 4 of 4"),
        ("0:4", "keeps 0 of 4"),
        ("1:1", "N:M needs M of at least 2"),
        ("n:1", "N:M needs M of at least 2"),
        ("blocks:0x4", "empty block"),
        ("blocks", "unknown pattern 'blocks'; choose fine-grained, rows"),
        ("2:-4", "unknown pattern"),
        ("2.5:4", "unknown pattern"),
        ("", "unknown pattern ''"),
    ],
)
def test_other_names_are_refused(name: str, says: str) -> None:
    with pytest.raises(AmcError, match=says):
        parse_pattern(name)


def test_magnitude_is_the_square() -> None:
    weight = torch.tensor([[-3.0, 0.5]])
    assert importance(weight).tolist() == [[9.0, 0.25]]
    assert importance(weight, torch.eye(2)[None], "magnitude").tolist() == [[9.0, 0.25]]
    assert importance(weight, None, "elimination").tolist() == [[9.0, 0.25]]  # a layer without a Gram matrix


@pytest.mark.parametrize("groups", [1, 3])
def test_elimination_is_the_error_left_when_one_weight_goes_and_its_row_is_refitted(groups: int) -> None:
    """Against least squares on the samples, one weight at a time."""
    torch.manual_seed(groups)
    weight = torch.randn(6, 2, 3, dtype=torch.float64)
    x = torch.stack([correlated(80, 6, seed) for seed in range(groups)])
    saliency = importance(weight, x.mT @ x, "elimination").reshape(6, 6)
    rows = weight.reshape(6, 6)
    for output, column in itertools.product(range(6), range(6)):
        data = x[output // (6 // groups)]
        others = [other for other in range(6) if other != column]
        target = data @ rows[output]
        best = torch.linalg.lstsq(data[:, others], target[:, None]).solution[:, 0]
        left = (target - data[:, others] @ best).square().sum()
        torch.testing.assert_close(saliency[output, column], left, rtol=1e-8, atol=1e-12)


def test_elimination_takes_a_singular_matrix_and_spares_no_dead_input() -> None:
    gram = torch.zeros(1, 4, 4, dtype=torch.float64)
    gram[0, :3, :3] = torch.eye(3)
    worth = importance(torch.ones(2, 4), gram, "elimination")
    torch.testing.assert_close(worth, importance(torch.ones(2, 4), damp(gram), "elimination"))
    assert (worth[:, 3] < 1e-3 * worth[:, 0]).all()
