"""Multiply-accumulates and parameters as torch itself counts them: the referee for every claimed cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from amc.structure.copying import copy_model, undisturbed, with_tensors
from amc.structure.trace import Example, inference


def count_macs(model: nn.Module, example_input: Any) -> int:
    """Multiply-accumulates of one forward pass on `example_input`, by torch's FlopCounterMode.

    Runs on the meta device, without arithmetic; a model that cannot run there runs where it is.
    """
    example = Example.of(example_input).cloned()
    with undisturbed(model):
        return _counted(model, example)


def _counted(model: nn.Module, example: Example) -> int:
    try:
        with torch.device("meta"):
            return _count(on_meta(model), example_on_meta(example))
    except (
        NotImplementedError,
        RuntimeError,
        AssertionError,
    ):  # constants on another device, data-dependent code
        return _count(copy_model(model).requires_grad_(False), example)


def count_params(model: nn.Module) -> int:
    """Elements of all parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _count(model: nn.Module, example: Example) -> int:
    with inference(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*example.args, **example.kwargs)
    return int(counter.get_total_flops()) // 2


def example_on_meta(example: Example) -> Example:
    """The same arguments without storage."""
    return Example(tree_map(_to_meta, example.args), tree_map(_to_meta, dict(example.kwargs)))


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def on_meta(model: nn.Module) -> nn.Module:
    """A copy without storage."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    copied = with_tensors(model, {name: tensor.detach().to("meta") for name, tensor in tensors})
    return copied.requires_grad_(False)  # the counter's hooks stumble over views of parameters that want gradients
