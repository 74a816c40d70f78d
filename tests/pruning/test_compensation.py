"""Compensated weights are those of least squares on the samples, row by row, under the mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from amc.pruning.compensation import compensate
from amc.pruning.masks import importance, parse_pattern
from amc.pruning.reconstruction import damp
from tests.pruning.samples import correlated

SAMPLES = 150


def layer(groups: int, outputs: int, n: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight [groups * outputs, *n] in double precision and the patches it sees, [groups, samples, prod(n)]."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups * outputs, *n, dtype=torch.float64, generator=generator)
    columns = weight[0].numel()
    return weight, torch.stack([correlated(SAMPLES, columns, seed + group) for group in range(groups)])


def error(weight: Tensor, other: Tensor, x: Tensor) -> Tensor:
    """[O]: squared output difference of each row, on the samples."""
    difference = (weight - other).double().reshape(x.shape[0], -1, x.shape[-1])
    return (x @ difference.mT).square().sum(1).flatten()


def least_squares(weight: Tensor, mask: Tensor, x: Tensor) -> Tensor:
    """The oracle: each row fitted to the dense output on the columns its mask leaves."""
    rows, masks = weight.reshape(weight.shape[0], -1), mask.reshape(weight.shape[0], -1)
    result = torch.zeros_like(rows)
    for output in range(rows.shape[0]):
        data = x[output * x.shape[0] // rows.shape[0]]
        kept = masks[output]
        if kept.any():
            target = (data @ rows[output])[:, None]
            result[output, kept] = torch.linalg.lstsq(data[:, kept], target).solution[:, 0]
    return result.reshape(weight.shape)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    ("groups", "outputs", "n"),
    [(1, 7, (20,)), (1, 6, (4, 3, 3)), (3, 2, (4, 3)), (8, 1, (1, 3, 3))],
    ids=["linear", "convolution", "grouped", "depthwise"],
)
def test_every_row_matches_lstsq(groups: int, outputs: int, n: tuple[int, ...], density: float) -> None:
    weight, x = layer(groups, outputs, n)
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < density
    found = compensate(weight, mask, x.mT @ x, tolerance=0)
    torch.testing.assert_close(found, least_squares(weight, mask, x), rtol=1e-7, atol=1e-8)
    assert (found[~mask] == 0).all()


@pytest.mark.parametrize("pattern", ["fine-grained", "2:4", "rows", "columns", "blocks:2x2"])
def test_every_pattern_gains(pattern: str) -> None:
    weight, x = layer(1, 8, (8, 2, 2))
    kind = parse_pattern(pattern)
    mask = kind.order(importance(weight)).mask(kind.keep_choices(weight.shape, 0.5)[0])
    before, after = error(weight, weight * mask, x), error(weight, compensate(weight, mask, damp(x.mT @ x)), x)
    if pattern == "rows":  # a row is whole or gone: nothing is there to make up for it
        torch.testing.assert_close(after, before)
    else:
        assert float(after.sum()) < 0.5 * float(before.sum())


def test_the_default_tolerance_is_near_the_least_error() -> None:
    weight, x = layer(1, 16, (16, 3, 3))
    gram = damp(x.mT @ x / SAMPLES)
    mask = parse_pattern("fine-grained").order(importance(weight)).mask(weight.numel() // 3)
    quick, exact = compensate(weight, mask, gram), compensate(weight, mask, gram, tolerance=0)
    assert float(error(weight, quick, x).sum()) < 1.02 * float(error(weight, exact, x).sum())


@settings(max_examples=40)
@given(st.integers(0, 999), st.integers(0, 12), st.floats(0, 1), st.sampled_from([1, 2]))
def test_no_row_is_worse_than_masking_alone(seed: int, iterations: int, density: float, groups: int) -> None:
    """However early it stops, and with inputs that are dead or copies of each other."""
    weight, x = layer(groups, 3, (8,), seed)
    x[..., 0] = 0
    x[..., 1] = x[..., 2]
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < density
    found = compensate(weight, mask, x.mT @ x, tolerance=0, max_iterations=iterations)
    assert torch.isfinite(found).all()
    assert (found[~mask] == 0).all()
    assert (error(weight, found, x) <= error(weight, weight * mask, x) * (1 + 1e-9) + 1e-9).all()


def test_error_falls_with_every_iteration() -> None:
    weight, x = layer(1, 5, (24,))
    gram = x.mT @ x
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    errors = torch.stack(
        [error(weight, compensate(weight, mask, gram, tolerance=0, max_iterations=count), x) for count in range(20)]
    )
    assert (errors[1:] <= errors[:-1] * (1 + 1e-9) + 1e-12).all()
    assert float(errors[-1].sum()) < 0.5 * float(errors[0].sum())


def test_a_singular_gram_reaches_the_least_error() -> None:
    """Fewer samples than columns: many weights are best, all with the error of lstsq's."""
    weight, x = layer(1, 4, (12,))
    x = x[:, :6]
    mask = torch.ones(weight.shape, dtype=torch.bool)
    mask[:, ::2] = False
    found = compensate(weight, mask, x.mT @ x, tolerance=0)
    assert float(error(weight, found, x).sum()) < 1e-10 * float(error(weight, weight * mask, x).sum())


def test_nothing_to_do_leaves_the_weight_alone() -> None:
    weight, x = layer(2, 3, (6,))
    single = weight.float()
    gram = x.mT @ x
    assert torch.equal(compensate(single, torch.ones_like(single, dtype=torch.bool), gram), single)
    assert torch.equal(compensate(single, torch.zeros_like(single, dtype=torch.bool), gram), torch.zeros_like(single))
    half = torch.arange(6).expand(6, 6) < 3
    assert torch.equal(compensate(single, half, torch.zeros_like(gram)), single * half)  # no input ever arrives


def test_type_and_shape_are_the_weights_own_and_the_input_is_untouched() -> None:
    weight, x = layer(1, 4, (4, 3, 3))
    parameter = torch.nn.Parameter(weight.to(torch.bfloat16))
    before = parameter.detach().clone()
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    found = compensate(parameter, mask, x.mT @ x)
    assert found.dtype == torch.bfloat16
    assert found.shape == parameter.shape
    assert not found.requires_grad
    assert torch.equal(parameter, before)
