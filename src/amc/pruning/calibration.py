"""Calibration: what the inputs of every layer look like, as Gram matrices.

For a layer with weight W [outputs, n] and input patches X [samples, n], G = XᵀX is all that ranking and
reconstruction need (the target is the dense layer's own output X Wᵀ, without its bias). Feature maps are never
kept: each batch adds to the matrices and is gone. Memory is 8 n² bytes a layer, and `memory` bounds their sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from amc.batches import examples
from amc.errors import DataError
from amc.pruning.reconstruction import DAMPING, damp
from amc.structure import Layer, Structure
from amc.structure.grouping import FIXED
from amc.structure.modules import attention_by_parts
from amc.structure.trace import inference

MEMORY = 6 << 30  # bytes for all Gram matrices together
SCARCE_DAMPING = 100.0  # times the usual damping where a layer has fewer samples than columns
POSITIONS = 10  # output positions sampled per image, as in the paper's reconstruction


@dataclass(slots=True)
class Gram:
    """G = XᵀX / samples of one layer: [groups, n, n] in double precision, n = inputs per group times kernel."""

    matrix: Tensor
    samples: int = 0

    def mean(self) -> Tensor:
        return self.matrix / max(1, self.samples)

    @property
    def scarce(self) -> bool:
        """Fewer samples than columns: the matrix is singular, and a fit would follow the samples' noise."""
        return self.samples < self.matrix.shape[-1]

    def damped(self, damping: float = DAMPING) -> Tensor:
        """The mean, regularised until it can be inverted; `SCARCE_DAMPING` times as much where samples are scarce."""
        return damp(self.mean(), damping * (SCARCE_DAMPING if self.scarce else 1))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Gram matrices by weight name, and the layers that have none with the reason."""

    grams: Mapping[str, Gram]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def scarcest(self) -> tuple[str, Gram] | None:
        """The layer with the fewest samples for its columns, if some have fewer samples than columns."""
        scarce = [(name, gram) for name, gram in self.grams.items() if gram.scarce]
        return min(scarce, key=lambda item: item[1].samples / item[1].matrix.shape[-1], default=None)


def reconstructible(structure: Structure, *, memory: int = MEMORY) -> tuple[dict[str, Layer], dict[str, str]]:
    """Layers whose weights can be refitted by least squares, and why the others cannot, by weight name."""
    wanted: dict[str, Layer] = {}
    obstacles: dict[str, str] = {}
    for layer in structure.layers:
        if (layer.input == FIXED).all() or layer.weight in wanted:
            continue
        reason = _obstacle(layer)
        if reason:
            obstacles[layer.weight or layer.name] = reason
        else:
            wanted[layer.weight] = layer
    chosen, too_large = within(wanted, memory)
    return chosen, obstacles | too_large


def within(layers: Mapping[str, Layer], memory: int) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers whose Gram matrices fit in `memory` bytes together, first come, and why the others do not."""
    chosen: dict[str, Layer] = {}
    skipped: dict[str, str] = {}
    for name, layer in layers.items():
        need = 8 * (max(1, layer.groups) * columns(layer) ** 2)
        if need > memory:
            skipped[name] = f"its Gram matrix of {need >> 20} MiB exceeds the memory left for calibration"
        else:
            chosen[name] = layer
            memory -= need
    return chosen, skipped


def columns(layer: Layer) -> int:
    """Inputs per convolution group times kernel positions: the columns of the flattened weight."""
    return layer.input.size // layer.groups * math.prod(layer.kernel)


def _obstacle(layer: Layer) -> str:
    if not layer.weight:
        return "its weight is computed by the forward, not a parameter"
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
    layers: Mapping[str, Layer] | None = None,
    positions: int = POSITIONS,
    memory: int = MEMORY,
    seed: int = 0,
) -> Calibration:
    """Run `batches` (images, or (images, labels), see `amc.batches`) through the dense model in eval mode, once.

    `layers` by weight name: those that channel pruning refits unless given. `positions` output positions of every
    image are sampled per convolution. Raises DataError for an empty set or activations that are not finite.
    """
    layers, skipped = reconstructible(structure, memory=memory) if layers is None else within(layers, memory)
    grams = {
        name: Gram(torch.zeros(layer.groups, columns(layer), columns(layer), dtype=torch.float64))
        for name, layer in layers.items()
    }
    named = dict(model.named_parameters())
    watch = _Watch({id(named[name]): gram for name, gram in grams.items()}, positions, seed)
    count = 0
    with inference(model), attention_by_parts(model), watch:
        for example in examples(batches, _device_of(model)):
            model(*example.args, **example.kwargs)
            count += 1
    if count == 0:
        raise DataError("the calibration set is empty; give at least one batch")
    for name, gram in grams.items():
        if not torch.isfinite(gram.matrix).all():
            raise DataError(f"calibration gives NaN or infinite inputs to layer '{name}'; check the data and weights")
    idle = [name for name, gram in grams.items() if gram.samples == 0]
    for name in idle:  # its weight goes through an operator other than linear and convolution
        del grams[name]
        skipped[name] = "its input cannot be watched"
    return Calibration(grams, skipped)


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


