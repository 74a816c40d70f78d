"""The two oracles every structure must satisfy: sliced equals masked, and closed forms equal torch's counter."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from amc.structure import Structure, certify, count_macs, count_params, inspect, mask_model, slice_model
from amc.structure.trace import Example, inference


def random_keep(structure: Structure, seed: int) -> dict[str, npt.NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    return {
        group.name: np.sort(rng.choice(group.size, rng.integers(1, group.size + 1), replace=False))
        for group in structure.groups
    }


def keep_counts(structure: Structure, keep: dict[str, Any]) -> npt.NDArray[np.int64]:
    return np.array([len(keep.get(g.name, range(g.size))) for g in structure.groups], dtype=np.int64)


def outputs(model: nn.Module, x: Any) -> list[torch.Tensor]:
    """Every tensor that the model returns, computed in double precision on a copy."""
    example = Example.of(x)
    args, kwargs = torch.utils._pytree.tree_map(_double, (example.args, dict(example.kwargs)))
    model = copy.deepcopy(model).double()
    with inference(model):
        return [leaf for leaf in tree_leaves(model(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def assert_sliced_is_masked(model: nn.Module, structure: Structure, x: Any, keep: dict[str, Any]) -> nn.Module:
    mask = structure.mask(keep)
    slim = slice_model(model, structure, mask)
    for a, b in zip(outputs(slim, x), outputs(mask_model(model, structure, mask), x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    return slim


def assert_costs_are_counted(slim: nn.Module, structure: Structure, x: Any, keep: dict[str, Any]) -> None:
    counts = keep_counts(structure, keep)
    assert structure.cost.params(counts) == count_params(slim)
    assert structure.cost.macs(counts) == count_macs(slim, x)


def assert_exact(model: nn.Module, x: Any, policies: int = 4, *, certified: bool = False) -> Structure:
    """Inspect (and certify) `model` and check both oracles on random policies; returns the structure."""
    model.eval()
    randomise_statistics(model)
    structure = inspect(model, x)
    if certified:
        structure, _ = certify(model, structure, x)
    assert structure.macs == count_macs(model, x)
    assert structure.params == count_params(model)
    for seed in range(policies):
        keep = random_keep(structure, seed)
        slim = assert_sliced_is_masked(model, structure, x, keep)
        assert_costs_are_counted(slim, structure, x, keep)
    return structure


def randomise_statistics(model: nn.Module) -> None:
    """Running statistics and biases that differ from channel to channel, so that a misalignment shows."""
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.uniform_(0.5, 1.5)
