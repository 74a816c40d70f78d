"""How a network of a run is trained and scored, here or on a node of a Ray cluster."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc.cli.jobs.origin import data_of, evaluate_of, fitting
from amc.compression.observer import Observer
from amc.compression.prepare import SEARCH_SHARE, leaves_images
from amc.compression.scoring.evaluator import Evaluate, Evaluator, as_evaluator, score_of
from amc.compression.settings import SearchConfig
from amc.recovery import EpochRecord, FineTuneConfig, FineTuneResult
from amc.recovery import finetune as recover
from amc.run.settings import Source
from amc.run.settings.scores import get_score
from amc.zoo import DataSplits


@dataclass
class Training:
    """What decides a training beside the network and its settings; sent to another machine, it loads the data there."""

    source: Source
    config: SearchConfig
    device: torch.device
    teacher: nn.Module | None = None  # on the device

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("data", "score")}

    @cached_property
    def data(self) -> DataSplits:
        """The images. Raises AmcError where they are not."""
        return data_of(self.source)

    @cached_property
    def score(self) -> Evaluate:
        """The run's score, on the images of the search; a function of the user's own gets the network on the CPU."""
        score = as_evaluator(evaluate_of(self.source, self.data), score=self.config.score, device=self.device)
        if isinstance(score, Evaluator) and leaves_images(self.config, len(score)):
            score = score.divided(SEARCH_SHARE)[0]
        copied = bool(self.source.evaluate) and self.device.type != "cpu"
        return lambda model: score_of(score, copy.deepcopy(model).cpu() if copied else model, "fine-tuned")

    def trained(
        self,
        slim: nn.Module,
        masks: Mapping[str, Tensor],
        settings: FineTuneConfig,
        *,
        checkpoint: Path | None = None,
        checkpoint_every: int = 0,
        accelerator: Any = None,
        watch: Observer | None = None,
    ) -> FineTuneResult:
        """Train a network in place, and score it after each epoch."""
        watch = watch or Observer()
        slim.to(self.device)

        def on_epoch(epoch: EpochRecord) -> float:
            value = self.score(slim)
            watch.epoch(epoch, get_score(self.config.score).named(value))
            return value

        return recover(
            slim,
            fitting(self.data, slim).train,
            settings,
            teacher=self.teacher,
            masks=masks,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            accelerator=accelerator,
            on_step=watch.training_step,
            on_epoch=on_epoch,
        )
