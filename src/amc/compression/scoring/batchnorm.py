"""Batch-norm statistics of a sliced network, from its own activations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from amc.compression.scoring.engine.base import Engine, TorchEngine
from amc.errors import DataError
from amc.structure.batches import Reader, size_of
from amc.structure.modes import evaluating


@torch.no_grad()
def reestimate_batchnorm_(model: nn.Module, batches: Iterable[Any], engine: Engine | None = None) -> None:
    """Replace the running statistics of every batch norm by those of `batches` (see `amc.structure.batches`), in place.

    The new statistics are the means and (unbiased) variances of the batches, averaged by their numbers of images. A
    last batch of one image is skipped: it may have no variance. Other layers run in eval mode, and nothing else in the
    network changes. `engine` runs the network; None: torch. Raises DataError without a batch.
    """
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
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
