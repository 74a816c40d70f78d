"""The training loop: step, average, check, save. A resumed training is bit-identical to an uninterrupted one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from amc.errors import AmcError, EvaluationError, NotFiniteError
from amc.recovery import checkpoint as storage
from amc.recovery.checkpoint import Position, TrainingState
from amc.recovery.data import Batch, Stream, TrainingSet
from amc.recovery.ema import MovingAverage
from amc.recovery.losses import Loss
from amc.recovery.masks import WeightMasks
from amc.recovery.optimiser import learning_rate, make_optimiser
from amc.recovery.precision import Arithmetic
from amc.recovery.records import EpochRecord, FineTuneResult, StepRecord
from amc.recovery.repeatable import repeatable
from amc.recovery.tensors import copy_into_, snapshot, tensors_of
from amc.recovery.workers import Accelerated, Alone, Workers
from amc.run.settings import FineTuneConfig
from amc.run.weights import digest

VERSION = 1  # of the checkpoint

OnStep = Callable[[StepRecord], None]
OnEpoch = Callable[[EpochRecord], float | None]


class DivergenceError(AmcError):
    """A loss, weight or score is no longer finite; the network was restored to its last good state."""


def finetune(
    model: nn.Module,
    train: TrainingSet | Iterable[Batch],
    config: FineTuneConfig | None = None,
    *,
    teacher: nn.Module | None = None,
    masks: Mapping[str, Tensor] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 0,
    accelerator: Any = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> FineTuneResult:
    """Train all parameters of `model` **in place**, on its own device. The network is then in eval mode.

    train: a `TrainingSet`, or a sized iterable of (images, labels) such as a DataLoader, iterated once per epoch.
    teacher: the dense network, on the same device, for `config.distill` > 0.
    masks: by parameter name, bool of its shape, True = kept. The other weights are set to zero and stay zero; this is
        checked after every epoch (RuntimeError).
    checkpoint: a file, written after every epoch and, with a TrainingSet, every `checkpoint_every` steps (0: only
        after epochs). Training resumes from an existing file. `model`, `config`, `train`, `masks` and `teacher` must
        then be the same as at the start. On a CPU the result is bit-identical to that of an uninterrupted training;
        with a loader, only if its order depends on torch's global generator alone.
    accelerator: an `accelerate.Accelerator`. The processes share every batch of a TrainingSet; a loader must yield
        each process its own part. The network is moved to the accelerator's device. Only rank 0 writes files and
        calls the callbacks. Each process has its own batch-norm statistics; the result has those of rank 0.
    on_step, on_epoch: called after each step and epoch; they may evaluate the network. In `on_epoch` the network has
        the moving average of the weights if `config.ema` is set. `on_epoch` returns the epoch's score, or None.

    Raises AmcError for unusable arguments; DivergenceError if the loss, a weight, a statistic or the score of
    `on_epoch` is no longer finite; EvaluationError if `on_epoch` raises it for another reason; RunError if the
    checkpoint belongs to another training or cannot be written. After a DivergenceError or EvaluationError the network
    is that of the last whole epoch (or the resumed one), and the last checkpoint remains.
    """
    config = config or FineTuneConfig()
    if config.distill > 0 and teacher is None:
        raise AmcError(f"distillation with weight {config.distill:g} needs a teacher; pass the dense network")
    if checkpoint_every < 0:
        raise AmcError(f"checkpoint_every must be at least 0 steps, got {checkpoint_every}")
    workers: Workers = Alone(model) if accelerator is None else Accelerated(accelerator, model)
    arithmetic = Arithmetic(config.precision, workers.device)
    stream = Stream(train, config.batch_size, rank=workers.rank, ranks=workers.count)
    identity = {
        "version": VERSION,
        "config": asdict(config.resolved()),
        "network": digest(tensors_of(model)),
        "masks": digest(masks) if masks else None,
        "teacher": digest(tensors_of(teacher)) if teacher is not None and config.distill > 0 else None,
        "images": stream.size,
        "steps": stream.steps,
        "device": workers.device.type,
        "processes": workers.count,
    }
    saver = None if checkpoint is None else _Saver(Path(checkpoint), checkpoint_every, identity)
    weights = WeightMasks(model, masks or {})
    with _own_random(workers.device, config.seed + workers.rank), repeatable(workers.device):
        trainer = _Trainer(
            model, config, stream, Loss(config, teacher), weights, arithmetic, workers, saver, on_step, on_epoch
        )
        try:
            return FineTuneResult(model, trainer.run())
        finally:
            model.eval()


@contextmanager
def _own_random(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generators, which dropout uses, and restore them afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True, slots=True)
class _Saver:
    """Where and when checkpoints are written, and the training that they belong to."""

    path: Path
    every: int  # steps
    identity: storage.Identity


@dataclass
class _Trainer:
    """One training, from its start or from a checkpoint, to its end."""

    model: nn.Module
    config: FineTuneConfig
    stream: Stream
    loss: Loss
    masks: WeightMasks
    arithmetic: Arithmetic
    workers: Workers
    saver: _Saver | None
    on_step: OnStep | None
    on_epoch: OnEpoch | None

    def __post_init__(self) -> None:
        self.masks.apply_()
        self.optimiser = make_optimiser(self.model, self.config)
        self.average = MovingAverage(self.model, self.config.ema) if self.config.ema > 0 else None
        self.generator = torch.Generator().manual_seed(self.config.seed)  # of the data order; the same in every process
        self.epoch_began = self.generator.get_state()
        self.position = Position()
        self.good = self._result()  # restored if training diverges

    def run(self) -> tuple[EpochRecord, ...]:
        """Train the remaining epochs. Returns the records of all epochs."""
        self._resume()
        network = self.workers.wrap(self.model)
        for number in range(len(self.position.records) + 1, self.config.epochs + 1):
            self.good = self._result()
            record = self._checked(self._epoch(network, number))
            self.epoch_began = self.generator.get_state()
            self.position = Position((*self.position.records, record))
            self._save()
        if self.average:
            self.average.swap_()
        return self.position.records

    def _checked(self, record: EpochRecord) -> EpochRecord:
        """Check the network after an epoch and call `on_epoch`. Returns the record with its score."""
        self._check_finite(record.epoch)
        self.masks.verify(self.model)
        try:
            with self.average.in_place() if self.average else nullcontext():
                self.masks.verify(self.model)
                score = self.on_epoch(record) if self.on_epoch is not None and self.workers.rank == 0 else None
        except NotFiniteError as error:  # the score was finite before training, so training diverged
            self._diverged(record.epoch, str(error).partition(";")[0])
        except EvaluationError as error:
            copy_into_(self.model, self.good)
            raise EvaluationError(f"{error}; it failed after epoch {record.epoch} of fine-tuning") from error
        return record if score is None else replace(record, score=float(score))

    def _epoch(self, network: nn.Module, number: int) -> EpochRecord:
        """Train the remaining batches of epoch `number`."""
        total_steps = self.stream.steps * self.config.epochs
        step, total, rate = self.position.step, self.position.loss, 0.0
        began = time.perf_counter() - self.position.seconds
        for images, labels in self.stream.epoch(self.generator, skip=step):
            step += 1
            done = min(self.stream.steps, step) + (number - 1) * self.stream.steps
            rate = learning_rate(done, total_steps, self.config)
            loss = self._step(network, images, labels, rate, done)
            if not math.isfinite(loss):
                self._diverged(number, f"the loss is {loss}")
            total += loss
            if self.on_step is not None and self.workers.rank == 0:
                self.on_step(StepRecord(done, total_steps, number, loss, rate))
            if self._due(done) and step < self.stream.steps:
                self._check_finite(number)
                self.position = replace(self.position, step=step, loss=total, seconds=time.perf_counter() - began)
                self._save()
        if step == 0:
            raise AmcError("fine-tuning got no batches; the training loader is empty or was used up")
        return EpochRecord(number, total / step, rate, time.perf_counter() - began)

    def _step(self, network: nn.Module, images: Tensor, labels: Tensor, rate: float, done: int) -> float:
        """One step of the optimiser. Returns the loss before it; if that is not finite, the step is skipped."""
        network.train()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        device = self.workers.device
        with self.arithmetic.forward():
            loss = self.loss(network, images.to(device), labels.to(device))
        value = self.workers.mean(loss.detach())
        if math.isfinite(value):
            self.arithmetic.backward_(loss, self.optimiser)
            self.masks.mask_gradients_()
            if self.config.clip_norm > 0:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
            self.arithmetic.step_(self.optimiser)
            self.masks.apply_()
            if self.average:
                self.average.update_(done)
        return value

    def _due(self, done: int) -> bool:
        """Whether a checkpoint follows step `done` in the middle of an epoch."""
        return self.saver is not None and self.stream.can_skip and self.saver.every > 0 and done % self.saver.every == 0

    def _result(self) -> dict[str, Tensor]:
        """A copy of the tensors that the network would have if training ended now."""
        if self.average:
            return {name: value.clone() for name, value in self.average.values.items()}
        return snapshot(self.model)

    def _check_finite(self, number: int) -> None:
        """Raise DivergenceError if a weight or statistic has become non-finite: this can happen under a finite loss.

        A tensor that was never finite, such as an attention mask of -inf, is ignored.
        """
        for name, tensor in tensors_of(self.model).items():
            if not tensor.isfinite().all() and self.good[name].isfinite().all():
                self._diverged(number, f"'{name}' is no longer finite")

    def _diverged(self, number: int, reason: str) -> NoReturn:
        copy_into_(self.model, self.good)
        kept = f"; '{self.saver.path}' keeps the last good state" if self.saver and self.saver.path.exists() else ""
        raise DivergenceError(
            f"fine-tuning diverged: {reason} in epoch {number}; lower the learning rate "
            f"({self.config.peak_lr:g}). The network is as it was before that epoch{kept}"
        )

    def _save(self) -> None:
        if self.saver is None:
            return
        random = {"random.global": self.workers.gather(torch.get_rng_state())}
        if self.workers.device.type == "cuda":
            random["random.device"] = self.workers.gather(torch.cuda.get_rng_state(self.workers.device))
        if self.workers.rank != 0:
            return
        tensors = {f"network.{name}": tensor for name, tensor in tensors_of(self.model).items()}
        for index, values in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{key}": value for key, value in values.items() if value is not None}
        if self.average:
            tensors |= {f"average.{name}": value for name, value in self.average.values.items()}
        tensors |= random | {"random.data": self.epoch_began}
        storage.save(
            self.saver.path, TrainingState(self.position, tensors, self.arithmetic.state()), self.saver.identity
        )

    def _resume(self) -> None:
        """Restore the checkpoint if one exists."""
        if self.saver is None:
            return
        state = storage.load(self.saver.path, self.saver.identity)
        position = state.position if state else Position()
        done = torch.tensor([len(position.records) * self.stream.steps + position.step])
        if len(set(self.workers.gather(done).flatten().tolist())) > 1:
            raise AmcError(f"the processes do not find the same '{self.saver.path}'; put it where all can read it")
        if state is None:
            return
        tensors, rank = state.tensors, self.workers.rank
        copy_into_(self.model, _part(tensors, "network."))
        self._restore_optimiser(_part(tensors, "optimiser."))
        if self.average:
            self.average.restore_(_part(tensors, "average."))
        self.arithmetic.restore_(dict(state.scaler))
        self.epoch_began = tensors["random.data"]
        self.generator.set_state(self.epoch_began)
        # Clones: torch 2.13 reads a generator state from the wrong place if the tensor has a storage offset.
        torch.set_rng_state(tensors["random.global"][rank].clone())
        if self.workers.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.device"][rank].clone(), self.workers.device)
        self.position = position

    def _restore_optimiser(self, values: Mapping[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in values.items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        own = self.optimiser.state_dict()
        self.optimiser.load_state_dict({"state": state, "param_groups": own["param_groups"]})


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
