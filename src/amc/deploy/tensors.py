"""A network's inputs and outputs as plain tuples of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amc.errors import ModelError
from amc.structure.copying import copy_model
from amc.structure.trace import Example, inference

Tensors = tuple[Tensor, ...]


def inputs_of(example_input: Any) -> Tensors:
    """The positional tensors of an example; ModelError for other arguments, which no exchange format supports."""
    example = Example.of(example_input)
    odd = [type(value).__name__ for value in example.args if not isinstance(value, Tensor)]
    if odd or example.kwargs or not example.args:
        what = f"a {odd[0]}" if odd else ("keyword arguments" if example.kwargs else "nothing")
        raise ModelError(
            f"the network is called with {what}; files and runtimes take positional tensors only: wrap it in a "
            "module whose forward takes positional tensors"
        )
    return tuple(value.detach().cpu().contiguous() for value in example.args)


def on_cpu(module: nn.Module) -> nn.Module:
    """A plain copy in main memory, so that exporters and runtimes cannot change the user's network."""
    return copy_model(module).cpu()


def cloned(inputs: Tensors) -> Tensors:
    """Copies of the inputs, because a forward pass may write into its input."""
    return tuple(value.clone() for value in inputs)


def outputs_of(value: Any) -> Tensors:
    """The tensors of a network's output in order. The output is a tensor, a sequence or a mapping, nested or not."""
    if isinstance(value, Tensor):
        return (value.detach(),)
    if isinstance(value, Mapping):
        return tuple(tensor for part in value.values() for tensor in outputs_of(part))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(tensor for part in value for tensor in outputs_of(part))
    if value is None:
        return ()
    raise ModelError(f"the network returns a {type(value).__name__}; files and runtimes give tensors only")


def expected(module: nn.Module, inputs: Tensors) -> Tensors:
    """PyTorch's outputs in eval mode; the module's mode is restored."""
    with inference(module):
        return outputs_of(module(*cloned(inputs)))


def with_batch(inputs: Tensors, batch: int) -> Tensors:
    """The inputs with `batch` examples each: the first ones, repeated in a cycle if there are too few."""
    return tuple(value[torch.arange(batch) % len(value)].contiguous() for value in inputs)


def random_like(inputs: Tensors, seed: int = 0) -> Tensors:
    """Standard normal numbers in the inputs' shapes. Integers and booleans stay: other values may be out of range."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(value.shape, generator=generator).to(value.dtype) if value.is_floating_point() else value
        for value in inputs
    )
