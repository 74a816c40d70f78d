"""Candidates that are trained on a Ray cluster, beside each other.

Each is a task of its own, with as many threads as this process has, so that its result is that of a training here. A
node needs the data at the same path. A task that is lost with its node begins again on another one.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc.cli.jobs.training import Training
from amc.compression.scoring.workers.actor import find_modules
from amc.compression.scoring.workers.cluster import last_line, load_ray
from amc.errors import AmcError, EvaluationError, ResourceError, RunError
from amc.recovery import DivergenceError, FineTuneConfig

FAULTS: Mapping[str, type[AmcError]] = {
    "diverged": DivergenceError, "evaluation": EvaluationError, "resource": ResourceError, "run": RunError,
}  # fmt: skip
RETRIES = 5  # of a task whose process or node dies


@dataclass(frozen=True)
class Here:
    """What of this process a training depends on."""

    threads: int
    path: list[str]  # where modules are found
    folder: str


class CandidatesAway:
    """Trainings that have begun on a cluster that this process is connected to."""

    def __init__(self, training: Training) -> None:
        self._ray = load_ray()
        self._training = self._ray.put(training)
        gpus = {"num_gpus": 1} if training.device.type == "cuda" else {}
        most = max(node["Resources"].get("CPU", 1) for node in self._ray.nodes() if node["Alive"])
        self._options = {"num_cpus": min(torch.get_num_threads(), most), "max_retries": RETRIES, **gpus}
        self._begun: dict[int, Any] = {}

    def begin(self, number: int, slim: nn.Module, masks: Mapping[str, Tensor], settings: FineTuneConfig) -> None:
        """Let some node train a network."""
        task = self._ray.remote(**self._options)(train_here)
        here = Here(torch.get_num_threads(), list(filter(None, sys.path)), str(Path.cwd()))
        self._begun[number] = task.remote(self._training, slim.cpu(), dict(masks), settings, here)

    def score(self, number: int) -> float:
        """The score after the training, when it is there. Raises what the training raises, with the node's name."""
        try:
            found: dict[str, Any] = self._ray.get(self._begun[number])
        except self._ray.exceptions.RayError as error:
            raise ResourceError(f"candidate {number + 1} was lost on the Ray cluster ({last_line(error)})") from None
        if "score" in found:
            return float(found["score"])
        text = str(found["error"])
        kind = FAULTS[found["kind"]]
        raise kind(text if kind in (DivergenceError, EvaluationError) else f"node {found['node']}: {text}")


def train_here(
    training: Training,
    slim: nn.Module,
    masks: Mapping[str, Tensor],
    settings: FineTuneConfig,
    driver: Here,
) -> dict[str, Any]:
    """Train a network on this node: its score, or the error, as its kind and text."""
    find_modules(driver.path)
    torch.set_num_threads(driver.threads)
    if Path(driver.folder).is_dir():
        os.chdir(driver.folder)  # names of data may be relative
    try:
        result = training.trained(slim, masks, settings)
    except AmcError as error:
        kind = next((name for name, fault in FAULTS.items() if isinstance(error, fault)), "run")
        return {"kind": kind, "error": str(error), "node": platform.node()}
    return {"score": float(result.epochs[-1].score or 0.0)}
