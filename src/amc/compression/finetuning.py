"""Fine-tuning for Python callers: settings by keyword, a score after each epoch, and observers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from amc import recovery
from amc.compression.observer import Observer
from amc.compression.progress import listening
from amc.compression.scoring.evaluator import as_evaluator, score_of
from amc.compression.scoring.sources import Batch
from amc.recovery import EpochRecord, FineTuneConfig, FineTuneResult, TrainingSet
from amc.recovery.kernels import slow_bfloat16
from amc.run.settings import SessionConfig, from_keywords
from amc.run.settings.scores import DEFAULT, get_score
from amc.structure.modes import device_of


def finetune(
    model: nn.Module,
    train: TrainingSet | Iterable[Batch],
    *,
    teacher: nn.Module | None = None,
    masks: Mapping[str, Tensor] | None = None,
    evaluate: Any = None,
    checkpoint: str | Path | None = None,
    accelerator: Any = None,
    observer: Observer | None = None,
    progress: bool = False,
    **settings: Any,
) -> FineTuneResult:
    """Train all parameters of `model` **in place**, on its own device; it is in eval mode afterwards.

    train: batches of (images, labels) in an iterable of known length, such as a DataLoader, read once an epoch; or a
        training set of `amc.zoo`, which shuffles and augments by itself in batches of `batch_size`.
    teacher: the dense network, on the same device; needed for the setting `distill` alone.
    masks: `result.masks` of a masked network. The other weights are set to zero and stay zero.
    evaluate: as in `compress`, a function or a labelled loader; it scores the network after each epoch. `score` (in
        settings) is what a loader is scored by, top-1 by default. The score chooses nothing: the last epoch is the
        result.
    checkpoint: a file that is written while the training runs. If it exists, the training resumes from it, and
        everything else must be as at the start.
    accelerator: an `accelerate.Accelerator`, to train in several processes (see `amc.recovery.finetune`).
    observer, progress: as in `compress`.
    settings: fields of `FineTuneConfig`: epochs, lr, optimiser, distill, and so on.

    Raises AmcError for unusable arguments and EvaluationError where `evaluate` fails. If a loss, a weight or a score is
    no longer finite, raises AmcError, and the network is that of the last good epoch.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    >>> train = [(torch.randn(8, 1, 6, 6), torch.randint(3, (8,))) for _ in range(4)]
    >>> tuned = amc.finetune(net, train, evaluate=train, epochs=2, lr=0.01)
    >>> len(tuned.epochs), tuned.model is net
    (2, True)
    >>> amc.finetune(net, train, lrr=0.01)
    Traceback (most recent call last):
    amc.errors.AmcError: unknown setting 'lrr'; did you mean 'lr'?
    """
    kind = get_score(settings.pop("score", DEFAULT))
    config = from_keywords(FineTuneConfig, settings)
    score = None if evaluate is None else as_evaluator(evaluate, score=kind.name)
    main = accelerator is None or accelerator.is_main_process
    with listening(observer, progress=progress and main) as watch:

        def on_epoch(epoch: EpochRecord) -> float | None:
            value = None if score is None else score_of(score, model, "fine-tuned")
            watch.epoch(epoch, None if value is None else kind.named(value))
            return value

        slow = slow_bfloat16(device_of(model)) if config.precision == "bfloat16" else None
        if slow:
            watch.warning(slow)
        watch.job_settings("finetune", asdict(config))
        watch.stage("fine-tuning")
        return recovery.finetune(
            model,
            train,
            config,
            teacher=teacher,
            masks=masks,
            checkpoint=checkpoint,
            checkpoint_every=SessionConfig().checkpoint_every,
            accelerator=accelerator,
            on_step=watch.training_step,
            on_epoch=on_epoch,
        )
