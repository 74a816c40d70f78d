"""Which channels of a group to keep first.

Both rankings judge the channels of a group by all layers that read them. With one fixed order the keep sets of all
keep counts are nested, which makes reconstruction cheap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amc.structure import Group, Layer, Structure

Order = npt.NDArray[np.int64]  # channels of a group, most valuable first

STEPS = 128  # a wide group is eliminated in at most about this many steps, several channels at a time


@dataclass(slots=True)
class Reader:
    """A layer that reads the group: its weights and the inverse of its (damped) Gram matrix.

    `weight` [parts, n, outputs], `inverse` [parts, n, n] (parts: convolution groups), and `columns` [C, b]: which
    of the n columns each of the group's channels feeds.
    """

    weight: Tensor
    inverse: Tensor
    columns: Tensor


def group_columns(group: Group, layer: Layer) -> Tensor | None:
    """[C, b]: columns of the flattened weight that belong to each channel; None if the layer does not read it."""
    inputs = layer.input[: layer.input.size // layer.groups]
    inside = (inputs >= group.offset) & (inputs < group.offset + group.size)
    positions = np.flatnonzero(inside)
    if positions.size == 0:
        return None
    by_channel = positions[np.argsort(inputs[positions], kind="stable")].reshape(group.size, -1)
    kernel = math.prod(layer.kernel)
    places = by_channel[:, :, None] * kernel + np.arange(kernel)
    return torch.from_numpy(places.reshape(group.size, -1))


def magnitude(structure: Structure, group: Group, weights: Mapping[str, Tensor]) -> Order:
    """Largest weights first: the paper's criterion, the norm of the weights that read each channel.

    `weights` [parts, n, outputs] by weight name. A layer contributes each channel's share of its squared norm. If
    no layer reads the group through a weight, channels keep their order.
    """
    total = torch.zeros(group.size, dtype=torch.float64)
    for layer in _readers(structure, group, weights):
        places = group_columns(group, layer)
        if places is not None:
            squares = weights[layer.weight].double().square().sum((0, 2))
            total += squares[places].sum(1) / squares.sum().clamp_min(1e-30)
    return _descending(total)


def elimination(
    structure: Structure, group: Group, weights: Mapping[str, Tensor], damped: Mapping[str, Tensor]
) -> Order:
    """Remove, step by step, the channel for which the remaining channels compensate best.

    After each removal the rest are refitted in closed form (block inverse updates of the Gram matrix). So the
    criterion is the exact rise of the reconstruction error, summed over the readers, each in units of its output
    energy. `damped` [parts, n, n]: invertible Gram matrices.
    """
    readers = []
    for layer in _readers(structure, group, weights):
        places = group_columns(group, layer)
        if places is not None and layer.weight in damped:
            gram, weight = damped[layer.weight], weights[layer.weight].double()
            energy = (weight * (gram @ weight)).sum().clamp_min(1e-30)
            readers.append(Reader(weight / energy.sqrt(), torch.linalg.inv(gram), places))
    if not readers:
        return magnitude(structure, group, weights)
    return _eliminate(readers, group.size)


def _readers(structure: Structure, group: Group, weights: Mapping[str, Tensor]) -> Sequence[Layer]:
    consumers = {structure.layers[index].weight: structure.layers[index] for index in group.consumers}
    return [layer for name, layer in consumers.items() if name in weights]


def _eliminate(readers: Sequence[Reader], size: int) -> Order:
    alive = torch.ones(size, dtype=torch.bool)
    removed: list[int] = []
    step = math.ceil(size / STEPS)
    while len(removed) < size - 1:
        left = torch.nonzero(alive).flatten()
        rise = sum((_rise(reader, left) for reader in readers), torch.zeros(left.numel(), dtype=torch.float64))
        count = min(step, size - 1 - len(removed))
        gone = left[torch.argsort(rise, stable=True)[:count]]
        for reader in readers:
            _remove_(reader, gone)
        alive[gone] = False
        removed += gone.tolist()
    last = torch.nonzero(alive).flatten().tolist()
    return np.array([*last, *reversed(removed)], dtype=np.int64)


def _rise(reader: Reader, channels: Tensor) -> Tensor:
    """[channels]: rise of the squared error if only that channel is removed: tr(W_Bᵀ (G⁻¹_BB)⁻¹ W_B)."""
    places = reader.columns[channels]
    blocks = reader.inverse[:, places[:, :, None], places[:, None, :]]  # [parts, C, b, b]
    weight = reader.weight[:, places]  # [parts, C, b, outputs]
    rise: Tensor = (weight * _solved(blocks, weight)).sum((0, 2, 3))
    return rise


def _remove_(reader: Reader, channels: Tensor) -> None:
    """Refit the rest without these channels: rank-b updates of the inverse Gram matrix and the weights."""
    places = reader.columns[channels].flatten()
    cross = reader.inverse[:, :, places]  # [parts, n, b]
    factor = _solved(cross[:, places], torch.cat([reader.inverse[:, places], reader.weight[:, places]], -1))
    n = reader.inverse.shape[-1]
    reader.inverse.baddbmm_(cross, factor[..., :n], alpha=-1)
    reader.weight.baddbmm_(cross, factor[..., n:], alpha=-1)


def _solved(blocks: Tensor, right: Tensor) -> Tensor:
    """blocks⁻¹ right: [..., b, columns] of blocks [..., b, b].

    For b = 1, as for a channel of a 1x1 convolution, LAPACK multiplies by the reciprocal. Doing the same here gives the
    same bits without LAPACK's overhead in every step.
    """
    return right * blocks.reciprocal() if blocks.shape[-1] == 1 else torch.linalg.solve(blocks, right)


def _descending(values: Tensor) -> Order:
    order: Order = torch.argsort(values, descending=True, stable=True).numpy()
    return order
