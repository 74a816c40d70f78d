"""Recovery without labels: a pruned network learns the dense network's outputs on the calibration images.

One part of the images trains the network. The other part, which is never trained on, chooses the learning rate, keeps
the best epoch, and decides whether the network as pruned was better. No label is read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from amc.errors import DataError, ModelError, check_resources, reason_of
from amc.recovery.kernels import RightGradients
from amc.recovery.masks import WeightMasks
from amc.recovery.optimiser import learning_rate, make_optimiser
from amc.recovery.records import StepRecord
from amc.recovery.tensors import copy_into_, snapshot
from amc.run.settings import FineTuneConfig
from amc.structure.batches import mapped, moved, picked, size_of
from amc.structure.modes import device_of, evaluating
from amc.structure.trace import Example

BATCH = 64  # images a step
EPOCHS = 20
TRIAL_EPOCHS = 2  # for each learning rate, before one of them is chosen
RATES = (0.05, 0.02, 0.008)  # learning rates that are tried
HELD_OUT = 8  # one image of this many is held out
LEAST = 32  # images, below which nothing is trained
_AGREEMENT = 0.75  # share of images whose class stays when they are flipped, above which flips are harmless

Outputs = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was done to a network. `distance` is that of its outputs to the dense network's, on held-out images."""

    images: int  # trained on
    held_out: int
    epochs: int  # of the training with the chosen rate, whole ones
    rate: float | None  # None: nothing was trained
    flips: bool  # whether images were flipped at random
    distance: tuple[float, float]  # before and after
    seconds: float
    reason: str | None = None  # why the network is as it was pruned; None: it is the recovered one

    def to_json(self) -> dict[str, Any]:
        """The section of summary.json."""
        before, after = self.distance
        return {
            "images": self.images, "held_out": self.held_out, "epochs": self.epochs, "rate": self.rate,
            "flips": self.flips, "distance_before": _plain(before), "distance_after": _plain(after),
            "seconds": round(self.seconds, 1), "reason": self.reason,
        }  # fmt: skip


def distill_(
    slim: nn.Module,
    dense: nn.Module,
    batches: Sequence[Example],
    *,
    classes: bool,
    masks: Mapping[str, Tensor] | None = None,
    epochs: int = EPOCHS,
    max_seconds: float = math.inf,
    seed: int = 0,
    on_step: Callable[[StepRecord], None] = lambda _: None,
) -> Recovery:
    """Train `slim` **in place** towards the outputs of `dense`, which is on the same device; both end in eval mode.

    batches: inputs of both networks, in memory. classes: whether dimension 1 of an output holds logits of classes; the
    distance is then the KL divergence (Hinton et al., arXiv 1503.02531), otherwise the squared error over the variance
    of the dense network's output. masks: by parameter name, True = kept. max_seconds: of the whole call; it is looked
    at before each step. Where training does not bring the held-out outputs nearer, `slim` stays as it is.
    """
    return _Distillation(slim, dense, list(batches), classes, masks or {}, epochs, max_seconds, seed, on_step).run()


