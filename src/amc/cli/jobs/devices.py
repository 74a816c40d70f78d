"""Where a job computes: the setting `--device`."""

from __future__ import annotations

import torch
from torch import nn

from amc.errors import AmcError
from amc.structure.modes import device_of

AUTO = "auto"  # a GPU if there is one


def device_named(name: str) -> torch.device:
    """The device of a name: auto, cpu, cuda or cuda:1. Raises AmcError if it is malformed or not there."""
    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    malformed = AmcError(f"device {name!r} is malformed; write auto, cpu, cuda or cuda:1")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise malformed from None
    if device.type not in ("cpu", "cuda"):
        raise malformed
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise AmcError(f"device {name!r} is not there: {_gpus()}")
    return device


def placed(network: nn.Module, name: str | None, *, own_score: bool = False) -> nn.Module:
    """The network on the device of that name; it is moved in place.

    None: where it is. auto: a network that its factory has put on a GPU stays there, and so does one that a function
    of the user's scores (`own_score`), because its images are where the user has put them.
    """
    if name is None or (name == AUTO and (own_score or device_of(network).type != "cpu")):
        return network
    return network.to(device_named(name))


def _gpus() -> str:
    """What this machine has, and what to do."""
    count = torch.cuda.device_count()
    if count:
        return f"this machine has cuda:0{f' to cuda:{count - 1}' if count > 1 else ''}; choose one of them, or cpu"
    built = "torch finds no GPU here" if torch.version.cuda else f"torch {torch.__version__} is built without CUDA"
    return f"{built}; choose cpu"
