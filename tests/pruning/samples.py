"""What every layer of a small network sees, computed by torch's own convolution."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from amc.structure.trace import Example, inference


def layer_inputs(model: nn.Module, name: str, batches: list[Any]) -> list[Tensor]:
    """The inputs of the module `name`, one a batch, in eval mode."""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with inference(model):
        for batch in batches:
            example = Example.of(batch)
            model(*example.args, **example.kwargs)
    handle.remove()
    return seen


def patches(module: nn.Module, x: Tensor) -> Tensor:
    """[groups, samples, inputs per group * kernel] in double precision, at every output position.

    A copy of the convolution whose filters are the unit vectors gives back what each filter multiplies.
    """
    x = x.double()
    if isinstance(module, nn.Linear):
        return x.reshape(1, -1, module.in_features)
    assert isinstance(module, nn.modules.conv._ConvNd)
    inputs = module.in_channels // module.groups
    n = inputs * math.prod(module.kernel_size)
    probe = copy.deepcopy(module).double()
    probe.bias = None
    probe.out_channels = n * module.groups
    units = torch.eye(n, dtype=torch.float64).reshape(n, inputs, *module.kernel_size)
    probe.weight = nn.Parameter(units.repeat(module.groups, *[1] * (units.ndim - 1)))
    with torch.no_grad():
        seen = probe(x)  # [N, groups * n, outputs...]
    return seen.flatten(2).unflatten(1, (module.groups, n)).permute(1, 0, 3, 2).flatten(1, 2)


def flat(weight: Tensor, groups: int) -> Tensor:
    """[O, I/groups, kernel...] -> [groups, n, O/groups] in double precision, one group after the other."""
    parts = weight.detach().double().chunk(groups)
    return torch.stack([part.flatten(1).T for part in parts])


def correlated(samples: int, n: int, seed: int, rank: int | None = None) -> Tensor:
    """[samples, n] with strong correlations, so that the choice of columns and the refit matter."""
    generator = torch.Generator().manual_seed(seed)
    rank = rank or max(1, n // 2)
    hidden = torch.randn(samples, rank, generator=generator, dtype=torch.float64)
    mix = torch.randn(rank, n, generator=generator, dtype=torch.float64)
    noise = torch.randn(samples, n, generator=generator, dtype=torch.float64)
    return hidden @ mix + 0.3 * noise
