"""What runs networks on inputs in memory, and the plainest way: calling them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from amc.compression.scoring.engine.gpu import InParts, Resident
from amc.structure.batches import moved
from amc.structure.modes import device_of, evaluating
from amc.structure.trace import Example

Run = Callable[[Example], Any]
Estimate = Callable[[Example], None]


class Engine(Protocol):
    """Runs networks on inputs in memory."""

    @property
    def name(self) -> str:
        """What decides the last digits of the outputs, such as "torch" or "onnxruntime 1.24.1"."""
        ...

    @property
    def warnings(self) -> list[str]:
        """What the user should know of the networks that were run, one line each."""
        ...

    def running(self, module: nn.Module, *, held: bool = False) -> AbstractContextManager[Run]:
        """Yields a function from inputs to the network's output, in eval mode and without gradients.

        The network stays as it is inside the block. `held`: the inputs stay in memory and are not changed, so that
        the engine may remember what it computes from them.
        """
        ...

    def estimation(self, module: nn.Module) -> Estimate:
        """A function that runs the network on a batch for the statistics of its batch norms alone.

        Batch norms in training mode average the batch's statistics into their own, as in a forward pass; all other
        modules are in eval mode. The inputs stay in memory and are not changed.
        """
        ...

    def forget(self) -> None:
        """Free what is remembered, at the end of a search."""
        ...


class TorchEngine:
    """Calls the network, on its own device.

    On a GPU, inputs that stay in memory are kept there as well, and a batch that does not fit is scored in parts.
    """

    def __init__(self, *, autocast: bool = False) -> None:
        """`autocast`: compute in bfloat16."""
        self.autocast = autocast
        self._resident, self._parts = Resident(), InParts()
        self.warnings = self._parts.warnings

    @property
    def name(self) -> str:
        return "torch bfloat16" if self.autocast else "torch"

    @contextmanager
    def running(self, module: nn.Module, *, held: bool = False) -> Iterator[Run]:
        device = device_of(module)
        call = _calling(module, device)

        def run(inputs: Example) -> Any:
            return self._parts.run(call, self._resident.on(inputs, device) if held else inputs)

        with (
            evaluating(module),
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=self.autocast),
        ):
            yield run

    def estimation(self, module: nn.Module) -> Estimate:
        device = device_of(module)
        call = _calling(module, device)
        return lambda inputs: call(self._resident.on(inputs, device))

    def forget(self) -> None:
        """Free the inputs on the GPU."""
        self._resident.forget()


def _calling(module: nn.Module, device: torch.device) -> Run:
    """The network as a function of inputs, which it gets as a copy on its device."""

    def call(inputs: Example) -> Any:
        there = moved(inputs, device)
        return module(*there.args, **there.kwargs)

    return call
