"""Least squares on the pruned network's own inputs, layer after layer, in one forward pass.

AMC fits every layer to the dense network's inputs (`amc.pruning.reconstruction`), so that no layer knows the errors of
the layers before it. Here X are the inputs of a layer in the pruned network, whose earlier layers are refitted already,
and Y the dense network's outputs at the same places (He, Zhang and Sun, ICCV 2017, arXiv 1707.06168):

    (XᵀX + λI) w = XᵀY + λ w_S,    w_S: the dense weights of the inputs that stay

`sequential.py` measures what this is worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from amc.pruning import Calibration, Pruner, reconstructible
from amc.pruning.calibration import POSITIONS
from amc.pruning.reconstruction import as_stored, damp, flat_weight
from amc.pruning.watching import Watch
from amc.structure import Layer, Structure
from amc.structure.copying import copy_model
from amc.structure.slicing import kept_positions
from amc.structure.structure import Mask
from amc.structure.trace import inference

DAMPING = 1e-2  # of the mean diagonal: there are fewer samples here than in the calibration
SAMPLES = 4  # for each column, below which a layer keeps its weight: a fit would follow the samples' noise


class SequentialPruner(Pruner):
    """Builds networks as `Pruner` does, then refits each to its own inputs on `images` [N, C, H, W].

    For networks in which every layer runs once.
    """

    def __init__(self, model: nn.Module, structure: Structure, calibration: Calibration, images: Tensor) -> None:
        super().__init__(model, structure, calibration)
        self._layers, self._images = reconstructible(structure)[0], images
        named = dict(model.named_parameters())
        self._weights = {name: flat_weight(named[name], layer) for name, layer in self._layers.items()}
        self._targets: dict[str, Tensor] = {}  # what the dense layers put out, without their bias

        def seen(name: str, rows: Tensor) -> None:
            self._targets[name] = rows.double() @ self._weights[name]

        self._run(copy_model(model), seen)

    def build(self, keep_counts: Sequence[int]) -> nn.Module:
        slim, mask = super().build(keep_counts), self.structure.mask(self.policy(keep_counts).keep)
        named = dict(slim.named_parameters())

        def seen(name: str, rows: Tensor) -> None:  # just before the layer runs
            layer = self._layers[name]
            if rows.shape[1] >= SAMPLES * rows.shape[2]:
                start = self._weights[name][:, kept_columns(layer, mask)]
                named[name].copy_(self._placed(fitted(rows, self._targets[name], start), layer, mask))

        self._run(slim, seen)
        return slim

    def _run(self, network: nn.Module, seen: Callable[[str, Tensor], None]) -> None:
        watch = Watch(self._layers, dict(network.named_parameters()), seen, POSITIONS, 0)
        with inference(network), batch_statistics(network), watch:
            network(self._images)

    def _placed(self, solution: Tensor, layer: Layer, mask: Mask) -> Tensor:
        """The weight of a layer in the pruned network, from its solution [groups, columns, dense outputs]."""
        shape = list(self.structure.shapes[layer.weight])
        kept = [
            None if slots is None else torch.from_numpy(kept_positions(slots, mask))
            for slots in self.structure.tensors[layer.weight]
        ]
        for dim in layer.input_dims:
            shape[dim] = shape[dim] if (left := kept[dim]) is None else left.numel()
        filters = solution.mT.reshape(solution.shape[0] * solution.shape[2], -1, *layer.kernel)
        weight = as_stored(filters, layer, shape)
        for dim, left in enumerate(kept):
            if left is not None and dim not in layer.input_dims:
                weight = weight.index_select(dim, left)
        return weight


def kept_columns(layer: Layer, mask: Mask) -> Tensor:
    """The columns of a layer's dense weight that stay."""
    kernel = math.prod(layer.kernel)
    kept = kept_positions(layer.input[: layer.input.size // layer.groups], mask)
    return torch.from_numpy((kept[:, None] * kernel + np.arange(kernel)).reshape(-1))


def fitted(rows: Tensor, target: Tensor, start: Tensor) -> Tensor:
    """Weights [groups, n, outputs] with least squared error, pulled towards `start` of the same shape.

    rows [groups, samples, n]: inputs. target [groups, samples, outputs]: the outputs wanted, in double precision.
    """
    inputs = rows.double() / rows.shape[1] ** 0.5
    gram = inputs.mT @ inputs
    damped = damp(gram, DAMPING)
    wanted = inputs.mT @ (target / rows.shape[1] ** 0.5) + (damped - gram) @ start
    solution: Tensor = torch.linalg.solve(damped, wanted)
    return solution


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Inside the block, batch norms use the statistics of the batch and keep none of them."""
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm)]
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm in norms:
            norm.training, norm.track_running_stats = False, True
