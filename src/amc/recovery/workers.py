"""Training in one process or several.

`accelerate launch` starts several processes. The accelerator only wraps the network and exchanges numbers, so the
training code is the same as for one device.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from amc.errors import AmcError
from amc.structure.modes import device_of


def launched(*, cpu: bool = False) -> Any:
    """The accelerator of this process if `accelerate launch` (or torchrun) started several, else None.

    Raises AmcError if the extra `accelerate` is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    try:
        accelerate = import_module("accelerate")
    except ImportError:
        raise AmcError(
            'training in several processes needs accelerate; pip install -c constraints.txt "amc-compress[accelerate]"'
        ) from None
    return accelerate.Accelerator(mixed_precision="no", cpu=cpu or not torch.cuda.is_available())


class Workers(Protocol):
    """The processes that train one network together."""

    rank: int  # of this process, from 0; only rank 0 writes files and calls callbacks
    count: int  # of processes
    device: torch.device  # of this process

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network to call in training. Its gradients are averaged over the processes."""

    def mean(self, value: Tensor) -> float:
        """Mean of a scalar over the processes; NaN if one process has NaN."""

    def gather(self, row: Tensor) -> Tensor:
        """The `row` [n] of every process: [count, n] on the CPU. Waits for all processes."""


class Alone:
    """One process, on the network's own device."""

    rank = 0
    count = 1

    def __init__(self, model: nn.Module) -> None:
        self.device = device_of(model)

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def mean(self, value: Tensor) -> float:
        return float(value)

    def gather(self, row: Tensor) -> Tensor:
        return row.detach().cpu().unsqueeze(0)


class Accelerated:
    """The processes of an `accelerate.Accelerator`; the network is moved to this process's device."""

    def __init__(self, accelerator: Any, model: nn.Module) -> None:
        if accelerator.mixed_precision != "no":
            raise AmcError(
                f"the accelerator has mixed precision {accelerator.mixed_precision!r}; make it with "
                "mixed_precision='no' and set precision in FineTuneConfig"
            )
        kind = str(accelerator.distributed_type.value)
        if kind not in ("NO", "MULTI_GPU", "MULTI_CPU"):
            raise AmcError(
                f"the accelerator is set up for {kind}; only whole copies of the network can be trained: choose "
                "multi-GPU or multi-CPU in `accelerate config`"
            )
        self.accelerator = accelerator
        self.rank: int = accelerator.process_index
        self.count: int = accelerator.num_processes
        self.device: torch.device = accelerator.device
        model.to(self.device)

    def wrap(self, model: nn.Module) -> nn.Module:
        # Not accelerator.prepare(): it keeps every prepared network in memory.
        if self.count == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)

    def mean(self, value: Tensor) -> float:
        return float(self.accelerator.reduce(value, reduction="mean"))

    def gather(self, row: Tensor) -> Tensor:
        rows: Tensor = self.accelerator.gather(row.detach().to(self.device).unsqueeze(0))
        return rows.cpu()
