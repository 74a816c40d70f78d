"""A network -> its score.

`Evaluator` is the score of the method: top-1 accuracy of the network on images kept in memory. `as_evaluator`
makes one from what the user has. `PairedEvaluator` adds how sure the score is, beside the dense network.
`reestimate_batchnorm_` gives a sliced network the statistics of its own activations.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from amc.errors import DataError, EvaluationError
from amc.modes import evaluating
from amc.statistics import Measured, PairedDrop, compare

Batch = tuple[Tensor, Tensor]
Score = Callable[[nn.Module], float]

KEEP_FLOAT_BYTES = 1 << 30  # up to this size images are kept normalised; larger sets are normalised anew each time


@runtime_checkable
class BatchSource(Protocol):
    """Labelled images that can be gone through again and again, such as `amc.zoo.ImageSet`."""

    def __len__(self) -> int: ...

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """(images [B, ...], labels [B]) in order, ready for the network."""


class Evaluator:
    """Top-1 accuracy in [0, 1] of a network with logits [B, classes].

    `source`: a `BatchSource`, or an iterable of (images, labels) such as a DataLoader, read once here.
    `batch_size`: small batches keep activations in a processor's cache; on a GPU take 500 or more.
    `autocast`: compute in bfloat16 (other scores than float32 by a few tenths of a percent; faster where the
    processor has it). The network is used in eval mode on its own device and left in the mode it was in.
    Raises DataError for a set that is empty, EvaluationError for logits that are NaN or have a wrong shape.
    """

    def __init__(self, source: BatchSource | Iterable[Batch], *, batch_size: int = 64, autocast: bool = False) -> None:
        if batch_size < 1:
            raise DataError(f"batch size must be at least 1, got {batch_size}")
        self.autocast = autocast
        self._source: BatchSource | None = None
        self._batch_size = batch_size
        self._kept: list[Batch] = []
        if not isinstance(source, BatchSource):
            self._kept = [_checked(batch) for batch in source]
        else:
            first = next(iter(source.batches(1)), None)
            if first is not None and first[0].nbytes * len(source) > KEEP_FLOAT_BYTES:
                self._source = source
            else:
                self._kept = list(source.batches(batch_size))
        if len(self) == 0:
            raise DataError("the set to evaluate on is empty; give it at least one image")

    def __call__(self, module: nn.Module) -> float:
        """The share of images whose largest logit is that of their label."""
        correct = self.correct(module)
        return int(correct.sum()) / len(correct)

    def correct(self, module: nn.Module) -> Tensor:
        """Which images the network gets right: bool [N] on the CPU, always in the same order."""
        device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
        right: list[Tensor] = []  # on the device until the end: nothing waits for it in between
        dtype = torch.bfloat16
        with (
            evaluating(module),
            torch.inference_mode(),
            torch.autocast(device.type, dtype, enabled=self.autocast),
        ):
            for images, labels in self._batches():
                logits = module(images.to(device))
                right.append(_correct(logits, labels.to(device)))
            return torch.cat(right).cpu()

    def halves(self) -> tuple["Evaluator", "Evaluator"]:
        """Two evaluators on half of the images each: one to search on, one to confirm on what the first found.

        The halves are drawn at random, always the same ones: images come in an order (class by class, say, or the
        classes in turn), and any rule that goes by place may give all images of a class to one half. Images that
        are kept in memory are copied. Raises DataError for fewer than two images.
        """
        if len(self) < 2:
            raise DataError("one image cannot be divided into a half to search on and one to confirm on; give more")
        first = torch.zeros(len(self), dtype=torch.bool)
        first[torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[: (len(self) + 1) // 2]] = True
        parts = []
        for chosen in (first, ~first):
            part = copy.copy(self)
            if self._source is None:
                part._kept = [_checked(batch) for batch in _chosen(self._kept, chosen)]
            else:
                part._source = _Part(self._source, chosen)
            parts.append(part)
        return parts[0], parts[1]

    @property
    def held(self) -> Sequence[Batch]:
        """The batches that are kept in memory; none where images are read anew each time."""
        return self._kept

    def __len__(self) -> int:
        """How many images."""
        return sum(len(labels) for _, labels in self._kept) if self._source is None else len(self._source)

    def _batches(self) -> Iterable[Batch]:
        return self._kept if self._source is None else self._source.batches(self._batch_size)


class PairedEvaluator:
    """Accuracy with the standard error of its difference from the dense network's, on the same images."""

    def __init__(self, evaluator: Evaluator, dense: nn.Module) -> None:
        """`dense` is evaluated here, once."""
        self._evaluator = evaluator
        self._dense = evaluator.correct(dense)

    @property
    def dense_score(self) -> float:
        """The dense network's accuracy."""
        return int(self._dense.sum()) / len(self._dense)

    @property
    def images(self) -> int:
        """On how many images."""
        return len(self._dense)

    def __call__(self, module: nn.Module) -> Measured:
        """The network's accuracy, as `Evaluator` gives it, and that standard error."""
        right = self._evaluator.correct(module)
        return Measured(int(right.sum()) / len(right), compare(self._dense, right).standard_error)

    def compare(self, module: nn.Module) -> PairedDrop:
        """What the network loses against the dense one, counted in images."""
        return compare(self._dense, self._evaluator.correct(module))


