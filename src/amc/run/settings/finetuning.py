"""The settings of fine-tuning: the training itself, the choice between candidates, and one session of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from amc.errors import AmcError
from amc.run.settings.options import Panel, option
from amc.run.settings.types import MAX_SEED, convert_types_

OptimiserName = Literal["sgd", "adamw"]
PrecisionName = Literal["float32", "bfloat16", "float16"]

_LR: dict[OptimiserName, float] = {"sgd": 0.05, "adamw": 1e-3}
_LR_RECOVERED = _LR | {"sgd": 0.02}  # of a network that is near the dense one: see benchmarks/after_recovery.py
_WEIGHT_DECAY: dict[OptimiserName, float] = {"sgd": 1e-4, "adamw": 1e-2}


@dataclass(frozen=True, slots=True)
class FineTuneConfig:
    """Hyperparameters of `finetune`; the defaults suit a pretrained network that lost half of its cost.

    >>> amc.FineTuneConfig(optimiser="adamw").peak_lr
    0.001
    """

    epochs: int = option(5, panel=Panel.TRAINING, help="Passes over the training split.")
    batch_size: int = option(  # of a TrainingSet; a loader brings its own
        128, panel=Panel.TRAINING, help="Images per step, over all processes."
    )
    optimiser: OptimiserName = option(  # noqa: RUF009 -- this is a field
        "sgd", panel=Panel.TRAINING, flags=("--optimiser", "--optimizer"), help="sgd or adamw."
    )
    lr: float | None = option(
        None,
        panel=Panel.TRAINING,
        help="Learning rate after the warm-up (default: 0.05, after recovery 0.02; adamw: 0.001).",
    )
    momentum: float = 0.9  # Nesterov's for sgd, the first beta of adamw; no option
    weight_decay: float | None = option(  # not of biases and norms
        None, panel=Panel.TRAINING, help="Weight decay, of weights only (default: 1e-4; adamw: 0.01)."
    )
    warmup: float = option(  # the rate rises from 0
        0.05, panel=Panel.TRAINING, help="Share of all steps over which the learning rate rises, in [0, 1)."
    )
    label_smoothing: float = option(0.0, panel=Panel.TRAINING, help="Label smoothing, in [0, 1).")
    distill: float = option(  # needs a teacher
        0.0, panel=Panel.TRAINING, help="Weight of the dense network's outputs in the loss, in [0, 1]."
    )
    temperature: float = option(4.0, panel=Panel.TRAINING, help="Temperature of --distill.")
    clip_norm: float = option(5.0, panel=Panel.TRAINING, help="Largest norm of the gradient; 0: no limit.")
    ema: float = option(
        0.0, panel=Panel.TRAINING,
        help="Decay per step of the weights' moving average, such as 0.999; the average is the result. 0: no average.",
    )  # fmt: skip
    precision: PrecisionName = option(  # noqa: RUF009 -- this is a field
        "float32", panel=Panel.TRAINING, help="Precision of the forward pass: float32, bfloat16, or on CUDA float16."
    )
    seed: int = option(0, panel=Panel.TRAINING, help="Seed of shuffling, augmentation and dropout.")

    def __post_init__(self) -> None:
        convert_types_(self, "fine-tuning ")
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

    def resolved(self, *, recovered: bool = False) -> FineTuneConfig:
        """The same settings with every default filled in. `recovered`: whether a search has recovered the network."""
        rate = _LR_RECOVERED[self.optimiser] if recovered and self.lr is None else self.peak_lr
        return replace(self, lr=rate, weight_decay=self.decay)


@dataclass(frozen=True, slots=True)
class CandidateConfig:
    """How many finalists (the search's best policies) are fine-tuned briefly; the best one is trained in full."""

    candidates: int = option(
        1, panel=Panel.CANDIDATES, help="Train this many of the search's best policies briefly, then the best in full."
    )
    candidate_epochs: int = option(1, panel=Panel.CANDIDATES, help="Passes for each candidate.")

    def __post_init__(self) -> None:
        convert_types_(self)
        for name, count in (("candidates", self.candidates), ("candidate-epochs", self.candidate_epochs)):
            if count < 1:
                raise AmcError(f"{name} must be at least 1, got {count}")


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """How one call of `amc finetune` runs; a later call that resumes it may have others."""

    checkpoint_every: int = option(
        250, panel=Panel.SESSION, min=0, help="Steps between checkpoints; 0: only after each epoch."
    )
    restart: bool = option(False, panel=Panel.SESSION, flags=("--restart",), help="Discard an unfinished fine-tuning.")
    device: str = option("auto", panel=Panel.SESSION, help="auto (a GPU if there is one), cpu, cuda or cuda:1.")
    ray: str | None = option(
        None, panel=Panel.SESSION,
        help="Train the candidates on a Ray cluster: auto (of this machine), or HOST:PORT of its head.",
    )  # fmt: skip
