"""What a network is in: its mode, put back as it was, and its device."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; every submodule back in its own mode after it."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter is; the CPU for a network without one."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
