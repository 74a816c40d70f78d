"""A network's outputs and the labels of a batch, side by side: their shapes decide their meaning.

A pair that has several meanings, or none, is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amc.errors import EvaluationError, NotFiniteError

OWN = "or pass a function module -> float as evaluate"


def classes_of(outputs: Tensor) -> int | None:
    """The number of classes of logits [N, C]; two for a single logit per image; None for other outputs."""
    if outputs.ndim == 1 or (outputs.ndim == 2 and outputs.shape[1] == 1):
        return 2
    return outputs.shape[1] if outputs.ndim == 2 else None


def one_class_each(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [N, C], or [N] for a single logit, and class numbers [N]."""
    logits, wanted = aligned(outputs, labels)
    if wanted.ndim == 1:
        return logits, wanted
    if not one_hot(wanted):
        raise EvaluationError(
            f"labels {list(labels.shape)} give an image several classes or none, so that no single answer is right; "
            f"choose score macro-f1 or auroc, {OWN}"
        )
    return logits, wanted.argmax(1)


def aligned(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [N, C], or [N] for a single logit, and labels: class numbers [N], or 0 and 1 [N, C].

    Raises EvaluationError if logits are NaN or labels do not fit them.
    """
    images = len(labels)
    outputs = outputs.reshape(1) if outputs.ndim == 0 and images == 1 else outputs
    if outputs.ndim > 2 and labels.shape == (*outputs.shape[:1], *outputs.shape[2:]):
        raise EvaluationError(
            f"the network gives {list(outputs.shape)} for labels {list(labels.shape)}, a class for every pixel or "
            f"place; choose score miou, {OWN}"
        )
    if outputs.ndim not in (1, 2) or len(outputs) != images or not outputs.is_floating_point():
        kind = "" if outputs.is_floating_point() else f" {str(outputs.dtype).removeprefix('torch.')}"
        raise EvaluationError(
            f"the network gives{kind} {list(outputs.shape)} for {images} images, not logits [{images}, classes]; "
            "pass a function module -> float as evaluate"
        )
    refuse_nan(outputs)
    logits = outputs[:, 0] if outputs.ndim == 2 and outputs.shape[1] == 1 else outputs
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim == 1:
        if labels.dtype == torch.bool and class_count(logits) > 2:
            raise EvaluationError(
                f"labels are true or false, and the network has {class_count(logits)} classes; give class numbers"
            )
        classes = whole_numbers(labels)
        check_range(classes, class_count(logits))
        return logits, classes
    if labels.shape != logits.shape:
        raise EvaluationError(
            f"labels {list(labels.shape)} do not belong to logits {list(outputs.shape)}; give class numbers [N], or 0 "
            "and 1 for every class [N, classes]"
        )
    hot = whole_numbers(labels)
    if not ((hot == 0) | (hot == 1)).all():
        raise EvaluationError(f"labels {list(labels.shape)} are not all 0 or 1; give class numbers [N] instead")
    return logits, hot


def class_count(logits: Tensor) -> int:
    return logits.shape[1] if logits.ndim == 2 else 2


def whole_numbers(labels: Tensor) -> Tensor:
    """Labels as int64. Raises EvaluationError for fractions: they are not class numbers."""
    if labels.is_complex():
        raise EvaluationError("labels are complex; give class numbers")
    whole = labels.long()
    if labels.is_floating_point() and not torch.equal(whole.to(labels.dtype), labels):
        odd = labels[whole.to(labels.dtype) != labels].flatten()[0]
        raise EvaluationError(
            f"a label is {float(odd):g}, which is no class; give class numbers, or choose score mse for a regression"
        )
    return whole


def check_range(classes: Tensor, count: int) -> None:
    outside = classes[(classes < 0) | (classes >= count)]
    if outside.numel():
        raise EvaluationError(
            f"label {int(outside.flatten()[0])} is out of range: the network has classes 0 to {count - 1}; "
            "count classes from 0, and leave out images without a class"
        )


def refuse_nan(outputs: Tensor) -> None:
    if outputs.isnan().any():
        raise NotFiniteError("the network's logits are NaN; check its weights and the normalisation of the images")


def refuse_probabilities(least: Tensor, most: Tensor) -> None:
    """Raise EvaluationError if all outputs are in [0, 1] and differ: a sigmoid's outputs are never below zero."""
    if 0 <= float(least) < float(most) <= 1:
        raise EvaluationError(
            "the network's outputs all lie in [0, 1]: they look like probabilities, and a single logit is compared "
            "with 0; leave out the last sigmoid, or pass a function module -> float as evaluate"
        )


def one_hot(labels: Tensor) -> bool:
    return bool((labels.sum(1) == 1).all())
