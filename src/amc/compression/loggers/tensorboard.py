"""TensorBoard: event files in RUN/tensorboard, which `tensorboard --logdir RUN` shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoard:
    """The `Service` of event files; a later session adds a file."""

    def __init__(self, directory: Path, key: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.key = key or "tensorboard"
        self._writer: Any = SummaryWriter(str(directory / self.key))

    def settings(self, name: str, values: Mapping[str, Any]) -> None:
        lines = (f"| {key} | {json.dumps(value, default=str)} |" for key, value in values.items())
        self._writer.add_text(name, "\n".join(("| setting | value |", "|---|---|", *lines)))

    def metrics(self, series: str, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{series}/{name}", value, step)
        self._writer.flush()  # a killed job leaves what it has logged

    def close(self, *, finished: bool) -> None:
        self._writer.close()