@dataclass
class _Distillation:
    """One recovery."""

    slim: nn.Module
    dense: nn.Module
    batches: list[Example]
    classes: bool
    masks: Mapping[str, Tensor]
    epochs: int
    max_seconds: float
    seed: int
    on_step: Callable[[StepRecord], None]
    began: float = field(default_factory=time.perf_counter)
    flips: bool = False

    def run(self) -> Recovery:
        """Choose the learning rate, train, and keep what is better."""
        self.training, held = _Images.divided(self.batches, torch.Generator().manual_seed(self.seed))
        images, held_out = self.training.count, sum(map(size_of, held))
        pruned, before, after, rate, epochs = snapshot(self.slim), math.nan, math.nan, None, 0
        with evaluating(self.dense), evaluating(self.slim):
            try:
                self.held = [(inputs, self._outputs(self.dense, inputs)) for inputs in held]
                before = after = self._distance()
                reason = self._reason(images, before)
                if reason is None:
                    self.flips = self.classes and _may_flip(self.dense, held)
                    rate = self._best_rate(pruned)
                    epochs, after = self._train(pruned, rate, self.epochs)
                    reason = None if after < before else "training brought its outputs no nearer to the dense network's"
            except Exception as error:  # outputs of any kind, and networks that were not made to be trained
                check_resources(error)
                reason = f"training fails ({reason_of(error)})"
            if reason is not None:
                copy_into_(self.slim, pruned)
        seconds = time.perf_counter() - self.began
        return Recovery(images, held_out, epochs, rate, self.flips, (before, after), seconds, reason)

    def _reason(self, images: int, before: float) -> str | None:
        """Why nothing can be trained; None if it can."""
        if images < LEAST:
            return f"{images} images are too few to train on; give at least {LEAST + LEAST // HELD_OUT}"
        if not math.isfinite(before):
            return "its outputs or the dense network's are not finite on the held-out images"
        return None

    def _best_rate(self, pruned: Mapping[str, Tensor]) -> float:
        """The rate with which a short training brings the network nearest to the dense one."""
        distances = {}
        for rate in RATES:
            _, distances[rate] = self._train(pruned, rate, TRIAL_EPOCHS)
            if self._late():
                break
        return min(distances, key=lambda rate: (distances[rate], rate))

    def _train(self, start: Mapping[str, Tensor], rate: float, epochs: int) -> tuple[int, float]:
        """Train from `start`; the number of whole epochs, and the distance of the best of them, which is kept."""
        copy_into_(self.slim, start)
        parameters = [parameter for parameter in self.slim.parameters() if parameter.is_floating_point()]
        flags = [parameter.requires_grad for parameter in parameters]
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            return self._epochs(FineTuneConfig(epochs=epochs, lr=rate, batch_size=BATCH, weight_decay=0.0))
        finally:
            for parameter, flag in zip(parameters, flags, strict=True):
                parameter.requires_grad_(flag)
                parameter.grad = None

    def _epochs(self, config: FineTuneConfig) -> tuple[int, float]:
        generator, masks = torch.Generator().manual_seed(self.seed), WeightMasks(self.slim, self.masks)
        optimiser, total = make_optimiser(self.slim, config), config.epochs * self.training.steps
        step, done, best = 0, 0, (math.inf, snapshot(self.slim))
        for _ in range(config.epochs):
            for inputs in self.training.epoch(generator):
                if self._late():
                    break
                step += 1
                rate = learning_rate(step, total, config)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                inputs = _mixed(self._flipped(inputs, generator), generator)
                loss = self._step(optimiser, masks, inputs, config.clip_norm)
                self.on_step(StepRecord(step, total, done + 1, loss, rate))
                if not math.isfinite(loss):
                    break
            else:
                done += 1
                distance = self._distance()
                if distance < best[0]:
                    best = distance, snapshot(self.slim)
                continue
            break
        copy_into_(self.slim, best[1])
        return done, best[0]

    def _step(self, optimiser: torch.optim.Optimizer, masks: WeightMasks, inputs: Example, clip_norm: float) -> float:
        target = self._outputs(self.dense, inputs)
        self._batch_norms(training=size_of(inputs) > 1)
        optimiser.zero_grad(set_to_none=True)
        there = moved(inputs, device_of(self.slim))
        loss = self._loss(_tensors(self.slim(*there.args, **there.kwargs)), target)
        with RightGradients():
            loss.backward()  # type: ignore[no-untyped-call]
        self._batch_norms(training=False)
        value = float(loss.detach())
        if math.isfinite(value):
            masks.mask_gradients_()
            nn.utils.clip_grad_norm_(self.slim.parameters(), clip_norm)
            optimiser.step()
            masks.apply_()
        return value

    def _batch_norms(self, *, training: bool) -> None:
        """Let batch norms use and gather the statistics of the batch; everything else works as in evaluation."""
        for part in self.slim.modules():
            if isinstance(part, _BatchNorm):
                part.training = training

    def _flipped(self, inputs: Example, generator: torch.Generator) -> Example:
        """Half of the images mirrored, where that is harmless."""
        if not self.flips:
            return inputs
        (images,) = _leaves(inputs)
        chosen = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
        return _mirrored(inputs, chosen)

    def _outputs(self, network: nn.Module, inputs: Example) -> Outputs:
        with torch.no_grad():
            there = moved(inputs, device_of(network))
            return _tensors(network(*there.args, **there.kwargs))

    def _loss(self, outputs: Outputs, targets: Outputs) -> Tensor:
        """The distance of two networks' outputs, summed over the tensors among them."""
        if not targets:
            raise ModelError("the network's outputs hold no tensor of real numbers")
        return torch.stack(
            [
                _distance(output.float(), target.float(), self.classes)
                for output, target in zip(outputs, targets, strict=True)
            ]
        ).sum()

    @torch.no_grad()
    def _distance(self) -> float:
        """On the held-out images."""
        total = sum(
            size_of(inputs) * float(self._loss(self._outputs(self.slim, inputs), target))
            for inputs, target in self.held
        )
        return total / sum(size_of(inputs) for inputs, _ in self.held)

    def _late(self) -> bool:
        return time.perf_counter() - self.began > self.max_seconds


def _distance(output: Tensor, target: Tensor, classes: bool) -> Tensor:
    if classes and output.ndim > 1 and output.shape[1] > 1:
        divergence = F.kl_div(output.log_softmax(1), target.log_softmax(1), log_target=True, reduction="none")
        return divergence.sum(1).mean()
    return F.mse_loss(output, target) / target.var(correction=0).clamp_min(torch.finfo(torch.float32).tiny)


