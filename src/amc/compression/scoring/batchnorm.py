"""Batch-norm statistics of a pruned network, from its activations on calibration images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from amc.compression.scoring.engine.base import Engine, TorchEngine
from amc.errors import DataError, explained
from amc.structure.batches import Reader, size_of
from amc.structure.copying import copy_model
from amc.structure.modes import evaluating


@torch.no_grad()
def reestimate_batchnorm_(model: nn.Module, batches: Iterable[Any], engine: Engine | None = None) -> None:
    """Replace the running statistics of every batch norm by those of `batches` (see `amc.structure.batches`), in place.

    The new statistics are the means and (unbiased) variances of the batches, averaged by their numbers of images. A
    last batch of one image is skipped: it may have no variance. Other layers run in eval mode, and nothing else in the
    network changes. `engine` runs the network; None: torch. Raises DataError without a batch.
    """
    norms = [norm for _, norm in _batch_norms(model)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    reader, seen = Reader(), 0
    with evaluating(model):
        for norm in norms:
            norm.training = True
        estimate = (engine or TorchEngine()).estimation(model)
        try:
            for inputs in map(reader.inputs, reader.batches(batches)):
                count = size_of(inputs)
                if count <= bool(seen):
                    continue
                seen += count
                for norm in norms:
                    if seen == count:
                        norm.reset_running_stats()
                    norm.momentum = count / seen  # the share of this batch in the average so far
                estimate(inputs)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    if not seen:
        raise DataError("batch-norm statistics need at least one batch of calibration images")


def statistics_on(model: nn.Module, batches: Iterable[Any]) -> dict[str, Tensor]:
    """The statistics that `reestimate_batchnorm_` gives to every batch norm, by buffer name; `model` is untouched.

    Raises DataError if the network cannot take them, for instance of batches of one image.
    """
    network = copy_model(model)
    what = "batch norms cannot take statistics of the calibration batches"
    with explained(DataError, what, "give batches of several images, or bn-images 0"):
        reestimate_batchnorm_(network, batches)
    return _statistics(network)


@torch.no_grad()
def correct_batchnorm_(
    slim: nn.Module, batches: Iterable[Any], dense: Mapping[str, Tensor], engine: Engine | None = None
) -> None:
    """Add what pruning changed on `batches` to the running statistics of every batch norm, in place.

    `slim` has the dense network's statistics, which training gathered. `dense`: the statistics of the dense network on
    the same batches (`statistics_on`), of the channels that `slim` keeps. What a few images do to both networks alike
    cancels out. So a network that is hardly pruned hardly changes, and the statistics depend less on the choice of the
    images. A mean changes by the difference. A variance grows by the difference and shrinks by the ratio: it is then
    never negative, and at most the sum of its old value and that of the batches. `engine` runs the network.
    """
    trained = _statistics(slim)
    reestimate_batchnorm_(slim, batches, engine)
    for name, value in _buffers(slim):
        before, seen = trained[name], dense[name]
        corrected = before + (value - seen)
        if name.endswith("running_var"):
            corrected = torch.where(value < seen, before * (value / seen), corrected)
        value.copy_(corrected)


def _batch_norms(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Every batch norm with running statistics, by name."""
    for name, part in model.named_modules():
        if isinstance(part, _BatchNorm) and part.track_running_stats:
            yield name, part


def _buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The running means and variances, by buffer name."""
    for name, norm in _batch_norms(model):
        for kind in ("running_mean", "running_var"):
            yield f"{name}.{kind}" if name else kind, getattr(norm, kind)


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in _buffers(model)}
