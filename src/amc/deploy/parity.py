"""Checks that a file computes the same outputs as the network.

The error of an output is its largest absolute difference from PyTorch's output, over the largest absolute value of
PyTorch's output. In 32 bits, runtimes reorder sums and fuse layers, which causes errors of about 1e-6. A wrong operator
causes an error of 1e-2 or more. The limits below are well between the two.
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
from amc.errors import AmcError, ModelError, message_of

Cases = Mapping[str, Tensors]  # name of the inputs -> inputs

TOLERANCE = 1e-3
TOLERANCE_HALF = 3e-2  # 16-bit floats have ten bits of mantissa, and errors add up over the layers


class ParityError(AmcError):
    """A file does not compute the same outputs as the network."""


def check(
    module: nn.Module, session: Session, cases: Cases, tolerance: float, *, loose: bool = False
) -> dict[str, float]:
    """The largest error of each case's outputs; ParityError if one exceeds `tolerance`, or if the file fails to run.

    loose: ignore dimensions of size one when shapes are compared, for formats without a batch dimension.
    """
    errors = {}
    for name, inputs in cases.items():
        wanted = _reference(module, name, inputs)
        with silenced() as printed:
            try:
                given = session.run(inputs)
            except Exception as error:  # runtimes raise exceptions of any type
                operator = find_operator(f"{error} {printed()}")
                where = f" in operator {operator}" if operator else ""
                raise ParityError(f"the file fails on {name} inputs{where}: {message_of(error)}") from error
        if _shapes(wanted, loose) != _shapes(given, loose):
            shown = [" and ".join(str(list(value.shape)) for value in values) for values in (given, wanted)]
            raise ParityError(f"the file gives {shown[0]} on {name} inputs, where the network gives {shown[1]}")
        errors[name] = difference(wanted, given)
        if not errors[name] <= tolerance:
            raise ParityError(
                f"the file differs from the network by {errors[name]:.1e} of its largest output on {name} inputs, "
                f"more than the allowed {tolerance:.0e}"
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
    """Largest error over all outputs, as defined above; infinite if a given output contains NaN."""
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
