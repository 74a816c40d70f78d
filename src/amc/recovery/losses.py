"""The loss that fine-tuning minimises."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.run.settings import FineTuneConfig
from amc.structure.modes import evaluating


class Loss:
    """Smoothed cross-entropy, mixed with the distance to the teacher (Hinton et al., arXiv 1503.02531)."""

    def __init__(self, config: FineTuneConfig, teacher: nn.Module | None) -> None:
        self.config = config
        self.teacher = teacher if config.distill > 0 else None

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Mean over the batch; images [B, ...], labels [B]."""
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
        # The factor T^2 makes the gradient's size independent of the temperature (section 2 of the paper).
        return (1 - config.distill) * loss + config.distill * config.temperature**2 * divergence
