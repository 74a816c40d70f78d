"""Refitted weights are those of `torch.linalg.lstsq`, for every keep count, from one factorisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc.pruning.reconstruction import LayerFit, SolutionCache, damp, flat_weight
from amc.structure import Layer, inspect
from tests.pruning.samples import correlated, flat

SAMPLES = 400


def layer_of(module: nn.Module, stem: nn.Module, head: nn.Module, example: Tensor) -> Layer:
    structure = inspect(nn.Sequential(stem, module, head).eval(), example)
    return next(layer for layer in structure.layers if layer.weight == "1.weight")


def convolution(inputs: int, outputs: int, kernel: tuple[int, ...], groups: int = 1) -> tuple[nn.Module, Layer]:
    module = nn.Conv2d(inputs, outputs, kernel, groups=groups)
    return module, layer_of(module, nn.Conv2d(3, inputs, 1), nn.Conv2d(outputs, 2, 1), torch.zeros(1, 3, 8, 8))


def linear(inputs: int, outputs: int) -> tuple[nn.Module, Layer]:
    module = nn.Linear(inputs, outputs)
    return module, layer_of(module, nn.Linear(3, inputs), nn.Linear(outputs, 2), torch.zeros(1, 3))


CASES = {
    "linear": lambda: linear(9, 4),
    "kernel 1": lambda: convolution(8, 5, (1, 1)),
    "kernel 3x2": lambda: convolution(6, 5, (3, 2)),
    "groups, tied across": lambda: convolution(12, 6, (3, 1), groups=2),
    "one input": lambda: convolution(2, 3, (3, 3)),
}


class Fixture:
    """A layer, the patches X it sees [groups, samples, n], its weight W [groups, n, outputs], and G = XᵀX."""

    def __init__(self, name: str, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.module, self.layer = CASES[name]()
        self.weight = flat(self.module.weight, self.layer.groups)
        self.n = self.weight.shape[1]
        self.x = torch.stack([correlated(SAMPLES, self.n, seed + g) for g in range(self.layer.groups)])
        self.gram = self.x.mT @ self.x / SAMPLES
        self.positions = self.layer.input.size // self.layer.groups
        self.kernel = self.n // self.positions

    def columns(self, kept: np.ndarray) -> list[int]:
        return [int(position) * self.kernel + k for position in kept for k in range(self.kernel)]

    def lstsq(self, kept: np.ndarray) -> Tensor:
        """[O, kept, kernel...]: the oracle, fitted on the samples themselves."""
        solution = torch.linalg.lstsq(self.x[:, :, self.columns(kept)], self.x @ self.weight).solution
        parts = [part.T.reshape(-1, len(kept), *self.layer.kernel) for part in solution]
        return torch.cat(parts)

    def error(self, kept: np.ndarray, weights: Tensor) -> float:
        """‖X W - X_S W_S‖² / ‖X W‖², measured."""
        target = self.x @ self.weight
        used = torch.stack([part.flatten(1).T for part in weights.double().chunk(self.layer.groups)])
        rest = target - self.x[:, :, self.columns(kept)] @ used
        return float(rest.square().sum() / target.square().sum())


@pytest.mark.parametrize("name", CASES)
def test_nested_weights_match_lstsq_for_every_keep_count(name: str) -> None:
    case = Fixture(name)
    order = np.random.default_rng(1).permutation(case.positions)
    fit = LayerFit(case.layer, case.gram, case.weight, order)
    for count in range(1, case.positions + 1):
        kept = np.sort(order[:count])
        weights = fit.weights(kept)
        assert weights.shape == (case.module.weight.shape[0], count, *case.layer.kernel)
        torch.testing.assert_close(weights, case.lstsq(kept), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_direct_weights_match_lstsq_for_any_keep_set(name: str) -> None:
    case = Fixture(name)
    fit = LayerFit(case.layer, case.gram, case.weight, None)
    rng = np.random.default_rng(2)
    for count in range(1, case.positions + 1):
        kept = np.sort(rng.choice(case.positions, count, replace=False))
        torch.testing.assert_close(fit.weights(kept), case.lstsq(kept), rtol=1e-7, atol=1e-8)


def test_nested_equals_direct_with_damping() -> None:
    case = Fixture("groups, tied across")
    gram = damp(case.gram, 0.01)
    order = np.random.default_rng(3).permutation(case.positions)
    nested, direct = (LayerFit(case.layer, gram, case.weight, way) for way in (order, None))
    for count in range(1, case.positions + 1):
        kept = np.sort(order[:count])
        torch.testing.assert_close(nested.weights(kept), direct.weights(kept), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_all_positions_give_the_dense_weights(name: str) -> None:
    case = Fixture(name)
    everything = np.arange(case.positions)
    for order in (everything[::-1].copy(), None):
        fit = LayerFit(case.layer, damp(case.gram), case.weight, order)
        torch.testing.assert_close(fit.weights(everything), case.module.weight.detach().double())


@pytest.mark.parametrize("name", CASES)
def test_relative_errors_are_the_measured_ones(name: str) -> None:
    case = Fixture(name)
    order = np.random.default_rng(4).permutation(case.positions)
    fit = LayerFit(case.layer, case.gram, case.weight, order)
    errors = fit.relative_errors()
    assert errors.shape == (case.positions + 1,)
    measured = [1.0]
    for count in range(1, case.positions + 1):
        kept = np.sort(order[:count])
        measured.append(case.error(kept, case.lstsq(kept)))
    torch.testing.assert_close(errors, torch.tensor(measured, dtype=torch.float64), rtol=1e-6, atol=1e-9)
    assert (errors.diff() <= 1e-12).all()


def test_no_other_weights_have_a_smaller_error() -> None:
    case = Fixture("kernel 3x2")
    kept = np.array([0, 2, 5])
    best = LayerFit(case.layer, case.gram, case.weight, None).weights(kept)
    least = case.error(kept, best)
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-3, 1e-1):
        other = best + scale * torch.randn(best.shape, generator=generator, dtype=torch.float64)
        assert case.error(kept, other) > least
    assert least < case.error(kept, case.module.weight.detach()[:, kept])  # plain slicing


def test_flat_weight_is_one_matrix_a_convolution_group() -> None:
    module, layer = convolution(4, 6, (2, 3), groups=2)
    flattened = flat_weight(module.weight, layer)
    assert flattened.dtype == torch.float64
    assert flattened.shape == (2, 2 * 6, 3)
    assert flattened[1, 7, 2] == module.weight[3 + 2, 1, 0, 1].double()  # group 1, column 1*6 + 0*3 + 1, output 2
    torch.testing.assert_close(flattened, flat(module.weight, 2))


def test_damping_adds_a_share_of_the_mean_diagonal() -> None:
    gram = torch.tensor([[[2.0, 0.5], [0.5, 4.0]]], dtype=torch.float64)
    expected = torch.tensor([[[2.03, 0.5], [0.5, 4.03]]], dtype=torch.float64)  # mean diagonal 3, one hundredth
    torch.testing.assert_close(damp(gram, 0.01), expected)


@pytest.mark.parametrize("dead", ["some", "all", "collinear"])
def test_singular_grams_give_finite_weights(dead: str) -> None:
    case = Fixture("kernel 3x2")
    x = case.x.clone()
    if dead == "collinear":
        x[:, :, 6:12] = 3 * x[:, :, :6]  # the second channel is three times the first
    else:
        x[:, :, : 12 if dead == "some" else None] = 0
    gram = x.mT @ x / SAMPLES
    order = np.arange(case.positions)
    fit = LayerFit(case.layer, damp(gram), case.weight, order)
    for count in range(1, case.positions + 1):
        weights = fit.weights(order[:count])
        assert torch.isfinite(weights).all()
        assert weights.abs().max() < 50 * case.weight.abs().max()
    assert torch.isfinite(fit.relative_errors()).all()
    if dead == "collinear":  # one channel does the work of both
        flat_fit = torch.linalg.lstsq(x[:, :, :6], x[:, :, :12] @ case.weight[:, :12]).solution
        assert (x[:, :, :6] @ flat_fit - x[:, :, :12] @ case.weight[:, :12]).abs().max() < 1e-8


def test_damping_rises_until_the_matrix_can_be_factored() -> None:
    gram = torch.diag(torch.tensor([1.0, -0.003], dtype=torch.float64))[None]  # indefinite by rounding
    damped = damp(gram, 1e-4)
    assert torch.linalg.cholesky_ex(damped).info.item() == 0
    added = damped[0, 0, 0] - 1
    torch.testing.assert_close(added, torch.tensor(0.01 * 0.4985, dtype=torch.float64))  # two steps of ten


def test_cache_remembers_within_its_bytes() -> None:
    case = Fixture("kernel 1")
    fit = LayerFit(case.layer, case.gram, case.weight, np.arange(8))
    size = 5 * 4 * 4  # outputs, kept, bytes
    cache = SolutionCache(limit=2 * size)
    sets = [np.arange(4), np.arange(1, 5), np.arange(2, 6)]
    direct = LayerFit(case.layer, case.gram, case.weight, None)

    def cached(index: int, name: str = "a", which: LayerFit = direct) -> Tensor:
        return cache.get((name, index), lambda: which.weights(sets[index]).float())

    first = cached(0)
    assert first.dtype == torch.float32
    torch.testing.assert_close(first.double(), case.lstsq(sets[0]), rtol=1e-5, atol=1e-6)
    assert cached(0) is first
    cached(1)
    assert cached(0) is first  # used last, so the other goes first
    cached(2)
    assert cache.held == 2 * size
    assert cached(0) is first
    other = cached(0, "b", fit)  # the same set of another layer is another entry
    assert other is not first
