"""From keep counts to sliced networks: rank once, factorise once, then build any network in milliseconds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from amc.pruning.calibration import Calibration, reconstructible
from amc.pruning.policy import Policy
from amc.pruning.ranking import Order, elimination, magnitude
from amc.pruning.reconstruction import DAMPING, LayerFit, SolutionCache, as_stored, flat_weight
from amc.run.settings import Ranking
from amc.structure import Layer, Structure
from amc.structure.grouping import FIXED
from amc.structure.slicing import kept_positions, slice_model, slice_tensors
from amc.structure.structure import Mask, Slots

Errors = npt.NDArray[np.float64]


class Pruner:
    """Builds the pruned network of any keep counts.

    With a `calibration`, `ranking` may be "elimination" and pruned layers get refitted weights unless
    `reconstruct` is False; without one, channels are ranked by magnitude and weights are just sliced. `orders`
    replaces the ranking of every group, by name. `on_step` hears how many groups and layers are done, and of how many.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        calibration: Calibration | None = None,
        *,
        ranking: Ranking = "elimination",
        reconstruct: bool = True,
        damping: float = DAMPING,
        orders: Mapping[str, Order] | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> None:
        self.model, self.structure = model, structure
        layers, _ = reconstructible(structure)
        named = dict(model.named_parameters())
        grams = calibration.grams if calibration else {}
        weights = {name: flat_weight(named[name], layer) for name, layer in layers.items()}
        damped = {name: grams[name].damped(damping) for name in layers if name in grams}
        groups, step = structure.groups, steps(len(structure.groups) + reconstruct * len(damped), on_step)
        found: dict[str, Order] = {}
        for group in groups:
            if orders:
                found[group.name] = orders[group.name]
            elif ranking == "elimination" and damped:
                found[group.name] = elimination(structure, group, weights, damped)
            else:
                found[group.name] = magnitude(structure, group, weights)
            step()
        self.orders: Mapping[str, Order] = found
        # By channel of the network: its rank in its group, and the place of that group; -1 for channels of none.
        self._rank, self._owner = np.full((2, structure.channels + 1), -1, dtype=np.int64)  # the last serves FIXED
        for place, group in enumerate(groups):
            self._rank[group.offset + self.orders[group.name]] = np.arange(group.size)
            self._owner[group.offset + self.orders[group.name]] = place
        assert self._rank[FIXED] == -1
        self.fits: dict[str, LayerFit] = {}
        if reconstruct:
            for name, gram in damped.items():
                order = self._position_order(layers[name])
                self.fits[name] = LayerFit(layers[name], gram, weights[name], order)
                step()
        self._solutions = SolutionCache()

    def policy(self, keep_counts: Sequence[int]) -> Policy:
        """The policy that keeps the best-ranked channels of each group, `keep_counts` of them."""
        keep = {
            group.name: np.sort(self.orders[group.name][:count])
            for group, count in zip(self.structure.groups, keep_counts, strict=True)
        }
        policy = Policy.of(keep, {group.name: group.size for group in self.structure.groups})
        return replace(policy, approximate=self.structure.approximate)

    def build(self, keep_counts: Sequence[int]) -> nn.Module:
        """The sliced network with refitted weights: a new module, in eval mode."""
        mask = self._mask(keep_counts)
        weights = {name: self._refitted(name, fit, mask) for name, fit in self.fits.items()}
        slim = slice_model(self.model, self.structure, mask, {k: w for k, w in weights.items() if w is not None})
        return slim.eval()

    def sliced(self, tensors: Mapping[str, torch.Tensor], keep_counts: Sequence[int]) -> dict[str, torch.Tensor]:
        """Values like parameters or buffers of the dense network, by name: of the channels that stay."""
        return slice_tensors(tensors, self.structure, self._mask(keep_counts))

    def errors(self, choices: Sequence[Sequence[int]]) -> tuple[Errors, ...]:
        """What the layers that read a group lose with each of its keep counts: [counts] for every group.

        The sum of the relative errors (`LayerFit.relative_errors`) of the layers that read this group alone; without
        such layers, the square of the sparsity. Empty if nothing is reconstructed.
        """
        if not self.fits:
            return ()
        return tuple(self._error(place, np.asarray(counts)) for place, counts in enumerate(choices))

    def _error(self, place: int, kept: Order) -> Errors:
        tables = []
        for fit in self.fits.values():
            inputs = _inputs(fit.layer)
            if fit.order is not None and (self._owner[inputs] == place).any():
                tables.append(fit.relative_errors().numpy()[(self._rank[inputs][:, None] < kept).sum(axis=0)])
        size = self.structure.groups[place].size
        return np.asarray(np.sum(tables, axis=0)) if tables else (1 - kept / size) ** 2

    def _mask(self, keep_counts: Sequence[int]) -> Mask:
        return self.structure.mask(self.policy(keep_counts).keep)

    def _refitted(self, name: str, fit: LayerFit, mask: Mask) -> torch.Tensor | None:
        """New weights of a layer that loses inputs, restricted to the outputs it keeps; None if it loses none."""
        layer, inputs = fit.layer, _inputs(fit.layer)
        kept = kept_positions(inputs, mask)
        if kept.size == inputs.size:
            return None
        dims = self.structure.tensors[name]
        places = [None if slots is None else torch.from_numpy(kept_positions(slots, mask)) for slots in dims]
        shape = list(self.structure.shapes[name])
        for dim in layer.input_dims:
            shape[dim] = shape[dim] if (left := places[dim]) is None else left.numel()
        weight = self._solutions.get((name, kept.tobytes()), lambda: as_stored(fit.weights(kept).float(), layer, shape))
        for dim, left in enumerate(places):
            if left is not None and dim not in layer.input_dims:
                weight = weight.index_select(dim, left)
        return weight

    def _position_order(self, layer: Layer) -> Order | None:
        """Input positions: those that always stay, then the others by rank. None if several groups feed the layer."""
        inputs = _inputs(layer)
        owners = self._owner[inputs]
        if len(np.unique(owners[owners >= 0])) != 1:
            return None
        return np.argsort(self._rank[inputs], kind="stable")


def steps(total: int, on_step: Callable[[int, int], None] | None) -> Callable[[], None]:
    """A function to call after each of `total` steps; `on_step` hears how many are done."""
    done = itertools.count(1)
    return lambda: None if on_step is None else on_step(next(done), total)


def _inputs(layer: Layer) -> Slots:
    """The input positions of the layer's first group; the others lose the same ones."""
    return layer.input[: layer.input.size // layer.groups]