def as_evaluator(evaluate: Score | BatchSource | Iterable[Batch], *, autocast: bool = False) -> Score:
    """`evaluate` as a function of a network: a callable is checked at each call, data becomes an `Evaluator`.

    The score of a callable may be any finite number; EvaluationError where it is not. What it raises passes
    through.
    """
    if isinstance(evaluate, Evaluator | PairedEvaluator):
        return evaluate
    if isinstance(evaluate, BatchSource):
        return Evaluator(evaluate, autocast=autocast)
    if callable(evaluate):
        return _checked_score(evaluate)
    if isinstance(evaluate, Iterable):
        return Evaluator(evaluate, autocast=autocast)
    raise EvaluationError(
        f"evaluate is a {type(evaluate).__name__}; give a function module -> float or a loader of (images, labels)"
    )


@torch.no_grad()
def reestimate_batchnorm_(model: nn.Module, batches: Iterable[Batch | Tensor]) -> None:
    """Replace the running statistics of every batch norm by those of `batches`, in place.

    The mean over the images of each batch's mean and (unbiased) variance; a single image at the end is left out, as
    some networks have no variance of it. The other layers work as in evaluation, and no other parameter, buffer or mode
    changes. Raises DataError without a batch.
    """
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    if not norms:
        return
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    momenta = [norm.momentum for norm in norms]
    seen = 0
    with evaluating(model):
        try:
            for batch in batches:
                images = batch if isinstance(batch, Tensor) else batch[0]
                if len(images) <= bool(seen):
                    continue
                seen += len(images)
                for norm in norms:
                    if seen == len(images):
                        norm.reset_running_stats()
                    norm.momentum = len(images) / seen  # the share of this batch in the average so far
                    norm.training = True
                model(images.to(device))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    if not seen:
        raise DataError("batch-norm statistics need at least one batch of calibration images")


def _checked(batch: object) -> Batch:
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        raise DataError(
            f"a batch to evaluate on is a {type(batch).__name__}; the loader must give (images, labels) tensors"
        )
    images, labels = batch
    if len(images) != len(labels):
        raise DataError(f"a batch has {len(images)} images and {len(labels)} labels; they must be as many")
    if images.dim() == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    return images, labels


class _Part:
    """Some images of a source that is too large to keep; `chosen` [N] says which."""

    def __init__(self, source: BatchSource, chosen: Tensor) -> None:
        self._source, self._chosen = source, chosen

    def __len__(self) -> int:
        return int(self._chosen.sum())

    def batches(self, batch_size: int) -> Iterator[Batch]:
        return _chosen(self._source.batches(2 * batch_size), self._chosen)


def _chosen(batches: Iterable[Batch], chosen: Tensor) -> Iterator[Batch]:
    """The images where `chosen` [N], counted through all batches, is True; no empty batches."""
    at = 0
    for images, labels in batches:
        wanted = chosen[at : at + len(labels)]
        at += len(labels)
        if wanted.any():
            yield images[wanted], labels[wanted]


def _correct(logits: object, labels: Tensor) -> Tensor:
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(labels):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise EvaluationError(
            f"the network gives {shape} for {len(labels)} images, not logits [{len(labels)}, classes]; "
            "pass a function module -> float as evaluate"
        )
    if logits.isnan().any():
        raise EvaluationError("the network's logits are NaN; check its weights and the normalisation of the images")
    return logits.argmax(dim=1) == labels


def _checked_score(evaluate: Score) -> Score:
    def score(module: nn.Module) -> float:
        value = evaluate(module)
        try:
            if isinstance(value, bool | str):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError) as problem:
            raise EvaluationError(f"evaluate returned a {type(value).__name__}; it must return a number") from problem
        if not math.isfinite(number):
            raise EvaluationError(f"evaluate returned {number}; it must return a finite number, higher for better")
        return value if isinstance(value, Measured) else number

    return score
