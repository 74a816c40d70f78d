"""Which engine runs the networks of a search: ONNX Runtime where there is enough work and it agrees with torch.

No clock decides, so that a search has the same engine on every machine: ONNX Runtime is the faster one on all networks
of the zoo. Only bfloat16, which some processors lack, is measured. Engines may differ in the last image of a score, so
a run records its engine, and a resumed run keeps it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from torch import nn

from amc.compression.scoring.engine.base import Engine, TorchEngine
from amc.compression.scoring.engine.network import PiecewiseEngine, agree
from amc.compression.scoring.engine.program import UnfitError
from amc.compression.scoring.engine.torch_piece import TorchPiece
from amc.structure.batches import size_of
from amc.structure.modes import device_of
from amc.structure.trace import Example

TORCH, ONNX, BFLOAT16 = "torch", "onnxruntime", "torch bfloat16"
WORTH = 4e9  # multiply-accumulates of one score, below which ONNX Runtime would save less than it costs to begin with
BATCHES, ROUNDS = 3, 3  # of the check against torch, and of the measurement of bfloat16


@dataclass(frozen=True, slots=True)
class Task:
    """What an engine is chosen for."""

    model: nn.Module  # the dense network
    batches: Sequence[Example]  # on which every network is scored; empty if they are not kept in memory
    macs: int  # of the dense network, for one image
    others: int = 0  # images that are kept besides, for batch norms

    @property
    def images(self) -> int:
        return sum(map(size_of, self.batches))


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine, and what the user should know of its choice, one line each."""

    engine: Engine
    warnings: tuple[str, ...] = ()


def choose_engine(task: Task, setting: str, *, bf16: bool = False, recorded: str | None = None) -> Choice:
    """The engine for a task.

    `setting`: auto, torch, or onnxruntime, which is then taken for little work, too. `bf16`: bfloat16 if it is
    measured to be faster. `recorded`: the engine's name in the run that is resumed, which decides instead.
    """
    if not task.batches or device_of(task.model).type != "cpu":
        return Choice(TorchEngine(autocast=bf16))
    if recorded is not None:
        bf16, setting = recorded == BFLOAT16, recorded.partition(" ")[0]
    if recorded == BFLOAT16:
        return Choice(TorchEngine(autocast=True))
    worth = task.macs * task.images >= WORTH
    engine = torch_engine(task) if worth else TorchEngine()
    warnings = []
    if setting == ONNX or (setting != TORCH and worth):
        other, problem = _onnx_engine(task)
        if other is None:
            warnings.append(f"networks are scored with torch, because ONNX Runtime cannot run them: {problem}")
        else:
            engine = other
    if not bf16:
        return Choice(engine, tuple(warnings))
    half = TorchEngine(autocast=True)
    ratio = seconds(half, task) / seconds(engine, task)
    if ratio < 1:
        return Choice(half)
    slow = f"bfloat16 is switched off: measured here, it takes {ratio:.1f} times as long as float32 with {engine.name}"
    return Choice(engine, (*warnings, slow))


def torch_engine(task: Task) -> Engine:
    """Torch, with shared activations if the network can be run in pieces."""
    try:
        return PiecewiseEngine(TORCH, TorchPiece, task.model, task.batches[0], images=task.images + task.others)
    except UnfitError:
        return TorchEngine()


def onnx_engine(task: Task) -> Engine:
    """ONNX Runtime. Raises UnfitError if it cannot run the network, is not installed, or disagrees with torch."""
    try:
        from amc.compression.scoring.engine.onnx_piece import OnnxPiece
    except ImportError as error:
        raise UnfitError(f"package {error.name} is not installed") from error
    name = f"{ONNX} {version(ONNX)}"
    engine = PiecewiseEngine(name, OnnxPiece, task.model, task.batches[0], images=task.images + task.others)
    if not agree(_outputs(engine, task), _outputs(TorchEngine(), task)):
        raise UnfitError("its outputs differ from torch's")
    return engine


def seconds(engine: Engine, task: Task) -> float:
    """CPU seconds of a score, estimated from a few batches: the least of several rounds."""
    return min(_seconds(engine, task) for _ in range(ROUNDS))


def _seconds(engine: Engine, task: Task) -> float:
    first, *others = task.batches[:BATCHES]
    began = time.process_time()
    with engine.running(task.model) as run:
        run(first)
        loaded = time.process_time()
        for batch in others:
            run(batch)
    ended = time.process_time()
    each = (ended - loaded) / len(others) if others else 0.0
    return loaded - began + each * (len(task.batches) - 1)


def _onnx_engine(task: Task) -> tuple[Engine | None, str]:
    try:
        return onnx_engine(task), ""
    except UnfitError as error:
        return None, str(error)


def _outputs(engine: Engine, task: Task) -> list[Any]:
    with engine.running(task.model) as run:
        return [run(batch) for batch in task.batches[:BATCHES]]
