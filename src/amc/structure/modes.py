"""A network's mode (training or eval) and its device."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards every submodule is in its own mode again."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter; the CPU for a network without parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
