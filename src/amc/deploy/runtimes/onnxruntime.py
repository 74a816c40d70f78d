"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from amc.deploy.extras import require, version_of
from amc.deploy.quiet import silenced
from amc.deploy.runtimes.base import Session, loading
from amc.deploy.tensors import Tensors

_ERRORS_ONLY = 3


class OnnxRuntime:
    """The project's default runtime: a core dependency, and it reads ONNX, which most frameworks write."""

    name = "onnxruntime"
    format = "onnx"
    trusted_only = False

    def version(self) -> str:
        """See `Runtime`."""
        return version_of("onnxruntime", "onnxruntime")

    def load(self, paths: Sequence[Path], *, threads: int, half: bool) -> Session:
        """See `Runtime`. Uses the CPU provider; operators without a 16-bit kernel there compute in 32 bits."""
        package = require("onnxruntime", "onnxruntime")
        package.disable_telemetry_events()
        options = package.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = package.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _ERRORS_ONLY
        # Spinning idle threads would take processor time from the network that is timed next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        with loading(self.name, paths[0]), silenced():
            session = package.InferenceSession(str(paths[0]), options, providers=["CPUExecutionProvider"])
        return _Session(session)


class _Session:
    def __init__(self, session: Any) -> None:
        self._session = session
        self._names = [entry.name for entry in session.get_inputs()]

    def run(self, inputs: Tensors) -> Tensors:
        feed = {name: value.numpy() for name, value in zip(self._names, inputs, strict=True)}
        return tuple(torch.from_numpy(value) for value in self._session.run(None, feed))

    def close(self) -> None:
        self._session = None
