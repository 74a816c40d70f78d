"""Recovery without labels: a pruned network learns the dense network's outputs on the calibration images.

One part of the images trains the network. The other part, which is never trained on, keeps the best epoch, and decides
whether the network as pruned was better. No label is read.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice, pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from amc.errors import AmcError, DataError, check_resources, reason_of
from amc.recovery.distances import (
    CheckedLoss,
    DistillLoss,
    DistillLossError,
    OutputDistance,
    checked_distill_loss,
)
from amc.recovery.kernels import RightGradients
from amc.recovery.masks import WeightMasks
from amc.recovery.optimiser import learning_rate, make_optimiser
from amc.recovery.records import StepRecord
from amc.recovery.repeatable import repeatable
from amc.recovery.tensors import copy_into_, snapshot
from amc.recovery.unlabelled import BATCH, HELD_OUT, Images, flipped, may_flip, mixed
from amc.run.settings import FineTuneConfig
from amc.structure.batches import layout_for, moved, size_of
from amc.structure.modes import device_of, evaluating, learning
from amc.structure.trace import Example

EPOCHS = 20
# Few images take more epochs: 512 of them bring ResNet-20 at 50% to 81.9% with 140 steps, 83.5% with 420.
LEAST_STEPS = 400
# The learning rate for a network whose distance is 1 or more. A nearer one has less to learn, and loses more by steps
# that are too long: its rate shrinks with the root of the distance. At the full rate, MobileNet-V1 and VGG-16 at 50% of
# the MACs (distances 0.08 and 0.04) came no nearer at all; ResNet-20 (1.2 and 3.0) was worse with less. Trying several
# rates on each network cost a quarter of the time and gained nothing.
RATE = 0.03
LEAST_RATE = 0.25  # share of it
LEAST = 32  # images, below which nothing is trained
_TIMED = 3  # steps, after a first one
_TIMING = 0.05  # share of the time limit that the timed steps may take
_PATIENCE = 2  # times the time limit, after which a training that became slow is stopped

Outcome = Literal[
    "recovered", "too few images", "no time", "no nearer", "scores less", "no score", "diverged", "failed"
]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a recovery trains. The same plan gives the same network; a plan without `steps` is first completed.

    >>> Plan(max_seconds=120).steps is None
    True
    """

    max_seconds: float = math.inf  # of the whole recovery
    epochs: int | None = None  # None: EPOCHS, and at least LEAST_STEPS steps
    share: float = 1.0  # of the usual length, where `epochs` is None
    steps: int | None = None  # of the optimiser. None: those epochs, or as many steps as fit into `max_seconds`
    limited: bool = False  # whether the time allows fewer steps than the epochs have

    def __post_init__(self) -> None:
        if not self.max_seconds >= 0:
            raise AmcError(f"the time of a recovery must be at least 0 seconds, got {self.max_seconds}")
        if self.epochs is not None and self.epochs < 1:
            raise AmcError(f"the epochs of a recovery must be at least 1, got {self.epochs}")
        if not 0 < self.share <= 1:
            raise AmcError(f"the share of a recovery's length must be in (0, 1], got {self.share}")
        if self.steps is not None and self.steps < 0:
            raise AmcError(f"the steps of a recovery must be at least 0, got {self.steps}")

    def to_json(self) -> dict[str, Any]:
        """The fields; null for no time limit."""
        return asdict(self) | {"max_seconds": _finite(self.max_seconds)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Inverse of `to_json`."""
        limit = data["max_seconds"]
        return cls(math.inf if limit is None else limit, data["epochs"], data["share"], data["steps"], data["limited"])


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was done to a network. `distance` is that of its outputs to the dense network's, on held-out images."""

    outcome: Outcome
    images: int  # trained on
    held_out: int
    plan: Plan  # with `steps`, unless nothing could be planned
    steps: int  # trained
    flips: bool  # whether images were flipped at random
    distance: tuple[float, float]  # before and after
    seconds: float
    reason: str | None = None  # why the network is as it was pruned; None: it is the recovered one
    stopped: str | None = None  # why training ended before the last step of the plan

    def to_json(self) -> dict[str, Any]:
        """The section of summary.json."""
        before, after = self.distance
        return {
            "outcome": self.outcome, "images": self.images, "held_out": self.held_out, "steps": self.steps,
            "planned": self.plan.to_json(), "flips": self.flips, "distance_before": _finite(before),
            "distance_after": _finite(after), "seconds": round(self.seconds, 1), "reason": self.reason,
            "stopped": self.stopped,
        }  # fmt: skip


def distill_(
    slim: nn.Module,
    dense: nn.Module,
    batches: Sequence[Example],
    *,
    classes: bool,
    loss: DistillLoss | None = None,
    masks: Mapping[str, Tensor] | None = None,
    plan: Plan | None = None,
    seed: int = 0,
    on_plan: Callable[[Plan], None] = lambda _: None,
    on_step: Callable[[StepRecord], None] = lambda _: None,
) -> Recovery:
    """Train `slim` **in place** towards the outputs of `dense`, which is on the same device; both end in eval mode.

    batches: inputs of both networks, in memory. classes: whether dimension 1 of an output holds logits of classes (see
    `OutputDistance`). loss: the user's distance of both networks' outputs, in place of that one. masks: by parameter
    name, True = kept. plan: how long to train; `on_plan` gets it with the number of steps, before the first one. Where
    training does not bring the held-out outputs nearer, `slim` stays as it is. Raises AmcError if `loss` cannot be
    minimised, and DataError without images.
    """
    if not batches:
        raise DataError("recovery needs calibration images; give at least one batch")
    began = time.perf_counter()
    with evaluating(dense), evaluating(slim), _trainable(slim), repeatable(device_of(slim)):
        layout = layout_for(dense, partial(_outputs, dense), batches[0])
        images, held = Images.divided(list(batches), torch.Generator().manual_seed(seed), layout)
        job = _Distillation(slim, dense, images, held, classes, loss, masks or {}, seed, on_step, began)
        return job.run(plan or Plan(), on_plan)


def checked_loss(loss: DistillLoss, dense: nn.Module, batch: Example) -> CheckedLoss:
    """The user's loss, tried on two equal outputs of the dense network. AmcError if it fails or has no gradient."""
    with evaluating(dense):
        return checked_distill_loss(loss, _outputs(dense, batch), _outputs(dense, batch))


@contextmanager
def _trainable(network: nn.Module) -> Iterator[None]:
    """Inside the block every parameter of real or complex numbers can be trained; no gradient is left afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
            parameter.grad = None


class _UnchangedError(Exception):
    """The network stays as it was pruned."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome: Outcome = outcome


@dataclass
class _Distillation:
    """One recovery."""

    slim: nn.Module
    dense: nn.Module
    images: Images
    held: Sequence[Example]
    classes: bool
    loss: DistillLoss | None
    masks: Mapping[str, Tensor]
    seed: int
    on_step: Callable[[StepRecord], None]
    began: float
    flips: bool = False
    steps: int = 0
    stopped: str | None = None
    before: float = math.nan
    after: float = math.nan

    def run(self, plan: Plan, on_plan: Callable[[Plan], None]) -> Recovery:
        """Plan, train, and keep what is better."""
        pruned, reason = snapshot(self.slim), None
        outcome: Outcome = "failed"
        try:
            self._begin()
            plan = plan if plan.steps is not None else self._completed(plan, pruned)
            on_plan(plan)
            self._train(plan, plan.steps or 0)
            outcome = "recovered"
        except _UnchangedError as unchanged:
            outcome, reason = unchanged.outcome, str(unchanged)
        except DistillLossError:
            raise
        except Exception as error:  # outputs of any kind, and networks that were not made to be trained
            check_resources(error)
            reason = f"training fails ({reason_of(error)})"
        finally:
            if outcome != "recovered":
                copy_into_(self.slim, pruned)
        return Recovery(
            outcome, self.images.count, sum(map(size_of, self.held)), plan, self.steps, self.flips,
            (self.before, self.after), self._elapsed(), reason, self.stopped,
        )  # fmt: skip

    def _begin(self) -> None:
        """Everything before the first step: what is to be learned, and how far it is away."""
        if self.images.count < LEAST:
            least = LEAST + LEAST // HELD_OUT
            reason = f"{self.images.count} images are too few to train on; give at least {least}"
            raise _UnchangedError("too few images", reason)
        self.targets = [_outputs(self.dense, inputs) for inputs in self.held]
        self.distance = self._distance()
        self.before = self.after = self._apart()
        if not math.isfinite(self.before):
            raise _UnchangedError("failed", "its outputs or the dense network's are not finite on the held-out images")
        self.flips = self.classes and may_flip(partial(_outputs, self.dense), self.held)

    def _distance(self) -> DistillLoss:
        """What is minimised. A loss of the user's is tried first, unless the caller has done so."""
        if self.loss is None:
            return OutputDistance.of(self.targets, classes=self.classes)
        return self.loss if isinstance(self.loss, CheckedLoss) else checked_loss(self.loss, self.dense, self.held[0])

    def _completed(self, plan: Plan, pruned: Mapping[str, Tensor]) -> Plan:
        """The plan with as many steps as its time allows. A few steps are timed and taken back."""
        each = self.images.steps
        usual = math.ceil(plan.share * max(EPOCHS * each, LEAST_STEPS))
        wanted = usual if plan.epochs is None else plan.epochs * each
        if math.isinf(plan.max_seconds):
            return replace(plan, steps=wanted)
        check, step = self._times(wanted, _TIMING * plan.max_seconds)
        copy_into_(self.slim, pruned)
        left = plan.max_seconds - self._elapsed() - check
        steps = max(0, int(left / (step + check / each)))
        return replace(plan, steps=min(wanted, steps), limited=steps < wanted)

    def _times(self, total: int, enough: float) -> tuple[float, float]:
        """Seconds of a look at the held-out images, and of a step; no further step once they took `enough` seconds."""
        ticks = [time.perf_counter()]
        self._apart()
        ticks.append(time.perf_counter())
        for _ in islice(self._steps(total), 1 + _TIMED):
            ticks.append(time.perf_counter())
            if ticks[-1] - ticks[1] > enough:
                break
        check, first, *others = (later - earlier for earlier, later in pairwise(ticks))
        return check, statistics.median(others or [first])  # the first step also sets up the kernels

    def _train(self, plan: Plan, total: int) -> None:
        """Train by the plan, and keep the network of the best epoch. Raises _UnchangedError if none is better."""
        if total == 0:
            raise _UnchangedError("no time", f"{plan.max_seconds:g} seconds are too few for a step of training")
        outcome: Outcome = "no nearer"
        best = snapshot(self.slim)
        for record in self._steps(total):
            self.on_step(record)
            if not math.isfinite(record.loss):
                outcome, self.stopped = "diverged", f"the distance is {record.loss} at step {record.step} of training"
                break
            self.steps = record.step
            if record.step % self.images.steps == 0 or record.step == total:
                distance = self._apart()
                if distance < self.after:
                    self.after, best = distance, snapshot(self.slim)
            if self._elapsed() > _PATIENCE * plan.max_seconds and record.step < total:
                outcome, self.stopped = "no time", f"{total} steps take more than {_PATIENCE} times the planned seconds"
                break
        if self.after >= self.before:
            raise _UnchangedError(
                outcome, self.stopped or "training brought its outputs no nearer to the dense network's"
            )
        copy_into_(self.slim, best)

    def _steps(self, total: int) -> Iterator[StepRecord]:
        """Train `total` steps, from the start of a schedule. A loss that is not finite changes nothing."""
        config = FineTuneConfig(lr=self._rate(), batch_size=BATCH, weight_decay=0.0)
        optimiser, masks = make_optimiser(self.slim, config), WeightMasks(self.slim, self.masks)
        generator = torch.Generator().manual_seed(self.seed)
        for step, inputs in zip(range(1, total + 1), self._inputs(generator), strict=False):
            rate = learning_rate(step, total, config)
            for group in optimiser.param_groups:
                group["lr"] = rate
            loss = self._gradients(inputs)
            if math.isfinite(loss):
                masks.mask_gradients_()
                nn.utils.clip_grad_norm_(self.slim.parameters(), config.clip_norm)
                optimiser.step()
                masks.apply_()
            yield StepRecord(step, total, 1 + (step - 1) // self.images.steps, loss, rate)

    def _rate(self) -> float:
        """The highest learning rate of the schedule. Nobody knows the unit of a user's loss, so that gets the full."""
        if self.loss is not None:
            return RATE
        return RATE * min(1.0, max(LEAST_RATE, math.sqrt(self.before)))

    def _inputs(self, generator: torch.Generator) -> Iterator[Example]:
        """Batches without end, the images flipped where that is harmless, and mixed."""
        while True:
            for inputs in self.images.epoch(generator):
                yield mixed(flipped(inputs, generator) if self.flips else inputs, generator)

    def _gradients(self, inputs: Example) -> float:
        """Set the gradients of the distance on a batch, which is returned."""
        target = _outputs(self.dense, inputs)
        self.slim.zero_grad(set_to_none=True)
        there = moved(inputs, device_of(self.slim))
        with learning(self.slim, norms=size_of(inputs) > 1):
            distance = self.distance(self.slim(*there.args, **there.kwargs), target)
            with RightGradients():
                distance.backward()  # type: ignore[no-untyped-call]
        return float(distance.detach())

    @torch.no_grad()
    def _apart(self) -> float:
        """The distance on the held-out images."""
        total = 0.0
        for inputs, target in zip(self.held, self.targets, strict=True):
            total += size_of(inputs) * float(self.distance(_outputs(self.slim, inputs), target))
        return total / sum(map(size_of, self.held))

    def _elapsed(self) -> float:
        return time.perf_counter() - self.began


@torch.no_grad()
def _outputs(network: nn.Module, inputs: Example) -> Any:
    there = moved(inputs, device_of(network))
    return network(*there.args, **there.kwargs)


def _finite(number: float) -> float | None:
    """For JSON, which has no number for what is not finite."""
    return number if math.isfinite(number) else None
