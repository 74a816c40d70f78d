"""What a job is doing, in RUN/status.json while it runs: for `amc watch` and the live report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from amc.compression.observer import Observer
from amc.errors import RunError
from amc.recovery import EpochRecord, StepRecord
from amc.run import files
from amc.run.directory import RunDir
from amc.structure import Certificate, Structure

EVERY = 1.0  # seconds, at least, between two writes within a stage


class StatusFile(Observer):
    """Keeps the file up to date; removes it when the job ends. Nothing depends on the file, so errors are ignored.

    Nothing is written before the directory is a run: the job that makes it must find it empty. `clock`: seconds since
    1970, which another process can compare with its own.
    """

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._run, self._clock = RunDir(directory), clock
        self._began = clock()
        self._part, self._stage, self._stage_began = "", "", self._began
        self._steps: tuple[int, int] | None = None  # done, and of how many
        self._epochs: list[dict[str, Any]] = []  # of the fine-tuning under way
        self._macs: int | None = None  # of the dense network
        self._written: float | None = None  # when; None: never

    def job_part(self, name: str) -> None:
        self._part = name

    def stage(self, name: str) -> None:
        self._stage, self._stage_began, self._steps, self._epochs = name, self._clock(), None, []
        self._write()

    def structure(self, structure: Structure, certificate: Certificate | None) -> None:
        self._macs = structure.macs

    def stage_step(self, done: int, total: int) -> None:
        self._steps = done, total
        self._write_now_and_then()

    def training_step(self, step: StepRecord) -> None:
        self.stage_step(step.step, step.total_steps)

    def epoch(self, epoch: EpochRecord, score: float | None) -> None:
        self._epochs.append({**asdict(epoch), "score": None if score is None else float(score)})
        self._write()

    def close(self) -> None:
        if self._written is not None:
            self._run.discard(files.STATUS)
            self._written = None

    def _write_now_and_then(self) -> None:
        if self._written is None or not 0 <= self._clock() - self._written < EVERY:
            self._write()

    def _write(self) -> None:
        if not self._run.has(files.CONFIG):
            return
        done, total = self._steps or (None, None)
        now = self._clock()
        record: Mapping[str, Any] = {
            "part": self._part, "stage": self._stage, "began": self._began, "stage_began": self._stage_began,
            "written": now, "done": done, "total": total, "epochs": self._epochs,
            "macs": self._macs,
        }  # fmt: skip
        with suppress(RunError, OSError, ValueError):
            self._run.show_json(files.STATUS, record)
            self._written = now
