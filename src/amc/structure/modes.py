"""A network's mode (training or eval) and its device."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


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


@contextlib.contextmanager
def learning(module: nn.Module, *, norms: bool = True) -> Iterator[None]:
    """For a step of training without randomness: inside the block, only what a step needs is in training mode.

    norms: batch norms use the statistics of the batch, and gather them. Recurrent layers are in training mode, because
    cuDNN has no gradient for them otherwise, and their dropout is off. Other parts, such as dropout, stay as they are.
    """
    recurrent = [part for part in module.modules() if isinstance(part, nn.RNNBase)]
    dropouts = [part.dropout for part in recurrent]
    parts = [*recurrent, *(part for part in module.modules() if norms and isinstance(part, _BatchNorm))]
    modes = [part.training for part in parts]
    try:
        for layer in recurrent:
            layer.dropout = 0.0
        for part in parts:
            part.training = True
        yield
    finally:
        for layer, dropout in zip(recurrent, dropouts, strict=True):
            layer.dropout = dropout
        for part, training in zip(parts, modes, strict=True):
            part.training = training


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter; the CPU for a network without parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
