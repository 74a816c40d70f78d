"""Calibration: statistics of every layer's inputs, as Gram matrices.

For a layer with weight W [outputs, n] and input patches X [samples, n], G = XᵀX is all that ranking and
reconstruction need (the target is the dense layer's own output X Wᵀ, without its bias). Feature maps are never
kept: each batch only adds to the matrices. A layer needs 8 n² bytes of memory, and `memory` bounds the sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from amc.errors import DataError, ResourceError, explained
from amc.pruning.reconstruction import DAMPING, damp
from amc.pruning.watching import Watch
from amc.structure import Layer, Structure
from amc.structure.batches import examples
from amc.structure.copying import copy_model, undisturbed
from amc.structure.grouping import FIXED
from amc.structure.modes import device_of
from amc.structure.modules import attention_by_parts
from amc.structure.trace import inference

MEMORY = 6 << 30  # bytes for all Gram matrices together
SCARCE_DAMPING = 100.0  # times the usual damping if a layer has fewer samples than columns
POSITIONS = 10  # output positions sampled per image, as in the paper's reconstruction
TWO_WAYS = "its weight is also used transposed: a refit for one use would be wrong for the other"


@dataclass(slots=True)
class Gram:
    """G = XᵀX / samples of one layer: [groups, n, n] in double precision, n = inputs per group times kernel."""

    matrix: Tensor
    samples: int = 0

    def add_(self, rows: Tensor) -> None:
        """Add samples [groups, samples, n]."""
        rows = rows.float()
        self.matrix += (rows.mT @ rows).double().cpu()
        self.samples += rows.shape[1]

    def mean(self) -> Tensor:
        return self.matrix / max(1, self.samples)

    @property
    def scarce(self) -> bool:
        """Fewer samples than columns: the matrix is singular, and a fit would follow the samples' noise."""
        return self.samples < self.matrix.shape[-1]

    def damped(self, damping: float = DAMPING) -> Tensor:
        """The mean, regularised until it can be inverted; `SCARCE_DAMPING` times as much if samples are scarce."""
        return damp(self.mean(), damping * (SCARCE_DAMPING if self.scarce else 1))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Gram matrices by weight name. `skipped`: the reason for each layer without one."""

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
    shared = used_two_ways(structure.layers)
    for layer in structure.layers:
        if (layer.input == FIXED).all() or layer.weight in wanted:
            continue
        reason = TWO_WAYS if layer.weight in shared else _obstacle(layer)
        if reason:
            obstacles[layer.weight or layer.name] = reason
        else:
            wanted[layer.weight] = layer
    chosen, too_large = within(wanted, memory)
    return chosen, obstacles | too_large


def used_two_ways(layers: Iterable[Layer]) -> set[str]:
    """Weights whose inputs are another layer's outputs: refitted for one use, they would be wrong for the other."""
    order: dict[str, tuple[int, ...]] = {}
    return {layer.weight for layer in layers if order.setdefault(layer.weight, layer.order) != layer.order}


def within(layers: Mapping[str, Layer], memory: int) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers, in order, whose Gram matrices still fit in `memory` bytes, and why the others do not."""
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
    return layer.obstacle


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
    """Run `batches` (images, or (images, labels)) through the dense model in eval mode, once.

    `layers`: by weight name; by default the layers that channel pruning refits. `positions` output positions of every
    image are sampled per convolution. Raises DataError for an empty set or activations that are not finite.
    """
    model = copy_model(model)  # a forward may store state in its network
    layers, skipped = reconstructible(structure, memory=memory) if layers is None else within(layers, memory)
    grams = {
        name: Gram(torch.zeros(layer.groups, columns(layer), columns(layer), dtype=torch.float64))
        for name, layer in layers.items()
    }
    named = dict(model.named_parameters())
    watch = Watch(layers, named, lambda name, rows: grams[name].add_(rows), positions, seed)
    what = f"{type(model).__name__} fails on a calibration batch"
    remedy = "give batches as in training, in the form of the example input"
    count = 0
    with undisturbed(model), inference(model), attention_by_parts(model), watch:
        for example in examples(batches, device_of(model)):
            with explained(DataError, what, remedy, passing=ResourceError):
                model(*example.args, **example.kwargs)
            count += 1
    if count == 0:
        raise DataError("the calibration set is empty; give at least one batch")
    for name, gram in grams.items():
        if not torch.isfinite(gram.matrix).all():
            raise DataError(f"calibration gives NaN or infinite inputs to layer '{name}'; check the data and weights")
    idle = [name for name, gram in grams.items() if gram.samples == 0]
    for name in idle:  # its weight is used in a way that `watching` does not know
        del grams[name]
        skipped[name] = "its input cannot be watched"
    return Calibration(grams, skipped)
