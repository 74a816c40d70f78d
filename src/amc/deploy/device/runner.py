"""The functions that run in a device server's child process. Only they use the runtimes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amc.deploy import machine
from amc.deploy.measure import MeasureSettings
from amc.deploy.quiet import silenced
from amc.deploy.runtimes import get_runtime, installed_runtimes
from amc.deploy.runtimes.openvino import openvino
from amc.deploy.timing import latency_of_files
from amc.errors import AmcError
from amc.run.provenance import amc_version


def describe(argument: Mapping[str, Any]) -> dict[str, Any]:
    """The installed runtimes and the machine; ignores its argument."""
    runtimes = {name: number for name, number in installed_runtimes().items() if not get_runtime(name).trusted_only}
    return {"amc_version": amc_version(), "machine": machine.describe(), "runtimes": runtimes}


# Functions that import a runtime's package.
IMPORTS: dict[str, Callable[[], object]] = {
    "onnxruntime": partial(importlib.import_module, "onnxruntime"),
    "openvino": openvino,
    "executorch": partial(importlib.import_module, "executorch.runtime"),
    "litert": partial(importlib.import_module, "ai_edge_litert.interpreter"),
    "ncnn": partial(importlib.import_module, "ncnn"),
}


def prepare(task: Mapping[str, Any]) -> None:
    """Import the runtime of a task, so that the import does not count as measuring time.

    If the import fails, `measure` reports it.
    """
    if "runtime" in task:  # the task of `describe` has no runtime
        with suppress(Exception), silenced():
            IMPORTS[task["runtime"]]()


def measure(task: Mapping[str, Any]) -> dict[str, Any]:
    """Time the models of a task (see `server.task_of`) on random inputs; returns the record of `amc.deploy.timing`.

    Raises AmcError if a model does not load or run, and for a runtime whose files can contain code.
    """
    runtime = str(task["runtime"])
    if get_runtime(runtime).trusted_only:  # a second check, in case the server's check fails
        raise AmcError(f"files for {runtime} can carry code, which a device does not take")
    generator = torch.Generator().manual_seed(0)
    models = {
        entry["name"]: ([Path(path) for path in entry["files"]], _inputs(entry["inputs"], generator))
        for entry in task["models"]
    }
    torch.set_num_threads(1)  # PyTorch only makes the inputs; its threads must not disturb the timing
    record = latency_of_files(
        models,
        runtime=runtime,
        threads=task["threads"],
        half=task["half"],
        settings=MeasureSettings(**task["settings"]),
    )
    for name, (paths, _) in models.items():
        size = sum(path.stat().st_size for path in paths)
        record["networks"][name] = {"file_bytes": size} | record["networks"][name]
    shapes = [entry["inputs"][0]["shape"] for entry in task["models"]]
    return record | {"batch": shapes[0][0] if shapes[0] else 1}


def _inputs(specs: list[Mapping[str, Any]], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Standard normal numbers for floating-point inputs; zeros for others, because zero is always in range."""
    tensors = []
    for spec in specs:
        dtype = getattr(torch, spec["dtype"])
        shape = tuple(spec["shape"])
        if dtype.is_floating_point:
            tensors.append(torch.randn(shape, generator=generator).to(dtype))
        else:
            tensors.append(torch.zeros(shape, dtype=dtype))
    return tuple(tensors)
