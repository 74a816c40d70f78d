"""Least-squares weights of a pruned layer, for every keep count from one factorisation.

For a keep set S the best weights are G[S,S]⁻¹ G[S,:] W. With one fixed ranking the keep sets are nested, so
the leading blocks of one Cholesky factor of the reordered G serve them all: with L Lᵀ = G (reordered) and
Z = L⁻¹ (G W), the weights for the first m columns are L[:m,:m]⁻ᵀ Z[:m], and the squared error left is
‖Z‖² - ‖Z[:m]‖². A layer read by several groups has no single nesting and is solved for each keep set.

Memory: 8 n (n + outputs) bytes a layer, and a bounded cache of solutions.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from amc.pruning.ranking import Order
from amc.structure import Layer
from amc.structure.structure import Slots

DAMPING = 1e-4  # of the mean diagonal: keeps G invertible and small weights small
CACHE_BYTES = 256 << 20  # of solutions, over all layers


def as_filters(weight: Tensor, layer: Layer) -> Tensor:
    """A layer's weight, however it is stored, as [O, I/groups, kernel...]."""
    return weight.permute(layer.order).reshape(layer.filters)


def as_stored(filters: Tensor, layer: Layer, shape: Sequence[int]) -> Tensor:
    """The inverse of `as_filters`: [O, I/groups, kernel...] as a weight of this shape."""
    places = [layer.order.index(dim) for dim in range(len(shape))]
    weight = filters.reshape([shape[dim] for dim in layer.order]).permute(places)
    return weight if places == sorted(places) else weight.contiguous()


def flat_weight(weight: Tensor, layer: Layer) -> Tensor:
    """[groups, I/groups * kernel, O/groups] in double precision."""
    filters = as_filters(weight.detach().double().cpu(), layer)
    return filters.reshape(layer.groups, filters.shape[0] // layer.groups, -1).mT.contiguous()


def damp(gram: Tensor, damping: float = DAMPING) -> Tensor:
    """Add `damping` times the mean diagonal, or more if the matrix stays singular.

    Damping G on both sides of the normal equations pulls the solution towards the dense weights.
    """
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-12)[:, None, None]
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
    while True:
        damped = gram + damping * scale * eye
        if int(torch.linalg.cholesky_ex(damped).info.abs().max()) == 0:
            return damped
        damping *= 10


class LayerFit:
    """Refitted weights of one layer. `gram` [groups, n, n] is damped; `weight` [groups, n, outputs]."""

    def __init__(self, layer: Layer, gram: Tensor, weight: Tensor, position_order: Order | None) -> None:
        self.layer = layer
        self.kernel = math.prod(layer.kernel)
        self.order = position_order
        self.target = gram @ weight
        self.gram = gram
        self.energy = float((weight * self.target).sum())
        if position_order is not None:
            columns = self._columns(position_order)
            self.factor = torch.linalg.cholesky(gram[:, columns[:, None], columns])
            self.rhs = torch.linalg.solve_triangular(self.factor, self.target[:, columns], upper=False)
            self.gram = self.target = torch.empty(0)  # only the factor is needed

    def weights(self, kept: Slots) -> Tensor:
        """Weights for these input positions (ascending): [O, kept, kernel...] in double precision."""
        if self.order is None:
            columns = self._columns(kept)
            part = self.gram[:, columns[:, None], columns]
            solution = torch.linalg.solve(part, self.target[:, columns])
        else:
            m = kept.size * self.kernel
            upper = self.factor[:, :m, :m].mT
            ranked = torch.linalg.solve_triangular(upper, self.rhs[:, :m], upper=True)
            back = torch.from_numpy(np.argsort(self.order[: kept.size], kind="stable"))
            solution = ranked.unflatten(1, (kept.size, self.kernel))[:, back].flatten(1, 2)
        outputs: Tensor = solution.mT.reshape(-1, kept.size, *self.layer.kernel)
        return outputs.contiguous()

    def relative_errors(self) -> Tensor:
        """[positions + 1]: squared error with the first 0, 1, 2 … positions, as a share of the output's energy.

        Only for a layer with one ranking.
        """
        gained = self.rhs.square().sum((0, 2)).unflatten(0, (-1, self.kernel)).sum(1).cumsum(0)
        left = 1 - torch.cat([torch.zeros(1, dtype=torch.float64), gained]) / max(self.energy, 1e-30)
        return left.clamp_min(0)

    def _columns(self, positions: Slots | Order) -> Tensor:
        places = np.asarray(positions)[:, None] * self.kernel + np.arange(self.kernel)
        return torch.from_numpy(places.reshape(-1))


class SolutionCache:
    """The most recently used refitted weights, single precision, bounded in bytes."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit, self.held = limit, 0
        self._entries: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable, solve: Callable[[], Tensor]) -> Tensor:
        """The solution of this key; calls `solve()` for a new key."""
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        value = solve()
        self._entries[key] = value
        self.held += value.numel() * 4
        while self.held > self.limit and len(self._entries) > 1:
            _, old = self._entries.popitem(last=False)
            self.held -= old.numel() * 4
        return value
