"""The latency of a policy, computed from a table; the search uses it for its budget and its reward. Pure numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amc.deploy.table.grid import FloatArray
from amc.deploy.table.plan import Key, Plan

_PICO = 1e9  # picoseconds per millisecond; costs are summed as integers
_LEAST_SHARE = 0.02  # least predicted share of the dense latency; a linear model may predict less, far from its data


# Shares of the dense network's weights at which the cost of a weight may rise. Weights are free while all of them fit
# into a cache; every call must read the others from memory.
_KNOTS = np.arange(10) / 10


@dataclass(frozen=True)
class Correction:
    """Predicts a whole network's latency from the table's sums.

    The prediction starts at the dense network's latency. It is reduced in proportion to the ms that the blocks save and
    to the values that the layers no longer write. It is also reduced for the weights that they no longer read: latency
    is a convex function of the number of weights, because a block alone finds its weights in the nearest cache, but a
    network does so only if all its weights fit. No slope is negative, so latency never falls when a layer grows. The
    prediction is exact for the dense network, because relative budgets refer to it.
    """

    dense_ms: float
    dense: FloatArray  # [3], the dense network's sums from `BlockSums`
    slopes: FloatArray  # ms per ms of blocks, per million values written, per million weights beyond each knot

    def at(self, sums: FloatArray) -> FloatArray:
        """Sums [..., 3] -> latency [...] in ms."""
        drops = _features(self.dense, self.dense) - _features(sums, self.dense)
        latency = np.full(sums.shape[:-1], self.dense_ms)
        for slope, drop in zip(self.slopes, np.moveaxis(drops, -1, 0), strict=True):
            latency -= slope * drop  # not a matrix product: its rounding depends on the batch size
        return latency


class BlockSums:
    """A policy's latency, written values and weights, each summed over its layers.

    Latencies are summed exactly, in whole picoseconds, so a policy's cost does not depend on the rest of its batch.
    """

    def __init__(self, plan: Plan, times: Mapping[Key, float]) -> None:
        sides = [(layer.spec.inputs, layer.inputs) for layer in plan.layers]
        sides += [(layer.spec.outputs, layer.outputs) for layer in plan.layers]
        self._fixed = np.array([width.fixed for width, _ in sides], dtype=np.float64)
        self._per_channel = np.array([width.per_channel for width, _ in sides], dtype=np.float64).T
        self._low = np.array([axis.low for _, axis in sides], dtype=np.float64)
        self._spacing = np.array([axis.spacing for _, axis in sides], dtype=np.float64)
        self._last = np.array([len(axis.widths) - 1 for _, axis in sides], dtype=np.int64)
        tables = plan.tables(times)
        starts: dict[int, int] = {}
        parts: list[FloatArray] = []
        for table in tables:
            if id(table) not in starts:
                starts[id(table)] = sum(map(len, parts))
                parts.append(np.rint(table.ravel() * _PICO))
        self._times = np.concatenate(parts)
        self._starts = np.array([starts[id(table)] for table in tables], dtype=np.int64)
        self._columns = np.array([table.shape[1] for table in tables], dtype=np.int64)
        positions = np.array([layer.spec.positions for layer in plan.layers], dtype=np.float64)
        outputs = [layer.spec.outputs for layer in plan.layers]
        self._writes = positions @ np.array([width.per_channel for width in outputs], dtype=np.float64)
        self._writes_fixed = float(positions @ np.array([width.fixed for width in outputs]))
        self._kernels = np.array([layer.spec.block.kernel_area for layer in plan.layers], dtype=np.float64)
        per_group = [layer.spec.block.per_group for layer in plan.layers]
        self._reads = np.array([entry[0] if entry else 0 for entry in per_group], dtype=np.float64)
        self._groups = np.array([layer.spec.block.groups for layer in plan.layers], dtype=np.float64)

    def __call__(self, keep_counts: npt.ArrayLike) -> FloatArray:
        """Keep counts [..., G] -> [..., 3]: ms of all blocks, millions of values written, millions of weights read."""
        counts = np.asarray(keep_counts, dtype=np.float64)
        widths = counts @ self._per_channel + self._fixed
        indices = np.ceil((widths - self._low) / self._spacing).astype(np.int64)
        indices = np.clip(indices, 0, self._last)
        layers = len(self._starts)
        flat = self._starts + indices[..., :layers] * self._columns + indices[..., layers:]
        inputs, outputs = widths[..., :layers], widths[..., layers:]
        read = np.where(self._reads > 0, self._reads, np.floor(inputs / self._groups))  # inputs of one output
        weights = (self._kernels * read * outputs).sum(axis=-1)
        writes = counts @ self._writes + self._writes_fixed
        return np.stack([self._times[flat].sum(axis=-1) / _PICO, writes / 1e6, weights / 1e6], axis=-1)


class LatencyCost:
    """A `CostFunction` in ms; the latency never falls when a keep count rises."""

    def __init__(self, sums: BlockSums, correction: Correction) -> None:
        self.sums, self.correction = sums, correction

    def __call__(self, keep_counts: npt.NDArray[np.int64], /) -> FloatArray:
        """Keep counts [..., G] -> latency [...] in ms."""
        line = self.correction.at(self.sums(keep_counts))
        return np.maximum(line, _LEAST_SHARE * self.correction.dense_ms)


def fit(sums: FloatArray, measured_ms: FloatArray) -> Correction:
    """Fit the correction to the sums [n, 3] and latencies [n] of whole networks; the dense network comes first.

    Minimises the squared relative errors over nonnegative slopes. Raises ValueError if the measured latencies do not
    follow the table.
    """
    from scipy.optimize import nnls  # here: only a search for latency needs it, and it takes a fifth of a second

    features = _features(sums, sums[0])
    weights, scale = 1 / measured_ms[1:], np.maximum(features[0], 1e-12)
    drops = (features[0] - features[1:]) / scale
    slopes, _ = nnls(drops * weights[:, None], (measured_ms[0] - measured_ms[1:]) * weights)
    if not slopes.any():
        raise ValueError("smaller networks are no faster")
    return Correction(float(measured_ms[0]), sums[0], slopes / scale)


def held_out_errors(sums: FloatArray, measured_ms: FloatArray) -> FloatArray:
    """Leave-one-out relative errors [n - 1]: each network except the dense one is predicted from the others."""
    errors = []
    for index in range(1, len(measured_ms)):
        rest = np.delete(np.arange(len(measured_ms)), index)
        correction = fit(sums[rest], measured_ms[rest])
        errors.append(float(correction.at(sums[index])) / measured_ms[index] - 1)
    return np.array(errors)


def _features(sums: FloatArray, dense: FloatArray) -> FloatArray:
    """Sums [..., 3] -> features of the linear model: ms of blocks, values written, and weights beyond each knot."""
    beyond = np.maximum(0.0, sums[..., 2:] - _KNOTS * dense[2])
    return np.concatenate([sums[..., :2], beyond], axis=-1)
