"""What fine-tuning is told and what it tells: settings in, records out. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import nn

from amc.errors import AmcError
from amc.settings import MAX_SEED, settle_types_

OptimiserName = Literal["sgd", "adamw"]
PrecisionName = Literal["float32", "bfloat16", "float16"]

_LR: dict[OptimiserName, float] = {"sgd": 0.05, "adamw": 1e-3}
_WEIGHT_DECAY: dict[OptimiserName, float] = {"sgd": 1e-4, "adamw": 1e-2}


@dataclass(frozen=True, slots=True)
class FineTuneConfig:
    """Hyperparameters of `finetune`; the defaults suit a pretrained network of which half was pruned."""

    epochs: int = 5
    batch_size: int = 128  # of a TrainingSet, over all processes; a loader brings its own
    optimiser: OptimiserName = "sgd"
    lr: float | None = None  # at the end of the warm-up; None: 0.05 for sgd, 0.001 for adamw
    momentum: float = 0.9  # Nesterov's for sgd, the first beta of adamw
    weight_decay: float | None = None  # of weights, not of biases and norms; None: 1e-4 for sgd, 0.01 for adamw
    warmup: float = 0.05  # share of all steps over which the rate rises from 0
    label_smoothing: float = 0.0
    distill: float = 0.0  # weight of the teacher's part in the loss, in [0, 1]; needs a teacher
    temperature: float = 4.0  # of the distillation
    clip_norm: float = 5.0  # largest norm of the whole gradient; 0: none
    ema: float = 0.0  # decay a step of the moving average of the weights, in [0, 1); 0: no average
    precision: PrecisionName = "float32"  # of the forward pass; float16 needs a CUDA device
    seed: int = 0  # of shuffling, augmentation and dropout

    def __post_init__(self) -> None:
        settle_types_(self, "fine-tuning ")
        lr, decay = self.peak_lr, self.decay
        rules = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "optimiser": (self.optimiser in get_args(OptimiserName), "sgd or adamw"),
            "lr": (0 < lr < math.inf, "above 0 and finite"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "weight_decay": (0 <= decay < math.inf, "at least 0 and finite"),
            "warmup": (0 <= self.warmup < 1, "in [0, 1)"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "in [0, 1)"),
            "distill": (0 <= self.distill <= 1, "in [0, 1]"),
            "temperature": (0 < self.temperature < math.inf, "above 0 and finite"),
            "clip_norm": (self.clip_norm >= 0, "at least 0"),
            "ema": (0 <= self.ema < 1, "in [0, 1)"),
            "precision": (self.precision in get_args(PrecisionName), "float32, bfloat16 or float16"),
            "seed": (0 <= self.seed <= MAX_SEED, "at least 0 and below 2^63"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise AmcError(f"fine-tuning {name} is out of range: {getattr(self, name)}; it must be {rule}")

    @property
    def peak_lr(self) -> float:
        """The learning rate at the end of the warm-up."""
        return _LR.get(self.optimiser, 1.0) if self.lr is None else self.lr

    @property
    def decay(self) -> float:
        """The weight decay of weights."""
        return _WEIGHT_DECAY.get(self.optimiser, 0.0) if self.weight_decay is None else self.weight_decay

    def resolved(self) -> FineTuneConfig:
        """The same with every default written out."""
        return replace(self, lr=self.peak_lr, weight_decay=self.decay)


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