def _plain(distance: float) -> float | None:
    """For JSON, which has no number for what is not finite."""
    return distance if math.isfinite(distance) else None


@dataclass(frozen=True)
class _Images:
    """The images to train on: as one batch where they have one shape, else as the batches that were given."""

    together: Example | None
    batches: Sequence[Example]

    @classmethod
    def divided(cls, batches: Sequence[Example], generator: torch.Generator) -> tuple[_Images, list[Example]]:
        """The images to train on, and batches of held-out ones."""
        together = _joined(batches)
        if together is None:
            held = max(1, len(batches) // HELD_OUT)
            return cls(None, batches[held:]), list(batches[:held])
        order = torch.randperm(size_of(together), generator=generator)
        held = max(1, len(order) // HELD_OUT)
        held_out = [
            picked(together, order[start : min(held, start + 4 * BATCH)]) for start in range(0, held, 4 * BATCH)
        ]
        return cls(picked(together, order[held:]), ()), held_out

    @property
    def count(self) -> int:
        return sum(map(size_of, self.batches)) if self.together is None else size_of(self.together)

    @property
    def steps(self) -> int:
        """Steps an epoch; the last incomplete batch is dropped."""
        return len(self.batches) if self.together is None else max(1, self.count // BATCH)

    def epoch(self, generator: torch.Generator) -> Iterator[Example]:
        """All batches in random order; every epoch puts other images together."""
        if self.together is None:
            yield from (
                self.batches[place] for place in torch.randperm(len(self.batches), generator=generator).tolist()
            )
            return
        order = torch.randperm(self.count, generator=generator)
        for step in range(self.steps):
            yield picked(self.together, order[step * BATCH : (step + 1) * BATCH])


def _joined(batches: Sequence[Example]) -> Example | None:
    """All batches as one; None if their tensors do not fit together."""
    if not batches:
        raise DataError("recovery needs calibration images; give at least one batch")
    leaves = [_leaves(batch) for batch in batches]
    sizes = [size_of(batch) for batch in batches]
    alike = all(
        [leaf.shape[1:] for leaf in part] == [leaf.shape[1:] for leaf in leaves[0]]
        and all(leaf.ndim and len(leaf) == size for leaf in part)
        for part, size in zip(leaves, sizes, strict=True)
    )
    if not alike:
        return None
    joined = iter([torch.cat(column) for column in zip(*leaves, strict=True)])

    return mapped(lambda _: next(joined), batches[0])


def _mixed(inputs: Example, generator: torch.Generator) -> Example:
    """Each example mixed with another one, at most half of it: the dense network answers for what comes out.

    The dense network's outputs for such inputs teach more than those for the few images alone (Beyer et al., arXiv
    2106.05237). Inputs that are not all real numbers stay as they are.
    """
    leaves, size = _leaves(inputs), size_of(inputs)
    if not all(leaf.is_floating_point() and leaf.ndim and len(leaf) == size for leaf in leaves):
        return inputs
    share, other = torch.rand(size, generator=generator) / 2, torch.randperm(size, generator=generator)

    def mix(tensor: Tensor) -> Tensor:
        weight = share.to(tensor).reshape(-1, *(1,) * (tensor.ndim - 1))
        return torch.lerp(tensor, tensor[other.to(tensor.device)], weight)

    return mapped(mix, inputs)


def _may_flip(dense: nn.Module, held: Sequence[Example]) -> bool:
    """Whether a mirrored image keeps its class for the dense network: so for objects, and not for digits or text."""
    agreeing = total = 0
    for inputs in held:
        leaves = _leaves(inputs)
        if len(leaves) != 1 or leaves[0].ndim != 4 or not leaves[0].is_floating_point():
            return False
        mirrored = _mirrored(inputs, torch.ones(len(leaves[0]), dtype=torch.bool, device=leaves[0].device))
        with torch.no_grad():
            plain, flipped = (
                _tensors(dense(*there.args, **there.kwargs))
                for there in (moved(each, device_of(dense)) for each in (inputs, mirrored))
            )
        if len(plain) != 1 or plain[0].ndim != 2 or plain[0].shape[1] < 2:
            return False
        agreeing += int((plain[0].argmax(1) == flipped[0].argmax(1)).sum())
        total += len(plain[0])
    return agreeing >= _AGREEMENT * total


def _mirrored(inputs: Example, chosen: Tensor) -> Example:

    return mapped(lambda images: torch.where(chosen[:, None, None, None], images.flip(-1), images), inputs)


def _leaves(inputs: Example) -> list[Tensor]:
    return [leaf for leaf in tree_leaves((inputs.args, dict(inputs.kwargs))) if isinstance(leaf, Tensor)]


def _tensors(outputs: Any) -> Outputs:
    """The tensors of numbers in a network's outputs, in order."""
    return tuple(leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point())
