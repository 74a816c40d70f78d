"""The records of fine-tuning: steps, epochs, and the result."""

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
    seconds: float  # of training, over all sessions, without `on_epoch`
    score: float | None = None  # returned by `on_epoch`


@dataclass(frozen=True, slots=True)
class FineTuneResult:
    """The trained network, the same object that was passed in, and one record per epoch.

    >>> amc.finetune(result.model, train, epochs=2)
    FineTuneResult(2 epochs, loss ... -> ...)
    """

    model: nn.Module
    epochs: tuple[EpochRecord, ...]

    def __repr__(self) -> str:
        count, last = len(self.epochs), self.epochs[-1]
        before = f"{self.epochs[0].loss:.4f} -> " if count > 1 else ""
        score = "" if last.score is None else f", score {last.score:.4f}"
        return f"FineTuneResult({count} epoch{'s' * (count != 1)}, loss {before}{last.loss:.4f}{score})"
