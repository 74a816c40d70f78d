"""Weights that compensate for masked ones: least output error under a fixed mask, row by row.

With G = XᵀX of the layer's input patches, a row w of the dense weight and its mask, the best row u that is zero
outside the mask minimises (u - w) G (u - w)ᵀ: on the kept columns S it solves G[S,S] u_S = (G w)_S. This is the
optimal-brain-surgeon update (Hassibi and Stork, 1993) for all removed weights at once. Every row has its own S, so
one factorisation cannot serve all rows, as it does for channels (`reconstruction`). Conjugate gradients can: each
iteration is one matrix product for all rows. A row's error falls with every iteration, so stopping early is safe:
about 25 iterations come within 1% of the least error. Matrices are [groups, outputs per group, n], as in `masks`.
Memory: about 8 times the weight in double precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-3  # stop once an iteration removes less than this share of the remaining error
MAX_ITERATIONS = 300
EXHAUSTED = 1e-24  # of a row's first squared residual: the limit of double precision


def compensate(
    weight: Tensor, mask: Tensor, gram: Tensor, *, tolerance: float = TOLERANCE, max_iterations: int = MAX_ITERATIONS
) -> Tensor:
    """The weight, zero outside `mask`, whose output on the calibration data is closest to the dense weight's.

    `weight` and `mask` [O, I/groups, kernel...], True = kept; `gram` [groups, n, n], damped, in double precision.
    Returns shape, type and device of `weight`. No row has a larger error than the masked dense row. With tolerance 0
    the iterations go on to double precision, or to `max_iterations`.
    """
    groups, n = gram.shape[0], gram.shape[-1]
    dense = weight.detach().to(gram).reshape(groups, -1, n)
    kept = mask.to(gram).reshape(groups, -1, n)
    masked = dense * kept
    lost = dense - masked
    reach = lost @ gram
    start = (lost * reach).sum(-1, keepdim=True)  # [groups, outputs, 1]: squared error of masking alone
    change = _conjugate_gradients(reach * kept, kept, gram, float(start.sum()), tolerance, max_iterations)
    rest = lost - change
    better = (rest * (rest @ gram)).sum(-1, keepdim=True) <= start  # rounding must not make a row worse
    return torch.where(better, masked + change, masked).reshape(weight.shape).to(weight)


def _conjugate_gradients(
    residual: Tensor, kept: Tensor, gram: Tensor, error: float, tolerance: float, max_iterations: int
) -> Tensor:
    """x, zero outside `kept`, with x G = `residual` on `kept`; each row has its own steps. `error`: that of x = 0.

    Jacobi preconditioning: low-rank and inverse-Gram preconditioners saved fewer iterations than they cost.
    """
    scale = gram.diagonal(dim1=-2, dim2=-1)[:, None].clamp_min(torch.finfo(gram.dtype).tiny)
    inverse = kept / scale
    solution = torch.zeros_like(residual)
    direction = residual * inverse
    energy = (residual * direction).sum(-1, keepdim=True)
    exhausted = energy * EXHAUSTED
    for _ in range(max_iterations):
        if not bool((energy > exhausted).any()):
            break
        image = (direction @ gram) * kept
        step = _ratio(energy, (direction * image).sum(-1, keepdim=True))
        solution += step * direction
        residual = residual - step * image
        gain = float((step * energy).sum())  # the objective falls by exactly this
        error = max(0.0, error - gain)
        if gain <= tolerance * error:
            break
        ready = residual * inverse
        before, energy = energy, (residual * ready).sum(-1, keepdim=True)
        direction = ready + _ratio(energy, before) * direction
    return solution


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, 0 where b is not positive: a finished row, or a row that no input reaches, does not change."""
    return torch.where(b > 0, a / b, 0)
