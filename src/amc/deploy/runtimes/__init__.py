"""Runtimes that run exported files: one small module per runtime, behind one interface."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from amc.deploy.runtimes.base import Runtime, RuntimeFailure, Session
from amc.deploy.runtimes.eager import EagerRuntime
from amc.deploy.runtimes.executorch import ExecuTorchRuntime
from amc.deploy.runtimes.litert import LiteRTRuntime
from amc.deploy.runtimes.ncnn import NcnnRuntime
from amc.deploy.runtimes.onnxruntime import OnnxRuntime
from amc.deploy.runtimes.openvino import OpenVinoRuntime
from amc.errors import AmcError

_RUNTIMES: dict[str, Callable[[], Runtime]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVinoRuntime,
    "executorch": ExecuTorchRuntime,
    "litert": LiteRTRuntime,
    "ncnn": NcnnRuntime,
    "eager": EagerRuntime,
}
RUNTIMES = tuple(_RUNTIMES)


def get_runtime(name: str) -> Runtime:
    """The runtime with this name, installed or not; AmcError if the name is unknown."""
    if name not in _RUNTIMES:
        close = difflib.get_close_matches(name, RUNTIMES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(RUNTIMES)}"
        raise AmcError(f"unknown runtime '{name}'; {hint}")
    return _RUNTIMES[name]()


def installed_runtimes() -> dict[str, str]:
    """Name and version of every runtime that is installed."""
    versions = {}
    for name in RUNTIMES:
        try:
            versions[name] = get_runtime(name).version()
        except AmcError:
            continue
    return versions


__all__ = ["RUNTIMES", "Runtime", "RuntimeFailure", "Session", "get_runtime", "installed_runtimes"]
