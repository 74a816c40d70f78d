"""Calibration: what the inputs of every layer look like, as Gram matrices.

For a layer with weight W [outputs, n] and input patches X [samples, n], G = XᵀX is all that ranking and
reconstruction need (the target is the dense layer's own output X Wᵀ, without its bias). Feature maps are never
kept: each batch adds to the matrices and is gone. Memory is 8 n² bytes a layer, and `memory` bounds their sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.errors import DataError
from amc.structure import Layer, Structure
from amc.structure.grouping import FIXED
from amc.structure.trace import Example, inference

MEMORY = 6 << 30  # bytes for all Gram matrices together
POSITIONS = 10  # output positions sampled per image, as in the paper's reconstruction

_PADDING = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


@dataclass(slots=True)
class Gram:
    """G = XᵀX / samples of one layer: [groups, n, n] in double precision, n = inputs per group times kernel."""

    matrix: Tensor
    samples: int = 0

    def mean(self) -> Tensor:
        return self.matrix / max(1, self.samples)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Gram matrices by weight name, and the layers that have none with the reason."""

    grams: Mapping[str, Gram]
    skipped: Mapping[str, str] = field(default_factory=dict)


def reconstructible(
    model: nn.Module, structure: Structure, *, memory: int = MEMORY
) -> tuple[dict[str, Layer], dict[str, str]]:
    """Layers whose weights can be refitted by least squares, and why the others cannot, by weight name."""
    chosen: dict[str, Layer] = {}
    skipped: dict[str, str] = {}
    room = memory
    for layer in structure.layers:
        if (layer.input == FIXED).all() or layer.weight in chosen:
            continue
        reason = _obstacle(model, layer)
        need = 8 * (max(1, layer.groups) * columns(layer) ** 2)
        if not reason and need > room:
            reason = f"its Gram matrix of {need >> 20} MiB exceeds the memory left for calibration"
        if reason:
            skipped[layer.weight or layer.name] = reason
        else:
            chosen[layer.weight] = layer
            room -= need
    return chosen, skipped


def columns(layer: Layer) -> int:
    """Inputs per convolution group times kernel positions: the columns of the flattened weight."""
    return layer.input.size // layer.groups * math.prod(layer.kernel)


def _obstacle(model: nn.Module, layer: Layer) -> str:
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    module = dict(model.named_modules()).get(layer.weight.rpartition(".")[0])
    if not isinstance(module, kinds) or not layer.weight.endswith(".weight"):
        return "its weight is used outside a convolution or linear module"
    if layer.kind == "conv_transpose":
        return "a transposed convolution is sliced without refitting"
    if layer.groups > 1 and not layer.tied_across:
        return "a convolution pruned by whole groups loses no input of the groups that stay"
    return ""


def calibrate(
    model: nn.Module,
    structure: Structure,
    batches: Iterable[Any],
    *,
    positions: int = POSITIONS,
    memory: int = MEMORY,
    seed: int = 0,
) -> Calibration:
    """Run `batches` (images, or (images, labels)) through the dense model in eval mode, once.

    `positions` output positions of every image are sampled per convolution. Raises DataError for an empty set
    or activations that are not finite.
    """
    layers, skipped = reconstructible(model, structure, memory=memory)
    grams = {
        name: Gram(torch.zeros(layer.groups, columns(layer), columns(layer), dtype=torch.float64))
        for name, layer in layers.items()
    }
    generator = torch.Generator().manual_seed(seed)
    handles = []
    try:
        for name in layers:
            module = model.get_submodule(name.rpartition(".")[0])
            handles.append(module.register_forward_pre_hook(_Collector(grams[name], positions, generator)))
        count = 0
        with inference(model):
            for example in _examples(batches):
                model(*example.args, **example.kwargs)
                count += 1
    finally:
        for handle in handles:
            handle.remove()
    if count == 0:
        raise DataError("the calibration set is empty; give at least one batch")
    for name, gram in grams.items():
        if not torch.isfinite(gram.matrix).all():
            raise DataError(f"calibration gives NaN or infinite inputs to layer '{name}'; check the data and weights")
    idle = [name for name, gram in grams.items() if gram.samples == 0]
    for name in idle:  # its weight goes into a functional call, where no module's input can be seen
        del grams[name]
        skipped[name] = "the forward uses its weight without calling its module"
    return Calibration(grams, skipped)


def _examples(batches: Iterable[Any]) -> Iterator[Example]:
    for batch in batches:
        yield Example.of(batch[0] if isinstance(batch, (list, tuple)) else batch)


class _Collector:
    """A forward pre-hook that adds the sampled input patches of one layer to its Gram matrix."""

    def __init__(self, gram: Gram, positions: int, generator: torch.Generator) -> None:
        self.gram, self.positions, self.generator = gram, positions, generator

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].detach()
        if isinstance(module, nn.Linear):
            rows = self._rows(x)
            patches = rows.unsqueeze(0)
        else:
            assert isinstance(module, nn.modules.conv._ConvNd)
            patches = self._patches(module, x)
        patches = patches.float()
        self.gram.matrix += (patches.mT @ patches).double().cpu()
        self.gram.samples += patches.shape[1]

    def _rows(self, x: Tensor) -> Tensor:
        """[..., n] -> [samples, n]: at most `positions` rows an example."""
        rows = x.flatten(0, -2) if x.ndim > 1 else x.unsqueeze(0)
        most = self.positions * (x.shape[0] if x.ndim > 2 else rows.shape[0])
        if rows.shape[0] <= most:
            return rows
        return rows[torch.randperm(rows.shape[0], generator=self.generator)[:most].to(x.device)]

    def _patches(self, module: nn.modules.conv._ConvNd, x: Tensor) -> Tensor:
        """[N, C, spatial...] -> [groups, samples, C/groups * kernel]: what the kernel sees at sampled outputs."""
        x = _padded(module, x)
        spatial = x.shape[2:]
        steps = list(zip(spatial, module.kernel_size, module.stride, module.dilation, strict=True))
        outputs = [(size - dilation * (kernel - 1) - 1) // stride + 1 for size, kernel, stride, dilation in steps]
        index = torch.zeros(1, 1, 1, dtype=torch.long)
        for (size, kernel, stride, dilation), at in zip(steps, self._sampled(outputs, x.shape[0]), strict=True):
            place = (at * stride)[..., None, None] + torch.arange(kernel) * dilation  # [N, count, 1, kernel]
            index = (index.unsqueeze(-1) * size + place).flatten(2)
        picked = x.flatten(2).mT[torch.arange(x.shape[0])[:, None, None], index.to(x.device)]  # [N, count, K, C]
        patches = picked.flatten(0, 1).mT  # [samples, C, K]
        grouped = patches.reshape(patches.shape[0], module.groups, -1)
        return grouped.transpose(0, 1)

    def _sampled(self, outputs: Sequence[int], images: int) -> list[Tensor]:
        """Coordinates of the sampled outputs, [images, count] a dimension; every output once if they are few."""
        if math.prod(outputs) <= self.positions:
            grid = torch.meshgrid(*(torch.arange(extent) for extent in outputs), indexing="ij")
            return [axis.flatten().expand(images, -1) for axis in grid]
        shape = (images, self.positions)
        return [torch.randint(extent, shape, generator=self.generator) for extent in outputs]


def _padded(module: nn.modules.conv._ConvNd, x: Tensor) -> Tensor:
    return F.pad(x, module._reversed_padding_repeated_twice, mode=_PADDING[module.padding_mode])
