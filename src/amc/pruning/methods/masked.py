"""Fine-grained pruning and its structured relatives: one decision a layer, weights set to zero.

The network keeps its shape. One ranking of the layer's weights, rows, columns, blocks or N:M runs
(`amc.pruning.masks`) decides what is masked; the other weights may compensate (`amc.pruning.compensation`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from amc.pruning import Calibration, LayerPolicy, Policy
from amc.pruning.calibration import used_two_ways
from amc.pruning.compensation import compensate
from amc.pruning.masks import FineGrained, NestedMasks, Pattern, importance
from amc.pruning.methods.base import MethodOptions
from amc.pruning.methods.channel import layer_features
from amc.pruning.pruner import steps
from amc.pruning.ranking import Order
from amc.pruning.reconstruction import SolutionCache, as_filters, as_stored
from amc.run.weights import bound, file_overhead, pack, pack_smallest
from amc.search import CostFunction, Decision, Metric
from amc.search.problem import FloatArray
from amc.structure import Certificate, Layer, Structure, check_counts, count_macs, count_params
from amc.structure.copying import with_tensors
from amc.structure.patterns import kept_whole

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Target:
    """A weight that is masked, and its layer (the first, if several share it)."""

    weight: str
    layer: Layer
    refitted: bool
    macs: int  # of all layers that use the weight
    choices: tuple[int, ...]
    kept: Callable[[npt.ArrayLike], Counts]  # keep counts -> weights kept

    @property
    def numel(self) -> int:
        return math.prod(self.layer.filters)

    @property
    def macs_per_weight(self) -> int:
        """The weights of a layer are all used equally often."""
        return self.macs // self.numel


class MaskedMethod:
    """`Method` that masks weights by a pattern. Decisions are named after layers."""

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        options: MethodOptions,
        pattern: Pattern,
        *,
        lock: tuple[str, ...] = (),
        only: tuple[str, ...] = (),
    ) -> None:
        self.model, self.structure, self.options, self.pattern = model, structure, options, pattern
        self.whole: dict[str, str] = {}
        names = {layer.name: (layer.name,) for layer in structure.layers}
        self._targets = self._find_targets(kept_whole(names, lock=lock, only=only, kind="layer"))

    @property
    def name(self) -> str:
        return self.pattern.name

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        return tuple(
            Decision(target.layer.name, target.choices[-1], target.choices, layer_features(target.layer, target.macs))
            for target in self._targets
        )

    @cached_property
    def costs(self) -> Mapping[Metric, CostFunction]:
        macs, params = self.structure.macs, self.structure.params
        return {
            Metric.MACS: self._linear_cost(macs, [target.macs_per_weight for target in self._targets]),
            Metric.PARAMS: self._linear_cost(params, [1] * len(self._targets)),
            Metric.SIZE: self._stored_size(),
        }

    @property
    def optional_costs(self) -> Mapping[Metric, CostFunction]:
        """None: a masked network has the activations of the dense one."""
        return {}

    def checked(
        self,
        example_input: Any,
        *,
        keep_sets: int,
        known: Certificate | None = None,
        on_check: Callable[[int, int], None] | None = None,
    ) -> tuple[MaskedMethod, Certificate | None]:
        """Compares the costs only: a network that is not sliced needs no keep sets and no certificate."""
        check_counts(self.model, self.structure, example_input)
        return self, None

    def locked(self) -> list[dict[str, Any]]:
        return [{"name": name, "reason": reason} for name, reason in self.whole.items()]

    def warnings(self) -> list[str]:
        if not self.whole:
            return []
        name, reason = next(iter(self.whole.items()))
        more = f", and {len(self.whole) - 1} more" if len(self.whole) > 1 else ""
        return [f"stays dense: {name} ({reason}){more}"]

    def calibrated(self) -> Mapping[str, Layer]:
        return {target.weight: target.layer for target in self._targets if target.refitted}

    def builder(
        self,
        calibration: Calibration | None,
        orders: Mapping[str, Order] | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> MaskBuilder:
        return MaskBuilder(self.model, self._targets, self.pattern, self.options, calibration, on_step)

    def weights(self) -> tuple[str, ...]:
        """The weights that may be masked, by name."""
        return tuple(target.weight for target in self._targets)

    def finish_(self, slim: nn.Module, example_input: Any) -> None:
        """Nothing: the network keeps its sizes."""

    def masks(self, slim: nn.Module) -> dict[str, Tensor]:
        named = dict(slim.named_parameters())
        return {name: named[name].detach() != 0 for name in self.weights()}

    def stored(self, model: nn.Module, under: str = "") -> bytes:
        return pack_smallest(model.state_dict(), [under + name for name in self.weights()])

    def recount(self, model: nn.Module, example_input: Any) -> dict[str, int]:
        named = dict(model.named_parameters())
        macs, params = count_macs(model, example_input), count_params(model)
        for target in self._targets:
            zeros = target.numel - int(torch.count_nonzero(named[target.weight]))
            macs -= target.macs_per_weight * zeros
            params -= zeros
        return {"macs": macs, "params": params, "size": len(self.stored(model)), "memory": self.structure.memory}

    def _find_targets(self, locked: Mapping[str, str]) -> list[_Target]:
        uses: dict[str, list[Layer]] = {}
        for layer in self.structure.layers:
            if layer.weight:
                uses.setdefault(layer.weight, []).append(layer)
            else:
                self.whole[layer.name] = "its weight is computed by the forward, not a parameter"
        targets = []
        for weight, layers in uses.items():
            target = self._target(weight, layers)
            reasons = [locked[layer.name] for layer in layers if layer.name in locked]
            if reasons:
                self.whole[target.layer.name] = reasons[0]
            elif len(target.choices) > 1 or target.kept(target.choices[-1]) < target.numel:  # zeros stay zero
                targets.append(target)
        return targets

    def _target(self, weight: str, layers: list[Layer]) -> _Target:
        layer, shape, groups = layers[0], layers[0].filters, layers[0].groups
        obstacle = self.pattern.obstacle(shape, groups=groups)
        if layer.kind == "conv_transpose" and not isinstance(self.pattern, FineGrained):
            obstacle = f"{self.name} has no layout for a transposed convolution"
        limit = self.options.max_sparsity_linear if layer.kind in ("linear", "recurrent") else self.options.max_sparsity
        choices = self.pattern.keep_choices(shape, limit, groups=groups)
        if isinstance(self.pattern, FineGrained):
            choices = self._alive(weight, choices)
        if obstacle:
            choices = choices[-1:]
            self.whole[layer.name] = obstacle

        def kept(counts: npt.ArrayLike) -> Counts:
            return self.pattern.weights_kept(shape, counts, groups=groups)

        refitted = layer.kind != "conv_transpose" and not layer.obstacle and not used_two_ways(layers)
        return _Target(weight, layer, refitted, sum(use.macs for use in layers), choices, kept)

    def _alive(self, weight: str, choices: tuple[int, ...]) -> tuple[int, ...]:
        """The choices without weights that an earlier round set to zero: these stay zero and cost nothing."""
        alive = int(torch.count_nonzero(self.model.get_parameter(weight)))
        return (*(count for count in choices if count < alive), alive) if alive else choices[-1:]

    def _linear_cost(self, dense: int, per_weight: Sequence[int]) -> CostFunction:
        """The dense cost minus the cost of the masked weights."""
        targets, each = self._targets, np.array(per_weight, dtype=np.float64)
        most = np.array([target.numel for target in targets], dtype=np.float64)

        def cost(keep_counts: Counts, /) -> npt.NDArray[np.float64]:
            gone = most - self._weights_kept(keep_counts)
            result: npt.NDArray[np.float64] = dense - gone @ each
            return result

        return cost

    def _stored_size(self) -> CostFunction:
        state = self.model.state_dict()
        overhead, dense = file_overhead(state, self.weights()), len(pack(state))
        compact = [(target.numel, state[target.weight].element_size()) for target in self._targets]

        def cost(keep_counts: Counts, /) -> npt.NDArray[np.float64]:
            kept = self._weights_kept(keep_counts)
            sizes = [bound(numel, kept[..., i], itemsize) for i, (numel, itemsize) in enumerate(compact)]
            return np.asarray(np.minimum(overhead + np.sum(sizes, axis=0), dense), dtype=np.float64)

        return cost

    def _weights_kept(self, keep_counts: Counts) -> Counts:
        counts = np.asarray(keep_counts, dtype=np.int64)
        return np.stack([target.kept(counts[..., i]) for i, target in enumerate(self._targets)], axis=-1)


class MaskBuilder:
    """Ranks every layer once; each network is then one comparison per layer, and a refit of each new mask."""

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[_Target],
        pattern: Pattern,
        options: MethodOptions,
        calibration: Calibration | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> None:
        self.model, self.pattern, self._targets = model, pattern, targets
        self.reconstruct = options.reconstruct
        grams = calibration.grams if calibration else {}
        # With compensation the saliencies of single weights rank no better than their magnitudes (docs/paper.md).
        ranking = options.ranking or "magnitude"
        needed = options.reconstruct or ranking != "magnitude"
        self.grams: dict[str, Tensor] = {}
        if needed:
            self.grams = {target.weight: grams[target.weight].damped() for target in targets if target.weight in grams}
        named = dict(model.named_parameters())
        step = steps(len(targets), on_step)
        self.orders: dict[str, NestedMasks] = {}
        for target in targets:
            filters = as_filters(named[target.weight], target.layer)
            ranks = importance(filters, self.grams.get(target.weight), ranking)
            self.orders[target.weight] = pattern.order(ranks, groups=target.layer.groups)
            step()
        self._solutions = SolutionCache()

    def errors(self, choices: Sequence[Sequence[int]]) -> tuple[FloatArray, ...]:
        """Empty: the errors of masks are not computed before they are built."""
        return ()

    def policy(self, keep_counts: Sequence[int]) -> Policy:
        """The share of every layer; the masks follow from the weights' ranking."""
        return Policy(
            tuple(
                LayerPolicy(target.layer.name, target.choices[-1], int(count))
                for target, count in zip(self._targets, keep_counts, strict=True)
            ),
            self.pattern.name,
        )

    def build(self, keep_counts: Sequence[int]) -> nn.Module:
        """A copy with masked weights, refitted if `reconstruct` is set."""
        chosen = {
            target.weight: (target.layer, int(count)) for target, count in zip(self._targets, keep_counts, strict=True)
        }
        tensors: list[tuple[str, Tensor]] = [*self.model.named_parameters(), *self.model.named_buffers()]
        replaced = {
            name: self._masked(name, value.detach(), *chosen[name]) if name in chosen else value.detach().clone()
            for name, value in tensors
        }
        return with_tensors(self.model, replaced).eval()

    def sliced(self, tensors: Mapping[str, Tensor], keep_counts: Sequence[int]) -> dict[str, Tensor]:
        """The same values: the network keeps its sizes."""
        return dict(tensors)

    def _masked(self, name: str, weight: Tensor, layer: Layer, keep_count: int) -> Tensor:
        filters, mask = as_filters(weight, layer), self.orders[name].mask(keep_count)
        if self.reconstruct and name in self.grams and bool(filters[~mask].any()):
            kept = self._solutions.get(
                (name, keep_count), lambda: compensate(filters, mask, self.grams[name]).to(weight)
            ).clone()
        else:
            kept = filters * mask
        return as_stored(kept, layer, weight.shape)
