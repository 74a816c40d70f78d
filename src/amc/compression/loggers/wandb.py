"""Weights & Biases: a run of the project WANDB_PROJECT; WANDB_MODE=offline keeps it in RUN/wandb."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROJECT = "amc"  # unless WANDB_PROJECT names another


class Wandb:
    """The `Service` of one run of Weights & Biases. Each series has its own steps, as a search has several agents."""

    def __init__(self, directory: Path, key: str | None) -> None:
        import wandb

        self.key = key or uuid.uuid4().hex[:8]
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=directory.resolve().name,
            id=self.key,
            resume="allow" if key else None,
            reinit="create_new",  # the caller's own run stays as it is
            dir=str(directory),
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._series: set[str] = set()

    def settings(self, name: str, values: Mapping[str, Any]) -> None:
        self._run.config.update({name: dict(values)}, allow_val_change=True)

    def metrics(self, series: str, values: Mapping[str, float], step: int) -> None:
        if series not in self._series:
            self._series.add(series)
            self._run.define_metric(f"{series}/*", step_metric=f"{series}/step")
        self._run.log({f"{series}/step": step, **{f"{series}/{name}": value for name, value in values.items()}})

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
