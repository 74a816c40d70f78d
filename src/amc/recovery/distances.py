"""How far a pruned network's outputs are from the dense network's: the loss of a recovery without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from amc.errors import AmcError, ModelError, ResourceError, explained

TEMPERATURE = 4.0  # of the classes: the dense network's view of unlikely ones teaches too, worth 1 to 2 points

_LEAST_PROBABILITY = 1e-6

DistillLoss = Callable[[Any, Any], Tensor]
"""The pruned network's outputs and the dense network's, as the networks return them -> a scalar to minimise."""


class DistillLossError(AmcError):
    """The user's loss fails or cannot be minimised."""


_GETS = "it gets the pruned network's outputs and the dense network's, as the networks return them"
_RETURNS = "return a scalar tensor that torch's functions make of the first argument, the pruned network's outputs"


@dataclass(frozen=True, slots=True)
class OutputDistance:
    """The distance of two networks' outputs, summed over the tensors in them.

    `classes`: dimension 1 of an output holds the logits or the probabilities of classes. The distance is then the KL
    divergence at a temperature T, times T² (Hinton et al., arXiv 1503.02531), the mean over all other dimensions.
    Otherwise it is the mean squared error, divided by the variance of the dense network's outputs: 1 is as good as a
    constant.
    """

    classes: bool
    variances: tuple[float, ...]  # of the tensors in the dense network's outputs
    probabilities: tuple[bool, ...]  # whether they are that, and no logits

    @classmethod
    def of(cls, targets: Sequence[Any], *, classes: bool) -> OutputDistance:
        """targets: outputs of the dense network, one for each batch."""
        columns = list(zip(*(output_tensors(target) for target in targets), strict=True))
        variances, probabilities = map(_variance, columns), (all(map(_are_probabilities, column)) for column in columns)
        return cls(classes, tuple(variances), tuple(probabilities))

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """Scalar. Raises ModelError where the outputs do not fit together, or hold no numbers."""
        ours, theirs = output_tensors(outputs), output_tensors(targets)
        if not theirs:
            raise ModelError("the network's outputs hold no tensor of real numbers")
        shapes, wanted = ([list(tensor.shape) for tensor in tensors] for tensors in (ours, theirs))
        if shapes != wanted or len(theirs) != len(self.variances):
            raise ModelError(
                f"its outputs have the shapes {shapes}, and the dense network's {wanted}; give a distill_loss"
            )
        kinds = zip(ours, theirs, self.variances, self.probabilities, strict=True)
        return torch.stack([self._part(*kind) for kind in kinds]).sum()

    def _part(self, output: Tensor, target: Tensor, variance: float, probabilities: bool) -> Tensor:
        output, target = output.float(), target.float()
        if self.classes and _has_classes(target):
            if probabilities:
                output, target = (each.clamp_min(_LEAST_PROBABILITY).log() for each in (output, target))
            ours, theirs = ((logits / TEMPERATURE).log_softmax(1) for logits in (output, target))
            divergence = F.kl_div(ours, theirs, log_target=True, reduction="none")
            return TEMPERATURE**2 * divergence.sum(1).mean()
        return F.mse_loss(output, target) / variance


def output_tensors(outputs: Any) -> tuple[Tensor, ...]:
    """The tensors of numbers in a network's outputs, in order; a complex one as pairs of real numbers.

    Whole numbers, such as the class that a network has chosen, teach nothing and are left out.
    """
    return tuple(
        torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf
        for leaf in _leaves(outputs)
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()) and leaf.numel()
    )


@dataclass(frozen=True, slots=True)
class CheckedLoss:
    """A loss of the user's, after it was tried on outputs of the dense network."""

    loss: DistillLoss

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        return self.loss(outputs, targets)


def checked_distill_loss(loss: DistillLoss, outputs: Any, targets: Any) -> CheckedLoss:
    """Try the user's loss on outputs of the dense network: `outputs` in the place of the pruned network's.

    The tensors in `outputs` get gradients. Raises DistillLossError if the loss fails or cannot be minimised.
    """
    for tensor in _leaves(outputs):
        if isinstance(tensor, Tensor) and (tensor.is_floating_point() or tensor.is_complex()):
            tensor.requires_grad_(True)
    what = "distill_loss fails on the dense network's outputs"
    with explained(DistillLossError, what, _GETS, passing=ResourceError), torch.enable_grad():
        value = loss(outputs, targets)
    problem = _problem(value)
    if problem:
        raise DistillLossError(f"distill_loss returns {problem}; {_RETURNS}")
    return CheckedLoss(loss)


def _problem(value: Any) -> str:
    """What is wrong with a loss; empty if nothing is."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.numel() != 1:
        return f"a tensor {list(value.shape)}"
    if not value.is_floating_point():
        return f"a tensor of {str(value.dtype).removeprefix('torch.')}"
    if not value.requires_grad:
        return "a tensor without a gradient"
    number = float(value.detach())
    return "" if math.isfinite(number) else f"{number} for two equal outputs"


def _variance(tensors: Sequence[Tensor]) -> float:
    """Of all their numbers; 1 where they are all the same, so that the distance is the plain squared error."""
    numbers = torch.cat([tensor.detach().double().flatten() for tensor in tensors])
    return float(numbers.var(correction=0)) or 1.0


def _has_classes(tensor: Tensor) -> bool:
    return tensor.ndim > 1 and tensor.shape[1] > 1


def _are_probabilities(tensor: Tensor) -> bool:
    """Whether the numbers along dimension 1 are at least 0 and sum to 1."""
    return _has_classes(tensor) and bool((tensor >= 0).all() and ((tensor.double().sum(1) - 1).abs() < 1e-2).all())


def _leaves(outputs: Any) -> Iterator[Any]:
    """The parts of nested outputs, those of dataclasses too, which torch does not open by itself."""
    for leaf in tree_leaves(outputs):
        if is_dataclass(leaf) and not isinstance(leaf, type):
            for part in fields(leaf):
                yield from _leaves(getattr(leaf, part.name))
        elif isinstance(leaf, Mapping):  # of a type that torch does not know
            for part in leaf.values():
                yield from _leaves(part)
        else:
            yield leaf
