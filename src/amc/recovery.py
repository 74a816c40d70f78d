"""Fine-tuning a pruned network: SGD with warm-up and cosine decay, label smoothing, distillation.

The result is the network after the last epoch, never the best of several: choosing would need a split to
choose on.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.errors import AmcError
from amc.modes import evaluating

Batch = tuple[Tensor, Tensor]


@runtime_checkable
class TrainingSet(Protocol):
    """Labelled images that give a new epoch of batches each time, such as `amc.zoo.ImageSet`."""

    def __len__(self) -> int: ...

    def training_batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """One shuffled epoch; a last smaller batch is left out unless it is the only one."""


@dataclass(frozen=True, slots=True)
class FineTuneConfig:
    """Hyperparameters of `finetune`; the defaults suit a pretrained network of which half was pruned."""

    epochs: int = 5
    batch_size: int = 128  # of a TrainingSet; a loader brings its own
    lr: float = 0.05  # at the end of the warm-up
    momentum: float = 0.9  # Nesterov's
    weight_decay: float = 1e-4  # of weights; biases and batch norms are not decayed
    warmup: float = 0.05  # share of all steps over which the rate rises from 0
    label_smoothing: float = 0.0
    distill: float = 0.0  # weight of the teacher's part in the loss, in [0, 1]; needs a teacher
    temperature: float = 4.0  # of the distillation
    clip_norm: float = 5.0  # largest norm of the whole gradient; 0: none
    autocast: bool = False  # bfloat16 arithmetic
    seed: int = 0  # of shuffling, augmentation and dropout

    def __post_init__(self) -> None:
        rules = {
            "epochs": self.epochs >= 1,
            "batch_size": self.batch_size >= 1,
            "lr": self.lr > 0,
            "momentum": 0 <= self.momentum < 1,
            "weight_decay": self.weight_decay >= 0,
            "warmup": 0 <= self.warmup < 1,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "distill": 0 <= self.distill <= 1,
            "temperature": self.temperature > 0,
            "clip_norm": self.clip_norm >= 0,
        }
        for name, holds in rules.items():
            if not holds:
                raise AmcError(f"fine-tuning {name} is out of range: {getattr(self, name)}; see FineTuneConfig")


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
    seconds: float


@dataclass(frozen=True, slots=True)
class FineTuneResult:
    """The trained network (the object that was passed in) and one record an epoch."""

    model: nn.Module
    epochs: tuple[EpochRecord, ...]


def finetune(
    model: nn.Module,
    train: TrainingSet | Iterable[Batch],
    config: FineTuneConfig | None = None,
    *,
    teacher: nn.Module | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> FineTuneResult:
    """Train `model` **in place**, on its own device, and leave it in eval mode; every parameter is trained.

    `train`: a `TrainingSet`, or a sized iterable of (images, labels) such as a DataLoader, gone through once
    an epoch. `teacher`: the dense network, for `config.distill` > 0. `on_step` and `on_epoch` are told what
    happened; the network may be evaluated in them. Raises AmcError; where the loss is not finite, with the
    weights of the last whole epoch.
    """
    config = config or FineTuneConfig()
    if config.distill > 0 and teacher is None:
        raise AmcError(f"distillation with weight {config.distill:g} needs a teacher; pass the dense network")
    steps = _steps_per_epoch(train, config)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    optimiser = _optimiser(model, config)
    generator = torch.Generator().manual_seed(config.seed)
    loss_of = _Loss(config, teacher if config.distill > 0 else None)
    records = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)  # dropout draws from the global generator
        for epoch in range(1, config.epochs + 1):
            run = _Epoch(epoch, steps, config, device, on_step)
            record = run.train_(model, optimiser, loss_of, _batches(train, config, generator))
            records.append(record)
            if on_epoch is not None:
                on_epoch(record)
    model.eval()
    return FineTuneResult(model, tuple(records))


def learning_rate(step: int, total_steps: int, config: FineTuneConfig) -> float:
    """For step 1 to `total_steps`: linear up to `config.lr`, then half a cosine down (arXiv 1608.03983)."""
    warm = round(config.warmup * total_steps)
    if step <= warm:
        return config.lr * step / warm
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm - 1) / (total_steps - warm)))


class _Loss:
    """Smoothed cross-entropy, mixed with the distance to the teacher (Hinton et al., arXiv 1503.02531)."""

    def __init__(self, config: FineTuneConfig, teacher: nn.Module | None) -> None:
        self.config = config
        self.teacher = teacher

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        config = self.config
        logits = model(images).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        if self.teacher is None:
            return loss
        with torch.no_grad(), evaluating(self.teacher):
            target = self.teacher(images).float()
        divergence = F.kl_div(
            (logits / config.temperature).log_softmax(dim=1),
            (target / config.temperature).log_softmax(dim=1),
            log_target=True,
            reduction="batchmean",
        )
        # T^2 keeps the gradient's size the same at every temperature (section 2 there).
        return (1 - config.distill) * loss + config.distill * config.temperature**2 * divergence


@dataclass(frozen=True, slots=True)
class _Epoch:
    number: int
    steps: int
    config: FineTuneConfig
    device: torch.device
    on_step: Callable[[StepRecord], None] | None

    def train_(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, loss_of: _Loss, batches: Iterable[Batch]
    ) -> EpochRecord:
        start = time.perf_counter()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        total, step, rate = 0.0, 0, 0.0
        for step, (images, labels) in enumerate(batches, start=1):
            model.train()
            done = min(self.steps, step) + (self.number - 1) * self.steps
            rate = learning_rate(done, self.steps * self.config.epochs, self.config)
            for group in optimiser.param_groups:
                group["lr"] = rate
            loss = self._step_(model, optimiser, loss_of, images.to(self.device), labels.to(self.device))
            if not math.isfinite(loss):
                model.load_state_dict(before)
                model.eval()
                raise AmcError(
                    f"fine-tuning diverged: the loss is {loss} in epoch {self.number}; lower the learning "
                    f"rate ({self.config.lr:g}). The network is as it was before that epoch"
                )
            total += loss
            if self.on_step is not None:
                self.on_step(StepRecord(done, self.steps * self.config.epochs, self.number, loss, rate))
        if step == 0:
            raise AmcError("fine-tuning got no batches; the training loader is empty or was used up")
        return EpochRecord(self.number, total / step, rate, time.perf_counter() - start)

    def _step_(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        loss_of: _Loss,
        images: Tensor,
        labels: Tensor,
    ) -> float:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.autocast):
            loss = loss_of(model, images, labels)
        value = float(loss.detach())
        if math.isfinite(value):
            loss.backward()  # type: ignore[no-untyped-call]
            if self.config.clip_norm > 0:
                nn.utils.clip_grad_norm_(model.parameters(), self.config.clip_norm)
            optimiser.step()
        return value


def _optimiser(model: nn.Module, config: FineTuneConfig) -> torch.optim.Optimizer:
    # Decaying batch norms and biases only drags the scale that the pruned network still relies on.
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


def _batches(
    train: TrainingSet | Iterable[Batch], config: FineTuneConfig, generator: torch.Generator
) -> Iterable[Batch]:
    if isinstance(train, TrainingSet):
        return train.training_batches(config.batch_size, generator)
    return train


def _steps_per_epoch(train: TrainingSet | Iterable[Batch], config: FineTuneConfig) -> int:
    if isinstance(train, TrainingSet):
        return max(1, len(train) // config.batch_size)
    if not isinstance(train, Sized):
        raise AmcError(
            f"fine-tuning cannot tell how many batches a {type(train).__name__} has; "
            "give a DataLoader or a list of batches"
        )
    return len(train)
