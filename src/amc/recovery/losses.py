"""The loss that fine-tuning minimises."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.errors import EvaluationError
from amc.run.settings import FineTuneConfig
from amc.structure.modes import evaluating
from amc.structure.outputs import output_of

OWN_LOOP = "fine-tune the network of amc.load_run in your own loop"


class Loss:
    """Smoothed cross-entropy, mixed with the distance to the teacher (Hinton et al., arXiv 1503.02531)."""

    def __init__(self, config: FineTuneConfig, teacher: nn.Module | None) -> None:
        self.config = config
        self.teacher = teacher if config.distill > 0 else None

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Mean over the batch; images [B, ...], labels [B]."""
        config = self.config
        logits = _logits(model(images), labels)
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        if self.teacher is None:
            return loss
        with torch.no_grad(), evaluating(self.teacher):
            target = _logits(self.teacher(images), labels)
        divergence = F.kl_div(
            (logits / config.temperature).log_softmax(dim=1),
            (target / config.temperature).log_softmax(dim=1),
            log_target=True,
            reduction="batchmean",
        )
        # The factor T^2 makes the gradient's size independent of the temperature (section 2 of the paper).
        return (1 - config.distill) * loss + config.distill * config.temperature**2 * divergence


def _logits(output: Any, labels: Tensor) -> Tensor:
    """Logits [B, classes, ...] of a network's output, in float32. Raises EvaluationError if labels do not fit them."""
    logits = output_of(output, OWN_LOOP)
    fitting = [(*logits.shape[:1], *logits.shape[2:]), *([logits.shape] if labels.is_floating_point() else [])]
    if logits.ndim < 2 or labels.shape not in fitting:
        raise EvaluationError(
            f"the network gives {list(logits.shape)} for labels {list(labels.shape)}, and fine-tuning needs logits "
            f"[images, classes] and class numbers [images]; {OWN_LOOP}"
        )
    return logits.float()
