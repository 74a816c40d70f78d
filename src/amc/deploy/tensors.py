"""What goes into a network and what comes out, as plain tuples of tensors."""

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
    """The positional tensors of an example; ModelError for anything else, as no exchange format has it."""
    example = Example.of(example_input)
    odd = [type(value).__name__ for value in example.args if not isinstance(value, Tensor)]
    if odd or example.kwargs or not example.args:
        what = f"a {odd[0]}" if odd else ("keyword arguments" if example.kwargs else "nothing")
        raise ModelError(
            f"the network is called with {what}; files and runtimes take positional tensors only: wrap it in a "
            "module whose forward does"
        )
    return tuple(value.detach().cpu().contiguous() for value in example.args)


def on_cpu(module: nn.Module) -> nn.Module:
    """A plain copy in main memory: what exporters and runtimes do to a network is not done to the user's."""
    return copy_model(module).cpu()


def cloned(inputs: Tensors) -> Tensors:
    """The same values for one forward pass, which may write into its input."""
    return tuple(value.clone() for value in inputs)


def outputs_of(value: Any) -> Tensors:
    """The tensors of a network's output in order: of a tensor, a sequence or a mapping, nested or not."""
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
    """What PyTorch computes in eval mode; the module is left in the mode it was in."""
    with inference(module):
        return outputs_of(module(*cloned(inputs)))


def with_batch(inputs: Tensors, batch: int) -> Tensors:
    """The same inputs with `batch` examples each: cut, or repeated from the first on."""
    return tuple(value[torch.arange(batch) % len(value)].contiguous() for value in inputs)


def random_like(inputs: Tensors, seed: int = 0) -> Tensors:
    """Standard normal numbers in the inputs' shapes; integers and booleans stay, as any other may be out of range."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(value.shape, generator=generator).to(value.dtype) if value.is_floating_point() else value
        for value in inputs
    )
