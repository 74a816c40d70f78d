"""What fine-tuning records: its steps, its epochs, and its result."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of the optimiser."""

    step: int  # from 1 to total_steps
    total_steps: int
    epoch: int  # from 1
    loss: float
    lr: float


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch."""

    epoch: int  # from 1
    loss: float  # mean over the steps
    lr: float  # of the last step
    seconds: float  # of training, over all sessions; without what `on_epoch` took
    score: float | None = None  # what `on_epoch` answered


@dataclass(frozen=True, slots=True)
class FineTuneResult:
    """The trained network (the object that was passed in) and one record an epoch."""

    model: nn.Module
    epochs: tuple[EpochRecord, ...]
