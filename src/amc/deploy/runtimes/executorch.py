"""ExecuTorch's portable runtime with XNNPACK."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amc.deploy.extras import require, version_of
from amc.deploy.quiet import silenced
from amc.deploy.runtimes.base import Session, loading
from amc.deploy.tensors import Tensors


class ExecuTorchRuntime:
    """One pool of threads serves the whole process: sessions of different thread counts must not live together."""

    name = "executorch"
    format = "executorch"
    trusted_only = False

    def version(self) -> str:
        """See `Runtime`."""
        return version_of("executorch", "executorch")

    def load(self, paths: Sequence[Path], *, threads: int, half: bool) -> Session:
        """See `Runtime`."""
        with silenced():
            package = require("executorch.runtime", "executorch")
            library = require("executorch.extension.pybindings.portable_lib", "executorch")
        with loading(self.name, paths[0]), silenced():
            # Only where it differs: a pool must not be taken from under a loaded network.
            if library._threadpool_get_thread_count() != threads:
                library._unsafe_reset_threadpool(threads)
            program = package.Runtime.get().load_program(paths[0].read_bytes())
            return _Session(program, program.load_method("forward"))


class _Session:
    def __init__(self, program: Any, method: Any) -> None:
        self._program, self._method = program, method

    def run(self, inputs: Tensors) -> Tensors:
        return tuple(value.clone() for value in self._method.execute(list(inputs)))

    def close(self) -> None:
        self._method = self._program = None
