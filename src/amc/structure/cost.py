"""What a policy costs, in closed form.

Every cost is a sum of products of dimension sizes, and every dimension size is an affine function of the
groups' keep counts. No forward pass is needed. Pure numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Metric = Literal["macs", "params", "memory"]
Term = tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class CostModel:
    """Dimension sizes and the terms made of them.

    `fixed` [D] and `per_channel` [D, G] give the size of each dimension: fixed + per_channel @ keep_counts, at most
    `most`.
    Each term is (factor, dimensions): factor times the product of these dimensions' sizes. A dimension among
    `vanishing` counts as zero if its size is one.
    """

    fixed: npt.NDArray[np.float64]
    per_channel: npt.NDArray[np.float64]
    most: npt.NDArray[np.float64]  # [D] the sizes in the dense network
    macs_terms: tuple[Term, ...]
    params_terms: tuple[Term, ...]
    macs_layers: tuple[int | None, ...]  # the layer of each macs term, None for an operator without one
    macs_places: tuple[tuple[str, str], ...] = ()  # module path and operator of each macs term
    vanishing: tuple[int, ...] = ()
    memory_terms: tuple[Term, ...] = ()  # bytes of each buffer of activations
    memory_moments: tuple[tuple[int, ...], ...] = ()  # the buffers that are alive at once

    def __call__(self, keep_counts: npt.ArrayLike, metric: Metric = "macs") -> npt.NDArray[np.float64]:
        """Cost of each row of `keep_counts` [..., G]: [...], exact integers (as float64) up to 2**53."""
        factors, dims = self._table(metric)
        if metric == "memory":
            moments = (self._products(keep_counts, dims) * factors) @ self._moments
            return np.asarray(moments.max(axis=-1, initial=0.0))
        result: npt.NDArray[np.float64] = self._products(keep_counts, dims) @ factors
        return result

    def macs(self, keep_counts: npt.ArrayLike) -> int:
        """Multiply-accumulates of the sliced network on the example input (the paper's FLOPs)."""
        return int(self(keep_counts, "macs"))

    def params(self, keep_counts: npt.ArrayLike) -> int:
        """Parameters of the sliced network."""
        return int(self(keep_counts, "params"))

    def memory(self, keep_counts: npt.ArrayLike) -> int:
        """Bytes of the activations that are alive at once, at most, on the example input.

        The inputs count, the weights do not; `amc.structure.liveness` says what shares memory. An upper bound where
        an activation holds some channels of a group and not the others; else exact.
        """
        return round(float(self(keep_counts, "memory")))

    def layer_macs(self, keep_counts: npt.ArrayLike, layers: int) -> npt.NDArray[np.float64]:
        """Multiply-accumulates of each of the `layers` layers: [layers]."""
        factors, dims = self._macs
        values = self._products(keep_counts, dims) * factors
        out = np.zeros(layers)
        for layer, value in zip(self.macs_layers, values, strict=True):
            if layer is not None:
                out[layer] += value
        return out

    def module_macs(self, keep_counts: npt.ArrayLike) -> dict[str, dict[str, int]]:
        """Multiply-accumulates by the path of the module that calls the operator, and by operator."""
        factors, dims = self._macs
        by_module: dict[str, dict[str, int]] = {}
        values = self._products(keep_counts, dims) * factors
        for (module, operator), value in zip(self.macs_places, values, strict=True):
            operators = by_module.setdefault(module, {})
            operators[operator] = operators.get(operator, 0) + int(value)
        return by_module

    def shrinking(self, keep_counts: npt.ArrayLike, metric: Metric = "macs") -> float:
        """Share of the cost in terms that depend on any keep count, in [0, 1]."""
        factors, dims = self._table(metric)
        values = self._products(keep_counts, dims) * factors
        depends = np.append(self.per_channel.any(axis=1), False)[dims].any(axis=-1)
        return float(values[depends].sum() / max(1.0, values.sum()))

    def _table(self, metric: Metric) -> tuple[npt.NDArray[np.float64], Counts]:
        return {"macs": self._macs, "params": self._params, "memory": self._memory}[metric]

    def _products(self, keep_counts: npt.ArrayLike, dims: Counts) -> npt.NDArray[np.float64]:
        sizes = np.minimum(np.asarray(keep_counts, dtype=np.float64) @ self.per_channel.T + self.fixed, self.most)
        for dim in self.vanishing:
            sizes[..., dim] *= sizes[..., dim] != 1
        ones = np.ones((*sizes.shape[:-1], 1))
        padded = np.concatenate([sizes, ones], axis=-1)
        result: npt.NDArray[np.float64] = padded[..., dims].prod(axis=-1)
        return result

    @cached_property
    def _macs(self) -> tuple[npt.NDArray[np.float64], Counts]:
        return self._padded(self.macs_terms)

    @cached_property
    def _params(self) -> tuple[npt.NDArray[np.float64], Counts]:
        return self._padded(self.params_terms)

    @cached_property
    def _memory(self) -> tuple[npt.NDArray[np.float64], Counts]:
        return self._padded(self.memory_terms)

    @cached_property
    def _moments(self) -> npt.NDArray[np.float64]:
        """[buffers, moments]: 1 where a buffer is alive."""
        alive = np.zeros((len(self.memory_terms), len(self.memory_moments)))
        for moment, buffers in enumerate(self.memory_moments):
            alive[list(buffers), moment] = 1
        return alive

    def _padded(self, terms: tuple[Term, ...]) -> tuple[npt.NDArray[np.float64], Counts]:
        """Terms as arrays; index D stands for a dimension of size one."""
        width = max((len(dims) for _, dims in terms), default=0) or 1
        table = np.full((len(terms), width), self.fixed.size, dtype=np.int64)
        for row, (_, dims) in enumerate(terms):
            table[row, : len(dims)] = dims
        return np.array([factor for factor, _ in terms], dtype=np.float64), table
