"""LiteRT (TensorFlow Lite) with XNNPACK."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from amc.deploy.extras import require, version_of
from amc.deploy.quiet import silenced
from amc.deploy.runtimes.base import Session, loading
from amc.deploy.tensors import Tensors


class LiteRTRuntime:
    """The interpreter of ai-edge-litert."""

    name = "litert"
    format = "litert"
    trusted_only = False

    def version(self) -> str:
        """See `Runtime`."""
        return version_of("ai-edge-litert", "litert")

    def load(self, paths: Sequence[Path], *, threads: int, half: bool) -> Session:
        """See `Runtime`."""
        with silenced():
            package = require("ai_edge_litert.interpreter", "litert")
        with loading(self.name, paths[0]), silenced():
            interpreter = package.Interpreter(model_content=paths[0].read_bytes(), num_threads=threads)
            interpreter.allocate_tensors()
            return _Session(interpreter)


class _Session:
    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        # Sorted by the numbers in the names: litert-torch names the inputs ..._args_0, ..._args_1 and so on.
        details = sorted(interpreter.get_input_details(), key=lambda entry: _numbers(entry["name"]))
        self._inputs = [entry["index"] for entry in details]
        results = sorted(interpreter.get_output_details(), key=lambda entry: _numbers(entry["name"]))
        self._outputs = [entry["index"] for entry in results]

    def run(self, inputs: Tensors) -> Tensors:
        for index, value in zip(self._inputs, inputs, strict=True):
            self._interpreter.set_tensor(index, value.numpy())
        self._interpreter.invoke()
        return tuple(torch.from_numpy(self._interpreter.get_tensor(index)) for index in self._outputs)

    def close(self) -> None:
        self._interpreter = None


def _numbers(name: str) -> tuple[int, ...]:
    """`serving_default_args_10:0` -> (10, 0): a sort key that puts the tenth input after the second."""
    return tuple(int(part) for part in "".join(c if c.isdigit() else " " for c in name).split())
