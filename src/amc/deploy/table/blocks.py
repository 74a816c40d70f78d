"""A network's operator blocks: the shape of each convolution or linear layer with its activation.

Reads the structure; reads only padding and dilation from the modules. A block has no weights and no channel counts: the
policy gives the counts, through `Width`. Layers of equal shape share one block, which is measured once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from amc.deploy.tensors import Tensors
from amc.structure import Layer, Structure
from amc.structure.structure import Slots

Counts = npt.NDArray[np.int64]

_CONVOLUTIONS: dict[tuple[str, int], type[nn.Module]] = {
    ("conv", 1): nn.Conv1d, ("conv", 2): nn.Conv2d, ("conv", 3): nn.Conv3d,
    ("conv_transpose", 1): nn.ConvTranspose1d, ("conv_transpose", 2): nn.ConvTranspose2d,
    ("conv_transpose", 3): nn.ConvTranspose3d,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Block:
    """A layer without its channel counts. Two layers with equal blocks and equal counts have equal latency."""

    kind: str  # conv | conv_transpose | linear
    input_size: tuple[int, ...]  # spatial size; for a linear layer, the number of vectors
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()  # transposed convolutions only
    groups: int = 1  # convolution groups that pruning does not remove
    per_group: tuple[int, int] | None = None  # inputs, outputs per group if whole groups are pruned; depthwise: (1, 1)
    bias: bool = True

    @property
    def name(self) -> str:
        """The block's key in tables, such as `conv 32x32 k3x3 s1x1 p1x1 d1x1`: short and unique."""
        parts = {
            "k": self.kernel, "s": self.stride, "p": self.padding, "d": self.dilation, "op": self.output_padding,
        }  # fmt: skip
        words = [
            self.kind,
            _times(self.input_size),
            *(f"{key}{_times(value)}" for key, value in parts.items() if value),
        ]
        words += [f"g{self.groups}"] if self.groups > 1 else []
        words += [f"per-group {self.per_group[0]}:{self.per_group[1]}"] if self.per_group else []
        return " ".join([*words, *([] if self.bias else ["no bias"])])

    @property
    def kernel_area(self) -> int:
        """Number of positions in the kernel; 1 for a linear layer."""
        return math.prod(self.kernel)

    def module(self, inputs: int, outputs: int, copies: int) -> nn.Module:
        """The sum of `copies` layers on the same input, then the activation; the weights are random."""
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers must not change
            return _Sum([self._layer(inputs, outputs) for _ in range(copies)]).eval()

    def example(self, inputs: int) -> Tensors:
        """A random input with batch size one: [1, inputs, *input_size]; for a linear layer [1, (vectors,) inputs]."""
        generator = torch.Generator().manual_seed(0)
        if self.kind == "linear":
            vectors = () if self.input_size == (1,) else self.input_size
            return (torch.randn(1, *vectors, inputs, generator=generator),)
        return (torch.randn(1, inputs, *self.input_size, generator=generator),)

    def macs(self, inputs: int, outputs: int) -> int:
        """Multiply-accumulates of one layer with these channel counts; includes the stride, ignores padding."""
        area = math.prod(self.input_size) // (math.prod(self.stride) if self.kind == "conv" else 1)
        return max(1, area * math.prod(self.kernel) * inputs * outputs // self._groups(inputs))

    def weights(self, inputs: int, outputs: int) -> int:
        """Number of weights of one layer with these channel counts."""
        return math.prod(self.kernel) * inputs * outputs // self._groups(inputs)

    def _groups(self, inputs: int) -> int:
        return inputs // self.per_group[0] if self.per_group else self.groups

    def _layer(self, inputs: int, outputs: int) -> nn.Module:
        if self.kind == "linear":
            return nn.Linear(inputs, outputs, bias=self.bias)
        more = {"output_padding": self.output_padding} if self.kind == "conv_transpose" else {}
        return _CONVOLUTIONS[self.kind, len(self.kernel)](
            inputs, outputs, self.kernel, stride=self.stride, padding=self.padding, dilation=self.dilation,
            groups=self._groups(inputs), bias=self.bias, **more,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class BlockRun:
    """A block with its channel counts, to be timed. Builds its module on demand: all modules would fill the memory."""

    block: Block
    inputs: int
    outputs: int
    copies: int

    def module(self) -> nn.Module:
        """See `Block.module`."""
        return self.block.module(self.inputs, self.outputs, self.copies)

    def example(self) -> Tensors:
        """See `Block.example`."""
        return self.block.example(self.inputs)


class Run(Protocol):
    """A small network to be timed."""

    def module(self) -> nn.Module: ...

    def example(self) -> Tensors: ...


@dataclass(frozen=True, slots=True)
class ProbeRun:
    """Three consecutive convolutions; the second one has `width` outputs.

    Shows how latency depends on `width` when the runtime chooses the channel layout, as it does inside a network.
    """

    width: int
    around: int = 64
    size: int = 16

    def module(self) -> nn.Module:
        """A module [1, around, size, size] -> [1, around, size, size]."""
        with torch.random.fork_rng(devices=[]):
            widths = (self.around, self.around, self.width, self.around)
            pairs = itertools.pairwise(widths)
            layers = [part for a, b in pairs for part in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
            return nn.Sequential(*layers).eval()

    def example(self) -> Tensors:
        """A random input [1, around, size, size]."""
        return (torch.randn(1, self.around, self.size, self.size, generator=torch.Generator().manual_seed(0)),)


class _Sum(nn.Module):
    """The sum of layers that read the same input; runtimes fuse the sum into the layers, as they fuse a shortcut."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """[1, inputs, ...] -> [1, outputs, ...]."""
        y: Tensor = self.layers[0](x)
        for layer in list(self.layers)[1:]:
            y = y + layer(x)
        return y.relu()


@dataclass(frozen=True)
class Width:
    """The number of channels on one side of a layer: fixed + per_channel @ keep counts, all integers."""

    fixed: int
    per_channel: Counts  # [groups of the structure]

    def at(self, keep_counts: npt.ArrayLike) -> Counts:
        """Keep counts [..., G] -> channels [...]."""
        result: Counts = np.asarray(keep_counts, dtype=np.int64) @ self.per_channel + self.fixed
        return result

    @property
    def unit(self) -> int:
        """The greatest common divisor of all width differences: 1, or 49 for flattened 7x7 feature maps."""
        return max(1, int(np.gcd.reduce(self.per_channel, initial=0)))

    @classmethod
    def of(cls, slots: Slots, structure: Structure) -> Width:
        """The width of a layer's `input` or `output` slots."""
        inside = [(slots >= group.offset) & (slots < group.offset + group.size) for group in structure.groups]
        per_channel = [
            np.count_nonzero(mask) // group.size for mask, group in zip(inside, structure.groups, strict=True)
        ]
        return cls(int(np.count_nonzero(slots < 0)), np.array(per_channel, dtype=np.int64))


@dataclass(frozen=True)
class LayerBlock:
    """One layer of a network: its block, and its input and output widths as functions of the policy."""

    layer: str
    block: Block
    inputs: Width
    outputs: Width
    positions: int  # spatial positions of the output


def blocks_of(model: nn.Module, structure: Structure) -> tuple[LayerBlock, ...]:
    """Every convolution and linear layer, in execution order.

    Recurrent layers and stacks of matrices are left out: the table's correction contains their latency.
    """
    return tuple(_layer_block(model, structure, layer) for layer in structure.layers if _is_block(layer))


def _is_block(layer: Layer) -> bool:
    known = layer.kind in ("conv", "conv_transpose") or (layer.kind == "linear" and layer.groups == 1)
    return known and layer.macs > 0


def _layer_block(model: nn.Module, structure: Structure, layer: Layer) -> LayerBlock:
    inputs, outputs = layer.input.size, layer.output.size
    positions = max(1, layer.macs * layer.groups // (inputs * outputs * math.prod(layer.kernel)))
    return LayerBlock(
        layer=layer.name,
        block=_block(model, layer, positions),
        inputs=Width.of(layer.input, structure),
        outputs=Width.of(layer.output, structure),
        positions=positions,
    )


def _block(model: nn.Module, layer: Layer, positions: int) -> Block:
    bias = layer.bias is not None or layer.kind != "linear"  # a folded batch norm adds a bias
    if layer.kind == "linear":
        return Block("linear", (positions,), bias=bias)
    whole = layer.groups > 1 and not layer.tied_across
    module = dict(model.named_modules()).get(layer.name)
    rank = len(layer.kernel)
    same = tuple(size // 2 for size in layer.kernel)  # a functional convolution has no module to read it from
    padding, dilation, output_padding = (
        _tuple(getattr(module, name, default), rank, default)
        for name, default in (("padding", same), ("dilation", (1,) * rank), ("output_padding", (0,) * rank))
    )
    return Block(
        kind=layer.kind, input_size=layer.input_size, kernel=layer.kernel, stride=layer.stride or (1,) * rank,
        padding=padding, dilation=dilation, output_padding=output_padding if layer.kind == "conv_transpose" else (),
        groups=1 if whole else layer.groups,
        per_group=(layer.input.size // layer.groups, layer.output.size // layer.groups) if whole else None,
    )  # fmt: skip


def _tuple(value: object, rank: int, default: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * rank
    return tuple(value) if isinstance(value, tuple) and len(value) == rank else default  # "same" is the default


def _times(numbers: Sequence[int]) -> str:
    return "x".join(map(str, numbers))
