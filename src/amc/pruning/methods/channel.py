"""Channel pruning: one decision for each group of tied channels, and a physically smaller network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from amc.errors import ModelError
from amc.pruning import Calibration, Pruner, reconstructible
from amc.pruning.methods.base import MethodOptions
from amc.pruning.ranking import Order
from amc.run.settings import MAX_SPARSITY
from amc.run.weights import file_overhead, pack
from amc.search import CostFunction, Decision, LayerFeatures, Metric
from amc.structure import (
    Certificate,
    Group,
    Layer,
    Structure,
    certify,
    check_counts,
    count_macs,
    count_params,
    inspect,
    restrict,
)
from amc.structure.declared import update_declared_sizes_
from amc.structure.structure import lock_groups

LEAST_CHOICES = 8  # rounding leaves a group at least this many keep counts
ROUND_TO = 8  # vector units are fastest on multiples of 8 channels
LOCKS_SHOWN = 2  # in the error if nothing can be pruned
NAME = "channel"


class ChannelMethod:
    """`Method` for whole channels, coarse-grained pruning in the paper's words."""

    name = NAME

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        options: MethodOptions,
        *,
        lock: tuple[str, ...] = (),
        only: tuple[str, ...] = (),
    ) -> None:
        self.model, self.options = model, options
        self.structure = structure = restrict(structure, lock=lock, only=only)
        if not structure.groups:
            raise ModelError(f"there is nothing to prune in {type(model).__name__}: {_reasons(structure)}")

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        return channel_decisions(self.structure, round_to=self.options.round_to, max_sparsity=self.options.max_sparsity)

    @cached_property
    def costs(self) -> Mapping[Metric, CostFunction]:
        return channel_costs(self.structure) | {Metric.SIZE: _stored_size(self.model, self.structure)}

    @property
    def optional_costs(self) -> Mapping[Metric, CostFunction]:
        return {Metric.MEMORY: lambda keep_counts: self.structure.cost(keep_counts, "memory")}

    @property
    def whole(self) -> Mapping[str, str]:
        return {item.name: str(item.lock) for item in self.structure.locked}

    def checked(
        self,
        example_input: Any,
        *,
        keep_sets: int,
        known: Certificate | None = None,
        on_check: Callable[[int, int], None] | None = None,
    ) -> tuple[ChannelMethod, Certificate | None]:
        if known is not None:
            return ChannelMethod(self.model, lock_groups(self.structure, dict(known.failed)), self.options), known
        if not keep_sets:
            check_counts(self.model, self.structure, example_input)
            return self, None
        structure, certificate = certify(
            self.model, self.structure, example_input, keep_sets=keep_sets, on_check=on_check
        )
        return ChannelMethod(self.model, structure, self.options), certificate

    def locked(self) -> list[dict[str, Any]]:
        return [{"name": item.name, "size": item.size, "reason": str(item.lock)} for item in self.structure.locked]

    def warnings(self) -> list[str]:
        return []

    def calibrated(self) -> Mapping[str, Layer]:
        return reconstructible(self.structure)[0]

    def builder(
        self,
        calibration: Calibration | None,
        orders: Mapping[str, Order] | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Pruner:
        return Pruner(
            self.model,
            self.structure,
            calibration,
            ranking=self.options.ranking or "elimination",
            reconstruct=self.options.reconstruct,
            orders=orders,
            on_step=on_step,
        )

    def finish_(self, slim: nn.Module, example_input: Any) -> None:
        update_declared_sizes_(slim, self.model, example_input)

    def masks(self, slim: nn.Module) -> dict[str, Tensor]:
        """Empty: the weights of a sliced network may take any value."""
        return {}

    def weights(self) -> tuple[str, ...]:
        """None: channels are sliced away."""
        return ()

    def stored(self, model: nn.Module, under: str = "") -> bytes:
        return pack(model.state_dict())

    def recount(self, model: nn.Module, example_input: Any) -> dict[str, int]:
        costs = {
            "macs": count_macs(model, example_input),
            "params": count_params(model),
            "size": len(self.stored(model)),
        }
        with suppress(ModelError):
            costs["memory"] = inspect(model, example_input).memory
        return costs


def _reasons(structure: Structure) -> str:
    """Why everything is locked: the first reasons, and where to read the rest."""
    locks = [f"'{item.name}' ({item.lock})" for item in structure.locked]
    more = f", and {len(locks) - LOCKS_SHOWN} more; `amc inspect` lists them" if len(locks) > LOCKS_SHOWN else ""
    return ", ".join(locks[:LOCKS_SHOWN]) + more if locks else "it has no layer with more than one channel"


def channel_decisions(
    structure: Structure, *, round_to: int | None = None, max_sparsity: float = MAX_SPARSITY
) -> tuple[Decision, ...]:
    """One decision for each group, in execution order.

    `round_to` None means 8 if a group is wide enough, else the largest power of two that leaves it at least 8 keep
    counts.
    """
    return tuple(
        Decision(group.name, group.size, keep_choices(group.size, round_to, max_sparsity), _features(structure, group))
        for group in structure.groups
    )


def channel_costs(structure: Structure) -> dict[Metric, CostFunction]:
    """MACs and parameters by the structure's closed forms."""
    return {
        Metric.MACS: lambda keep_counts: structure.cost(keep_counts, "macs"),
        Metric.PARAMS: lambda keep_counts: structure.cost(keep_counts, "params"),
    }


def keep_choices(size: int, round_to: int | None, max_sparsity: float) -> tuple[int, ...]:
    """Keep counts to choose from: multiples of the rounding, and the whole group."""
    step = round_to or min(ROUND_TO, 1 << max(0, int(math.log2(max(1, size // LEAST_CHOICES)))))
    least = max(1, math.ceil(size * (1 - max_sparsity) - 1e-9))
    return tuple(sorted({*(k for k in range(step, size, step) if k >= least), size}))


def _features(structure: Structure, group: Group) -> LayerFeatures:
    """The layer that reads most of the group; the paper's state describes the layer whose input is pruned."""
    layers = [structure.layers[index] for index in group.consumers or group.producers]
    if not layers:
        return LayerFeatures(n=1, c=group.size, h=1, w=1, stride=1, k=1, macs=0)
    main = max(layers, key=lambda layer: layer.macs)
    return layer_features(main, sum(layer.macs for layer in layers))


def layer_features(layer: Layer, macs: int) -> LayerFeatures:
    """A layer as the agent sees it; `macs`: of all layers that read the group or the weight."""
    height, width = (*layer.input_size, 1, 1)[:2]
    return LayerFeatures(
        n=layer.output.size,
        c=layer.input.size,
        h=height,
        w=width,
        stride=max(layer.stride, default=1),
        k=max(layer.kernel, default=1),
        macs=macs,
    )


def _stored_size(model: nn.Module, structure: Structure) -> CostFunction:
    """Largest size of a sliced network's file, bytes: its tensors and a header as long as the dense network's.

    Exact for the dense network.
    """
    state = model.state_dict()
    dense = len(pack(state))
    header = file_overhead(state) - sum(value.numel() * value.element_size() for value in state.values())
    rows = [_sizes(structure, name, tuple(value.shape)) for name, value in state.items()]
    item = np.array([value.element_size() for value in state.values()], dtype=np.float64)

    def size(keep_counts: npt.NDArray[np.int64], /) -> npt.NDArray[np.float64]:
        counts = np.asarray(keep_counts, dtype=np.float64)
        total = np.full(counts.shape[:-1], float(header))
        for itemsize, dims in zip(item, rows, strict=True):
            elements = np.full(counts.shape[:-1], itemsize)
            for fixed, per_channel in dims:
                elements = elements * (fixed + counts @ per_channel)
            total = total + elements
        result: npt.NDArray[np.float64] = np.minimum(total, dense)
        return result

    return size


def _sizes(structure: Structure, name: str, shape: tuple[int, ...]) -> list[tuple[int, npt.NDArray[np.float64]]]:
    """Each dimension of a tensor: (positions that always stay, positions per kept channel of each group)."""
    slots_of = structure.tensors.get(name, (None,) * len(shape))
    sizes = []
    for extent, slots in zip(shape, slots_of, strict=True):
        per_channel = np.zeros(len(structure.groups))
        if slots is not None:
            for index, group in enumerate(structure.groups):
                inside = np.count_nonzero((slots >= group.offset) & (slots < group.offset + group.size))
                per_channel[index] = inside / group.size
        fixed = extent - round(sum(per_channel * structure.sizes))
        sizes.append((fixed, per_channel))
    return sizes
