"""PyTorch's eager mode. It is slow and noisy on small networks: use it for comparison, not to measure latency."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amc.deploy.quiet import silenced
from amc.deploy.runtimes.base import Session, loading
from amc.deploy.tensors import Tensors, outputs_of


class EagerRuntime:
    """Loading a network sets PyTorch's number of threads; closing it restores the earlier number."""

    name = "eager"
    format = "torch"
    trusted_only = True  # torch.export.load uses pickle

    def version(self) -> str:
        """See `Runtime`."""
        return str(torch.__version__)

    def load(self, paths: Sequence[Path], *, threads: int, half: bool) -> Session:
        """See `Runtime`."""
        with loading(self.name, paths[0]), silenced():
            return _Session(torch.export.load(str(paths[0])).module(), threads)

    def of_module(self, module: nn.Module, *, threads: int) -> Session:
        """The module itself, run in Python: the meaning of `eager` in a table of latencies."""
        return _Session(copy.deepcopy(module).eval(), threads)


class _Session:
    def __init__(self, function: Callable[..., Any], threads: int) -> None:
        self._function = function
        self._before = torch.get_num_threads()
        torch.set_num_threads(threads)

    def run(self, inputs: Tensors) -> Tensors:
        with torch.inference_mode():
            return outputs_of(self._function(*inputs))

    def close(self) -> None:
        torch.set_num_threads(self._before)
