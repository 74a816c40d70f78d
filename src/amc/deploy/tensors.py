"""A network's inputs and outputs as plain tuples of tensors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amc.errors import ModelError
from amc.structure.copying import copy_model
from amc.structure.trace import Example, inference

Tensors = tuple[Tensor, ...]


CONSTANTS = (bool, int, float, str, type(None))  # arguments that become part of a file


def inputs_of(example_input: Any) -> Tensors:
    """The tensors of an example, those given by name last; ModelError for lists and other objects, or no tensor."""
    example = Example.of(example_input)
    given = (*example.args, *example.kwargs.values())
    odd = [type(value).__name__ for value in given if not isinstance(value, (Tensor, *CONSTANTS))]
    tensors = tuple(value.detach().cpu().contiguous() for value in given if isinstance(value, Tensor))
    if odd or not tensors:
        what = f"a {odd[0]}" if odd else "no tensor"
        raise ModelError(
            f"the network is called with {what}; files and runtimes take tensors only: wrap it in a module whose "
            "forward takes tensors"
        )
    return tensors


def taking_tensors(module: nn.Module, example_input: Any) -> nn.Module:
    """A copy in main memory that takes `inputs_of(example_input)` in their order, and nothing else."""
    example = Example.of(example_input)
    plain = not example.kwargs and all(isinstance(value, Tensor) for value in example.args)
    return on_cpu(module) if plain else Positional(on_cpu(module), example)


class Positional(nn.Module):
    """A network that takes tensors in order; its arguments of other kinds are those of the example.

    `names`: of the inputs, where they have one.
    """

    def __init__(self, module: nn.Module, example: Example) -> None:
        super().__init__()
        self.module = module
        self.args = tuple(None if isinstance(value, Tensor) else (value,) for value in example.args)  # None: an input
        self.kwargs = {name: None if isinstance(value, Tensor) else (value,) for name, value in example.kwargs.items()}
        named = [name for name, value in self.kwargs.items() if value is None]
        self.names = named if self.args.count(None) == 0 else []

    def forward(self, *inputs: Tensor) -> Tensors:
        """The module's outputs, as a tuple."""
        rest = iter(inputs)
        args = [next(rest) if value is None else value[0] for value in self.args]
        kwargs = {name: next(rest) if value is None else value[0] for name, value in self.kwargs.items()}
        return outputs_of(self.module(*args, **kwargs))


def takes_any_number(module: nn.Module) -> bool:
    """Whether the forward is written `*inputs`; torch.export then wants what it is told of them nested once more."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    return kinds[:1] == [inspect.Parameter.VAR_POSITIONAL]


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
