"""OpenVINO on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from amc.deploy.extras import require, version_of
from amc.deploy.quiet import silenced
from amc.deploy.runtimes.base import Session, loading
from amc.deploy.tensors import Tensors

_TELEMETRY = "openvino_telemetry"


def openvino() -> ModuleType:
    """Import the package without its telemetry, which would report the import over the network."""
    absent = _TELEMETRY not in sys.modules
    if absent:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # None makes its import fail
    try:
        with silenced():
            return require("openvino", "openvino")
    finally:
        if absent:
            del sys.modules[_TELEMETRY]


class OpenVinoRuntime:
    """The precision is always set explicitly: by default OpenVINO computes in bfloat16 if the processor supports it."""

    name = "openvino"
    format = "openvino"
    trusted_only = False

    def version(self) -> str:
        """See `Runtime`."""
        return version_of("openvino", "openvino")

    def load(self, paths: Sequence[Path], *, threads: int, half: bool) -> Session:
        """See `Runtime`."""
        package = openvino()
        settings = {
            "INFERENCE_PRECISION_HINT": "f16" if half else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # a pinned thread would wait for other processes on its core
            "CACHE_DIR": "",
        }
        with loading(self.name, paths[0]), silenced():
            model = package.Core().read_model(str(paths[0]), str(paths[1]))
            compiled = package.Core().compile_model(model, "CPU", settings)
            return _Session(compiled.create_infer_request())


class _Session:
    def __init__(self, request: Any) -> None:
        self._request = request

    def run(self, inputs: Tensors) -> Tensors:
        results = self._request.infer([value.numpy() for value in inputs], share_inputs=True)
        return tuple(torch.from_numpy(value.copy()) for value in results.values())

    def close(self) -> None:
        self._request = None
