"""The optimiser and its learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from amc.run.settings import FineTuneConfig


def learning_rate(step: int, total_steps: int, config: FineTuneConfig) -> float:
    """The rate at `step`, 1 to `total_steps`: linear warm-up, then cosine decay (arXiv 1608.03983)."""
    warm = round(config.warmup * total_steps)
    if step <= warm:
        return config.peak_lr * step / warm
    return config.peak_lr * 0.5 * (1 + math.cos(math.pi * (step - warm - 1) / (total_steps - warm)))


def make_optimiser(model: nn.Module, config: FineTuneConfig) -> torch.optim.Optimizer:
    """Nesterov's SGD or AdamW (arXiv 1711.05101) over all parameters, with weight decay on weights only."""
    # Batch norms and biases are not decayed: the pruned network still needs their scale.
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [
        {"params": weights, "weight_decay": config.decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if config.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=config.peak_lr, betas=(config.momentum, 0.999))
    return torch.optim.SGD(groups, lr=config.peak_lr, momentum=config.momentum, nesterov=config.momentum > 0)
