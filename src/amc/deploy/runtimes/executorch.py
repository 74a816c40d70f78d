"""ExecuTorch's portable runtime with XNNPACK."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amc.deploy.extras import require, version_of
from amc.deploy.quiet import silenced
from amc.deploy.runtimes.base import RuntimeFailure, Session, loading
from amc.deploy.tensors import Tensors


class ExecuTorchRuntime:
    """A process has one thread pool, so sessions with different thread counts cannot be open together."""

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
            pool = library._threadpool_get_thread_count()
            if pool != threads:
                if any(session.is_open for session in _SESSIONS):  # a loaded network hangs if its pool is freed
                    raise RuntimeFailure(
                        f"executorch keeps {pool} threads until its networks are closed, not {threads}"
                    )
                library._unsafe_reset_threadpool(threads)
        with loading(self.name, paths[0]), silenced():
            program = package.Runtime.get().load_program(paths[0].read_bytes())
            session = _Session(program, program.load_method("forward"))
        _SESSIONS.add(session)
        return session


class _Session:
    def __init__(self, program: Any, method: Any) -> None:
        self._program, self._method = program, method

    def run(self, inputs: Tensors) -> Tensors:
        return tuple(value.clone() for value in self._method.execute(list(inputs)))

    @property
    def is_open(self) -> bool:
        return self._method is not None

    def close(self) -> None:
        self._method = self._program = None


_SESSIONS: weakref.WeakSet[_Session] = weakref.WeakSet()