class _Watch(TorchFunctionMode):
    """Sees every linear and convolution call, in modules or not, and adds its inputs to the weight's Gram matrix.

    `grams` are by identity of the weight.
    """

    def __init__(self, grams: Mapping[int, Gram], positions: int, seed: int) -> None:
        super().__init__()
        self.grams, self.positions = grams, positions
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            self._linear(*args, **kwargs)
        elif func in (torch.conv1d, torch.conv2d, torch.conv3d):
            self._convolution(*args, **kwargs)
        return func(*args, **kwargs)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        gram = self.grams.get(id(weight))
        if gram is not None:
            self._add(gram, self._rows(input.detach()).unsqueeze(0))

    def _convolution(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> None:
        gram = self.grams.get(id(weight))
        if gram is None:
            return
        kernel = weight.shape[2:]
        strides, dilations = _each(stride, len(kernel)), _each(dilation, len(kernel))
        x = _padded(input.detach(), kernel, padding, dilations)
        self._add(gram, self._patches(x, list(zip(x.shape[2:], kernel, strides, dilations, strict=True)), groups))

    @staticmethod
    def _add(gram: Gram, patches: Tensor) -> None:
        patches = patches.float()
        gram.matrix += (patches.mT @ patches).double().cpu()
        gram.samples += patches.shape[1]

    def _rows(self, x: Tensor) -> Tensor:
        """[..., n] -> [samples, n]: at most `positions` rows an example."""
        rows = x.flatten(0, -2) if x.ndim > 1 else x.unsqueeze(0)
        most = self.positions * (x.shape[0] if x.ndim > 2 else rows.shape[0])
        if rows.shape[0] <= most:
            return rows
        return rows[torch.randperm(rows.shape[0], generator=self.generator)[:most].to(x.device)]

    def _patches(self, x: Tensor, steps: Sequence[tuple[int, int, int, int]], groups: int) -> Tensor:
        """[N, C, spatial...] -> [groups, samples, C/groups * kernel]: what the kernel sees at sampled outputs.

        `steps`: padded size, kernel, stride and dilation of each spatial dimension.
        """
        outputs = [(size - dilation * (kernel - 1) - 1) // stride + 1 for size, kernel, stride, dilation in steps]
        index = torch.zeros(1, 1, 1, dtype=torch.long)
        for (size, kernel, stride, dilation), at in zip(steps, self._sampled(outputs, x.shape[0]), strict=True):
            place = (at * stride)[..., None, None] + torch.arange(kernel) * dilation  # [N, count, 1, kernel]
            index = (index.unsqueeze(-1) * size + place).flatten(2)
        picked = x.flatten(2).mT[torch.arange(x.shape[0])[:, None, None], index.to(x.device)]  # [N, count, K, C]
        patches = picked.flatten(0, 1).mT  # [samples, C, K]
        return patches.reshape(patches.shape[0], groups, -1).transpose(0, 1)

    def _sampled(self, outputs: Sequence[int], images: int) -> list[Tensor]:
        """Coordinates of the sampled outputs, [images, count] a dimension; every output once if they are few."""
        if math.prod(outputs) <= self.positions:
            grid = torch.meshgrid(*(torch.arange(extent) for extent in outputs), indexing="ij")
            return [axis.flatten().expand(images, -1) for axis in grid]
        shape = (images, self.positions)
        return [torch.randint(extent, shape, generator=self.generator) for extent in outputs]


def _each(value: Any, rank: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * rank if len(values) == 1 else values


def _padded(x: Tensor, kernel: Sequence[int], padding: Any, dilations: Sequence[int]) -> Tensor:
    """Zero padding as the convolution itself would add it; other kinds are padded by the module before."""
    if padding == "same":
        totals = [dilation * (size - 1) for size, dilation in zip(kernel, dilations, strict=True)]
        ends = [(total // 2, total - total // 2) for total in totals]
    else:
        ends = [(size, size) for size in _each(0 if padding == "valid" else padding, len(kernel))]
    return F.pad(x, [size for pair in reversed(ends) for size in pair])
