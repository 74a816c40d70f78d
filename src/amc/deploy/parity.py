"""Whether a file computes what the network computes.

The error of an output is its largest absolute difference from PyTorch's, over the largest absolute value of
PyTorch's. In 32 bits runtimes reorder sums and fuse layers, which costs about 1e-6 here; a wrong operator costs 1e-2
and more, so the limits below lie well between the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from amc.deploy.failures import find_operator
from amc.deploy.quiet import silenced
from amc.deploy.runtimes.base import Session
from amc.deploy.tensors import Tensors, expected
from amc.errors import AmcError, ModelError
from amc.judging import message_of

Cases = Mapping[str, Tensors]  # what the inputs are -> inputs

TOLERANCE = 1e-3
TOLERANCE_HALF = 3e-2  # ten bits of mantissa, through as many layers as networks have


class ParityError(AmcError):
    """A file does not compute what the network computes."""


def check(
    module: nn.Module, session: Session, cases: Cases, tolerance: float, *, loose: bool = False
) -> dict[str, float]:
    """The largest error of each case's outputs; ParityError where one is above `tolerance` or cannot be had.

    `loose`: shapes are compared without dimensions of one, for formats that know no batch.
    """
    errors = {}
    for name, inputs in cases.items():
        wanted = _reference(module, name, inputs)
        with silenced() as said:
            try:
                given = session.run(inputs)
            except Exception as error:  # a runtime raises whatever it likes
                culprit = find_operator(f"{error} {said()}")
                by = f" in operator {culprit}" if culprit else ""
                raise ParityError(f"the file fails on {name} inputs{by}: {message_of(error)}") from error
        if _shapes(wanted, loose) != _shapes(given, loose):
            shown = [" and ".join(str(list(value.shape)) for value in values) for values in (given, wanted)]
            raise ParityError(f"the file gives {shown[0]} on {name} inputs, where the network gives {shown[1]}")
        errors[name] = difference(wanted, given)
        if not errors[name] <= tolerance:
            raise ParityError(
                f"the file differs from the network by {errors[name]:.1e} of its largest output on {name} inputs, "
                f"where {tolerance:.0e} is allowed"
            )
    return errors


def _reference(module: nn.Module, name: str, inputs: Tensors) -> Tensors:
    try:
        wanted = expected(module, inputs)
    except AmcError:
        raise
    except Exception as error:  # the user's forward
        raise ParityError(f"the network itself fails on {name} inputs: {message_of(error)}") from error
    if not all(bool(value.isfinite().all()) for value in wanted if value.is_floating_point()):
        raise ModelError(f"the network's own output on {name} inputs is not finite; check its weights")
    return wanted


def difference(wanted: Tensors, given: Tensors) -> float:
    """Largest error over all outputs, as the module defines it; infinite where a given one is NaN."""
    return max((_error(*pair) for pair in zip(wanted, given, strict=True)), default=0.0)


def _shapes(values: Tensors, loose: bool) -> list[tuple[int, ...]]:
    return [tuple(size for size in value.shape if size != 1 or not loose) for value in values]


def _error(wanted: torch.Tensor, given: torch.Tensor) -> float:
    reference, other = wanted.double().flatten(), given.double().flatten()
    gap = float((reference - other).abs().max()) if reference.numel() else 0.0
    if math.isnan(gap):
        return math.inf
    scale = float(reference.abs().max()) if reference.numel() else 0.0
    return gap / scale if scale > 0 else gap
