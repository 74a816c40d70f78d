"""The plan of a network's latency table: the blocks to measure, each at a few widths.

Reads the structure and the possible keep counts; measures nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import nn

from amc.deploy.table.blocks import Block, LayerBlock, Width, blocks_of
from amc.deploy.table.grid import Axis, FloatArray, Node, lookup
from amc.structure import Structure

POINTS = 6  # widths measured on each side of a layer
CACHED_WEIGHTS = 50_000  # most weights of a measured block; three copies of it fit into every second-level cache

_LARGEST = 4  # number of measured blocks from which larger blocks are extrapolated

Key = tuple[str, int, int]  # name of the block, channels in, channels out


@dataclass(frozen=True)
class LayerPlan:
    """One layer with the widths that its inputs and outputs can have."""

    spec: LayerBlock
    inputs: Axis
    outputs: Axis  # a single width if the layer loses whole groups: its inputs then determine its outputs

    def keys(self, points: int) -> dict[Key, Node]:
        """The keys of the layer's table, each with its node."""
        block = self.spec.block
        nodes = [(a, b) for a in self.inputs.nodes(points) for b in self.outputs.nodes(points)]
        return {(block.name, a, _outputs(block, a, b)): (a, b) for a, b in nodes}

    def measured(self, points: int) -> tuple[Key, ...]:
        """The keys to measure: every key with at most `CACHED_WEIGHTS` weights, and a smaller block if others remain.

        A block whose weights exceed the nearest cache waits for memory. Alone, it waits at other times than inside a
        network. Therefore its latency is extrapolated from smaller blocks. Whole networks show the waiting, so the
        correction contains it.
        """
        keys = self.keys(points)
        small = [key for key in keys if self._weights(key) <= CACHED_WEIGHTS]
        return tuple(small) if len(small) == len(keys) else tuple(dict.fromkeys([*small, self._reference(keys)]))

    def times(self, points: int, times: Mapping[Key, float]) -> dict[Node, float]:
        """Latency in ms at every node: measured, or extrapolated in proportion to the multiply-accumulates."""
        block, keys, measured = self.spec.block, self.keys(points), self.measured(points)
        largest = sorted(measured, key=lambda key: -block.macs(*key[1:]))[:_LARGEST]
        rate = float(np.median([times[key] / block.macs(*key[1:]) for key in largest]))
        return {node: times[key] if key in measured else rate * block.macs(*key[1:]) for key, node in keys.items()}

    def _weights(self, key: Key) -> int:
        return self.spec.block.weights(*key[1:])

    def _reference(self, keys: Mapping[Key, Node]) -> Key:
        """The largest key, with both widths reduced by the same factor to about `CACHED_WEIGHTS` weights."""
        largest = max(keys, key=self._weights)
        name, inputs, outputs = largest
        share = (CACHED_WEIGHTS / self._weights(largest)) ** 0.5
        step = math.lcm(self.spec.block.groups, self.inputs.step)
        return (name, _narrowed(inputs, share, step), _narrowed(outputs, share, step))


@dataclass(frozen=True)
class Plan:
    """The shape of one network's table."""

    layers: tuple[LayerPlan, ...]
    points: int  # widths measured on each side of a layer
    step: int  # channels per stair of the runtime's latency

    @cached_property
    def blocks(self) -> dict[str, Block]:
        """The blocks by name."""
        return {layer.spec.block.name: layer.spec.block for layer in self.layers}

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """The keys to measure, without repetition, in execution order."""
        return tuple(dict.fromkeys(key for layer in self.layers for key in layer.measured(self.points)))

    def tables(self, times: Mapping[Key, float]) -> list[FloatArray]:
        """The lookup table of every layer, [input widths, output widths]; equal layers share one array."""
        by_kind: dict[tuple[str, Axis, Axis], FloatArray] = {}
        tables = []
        for layer in self.layers:
            kind = (layer.spec.block.name, layer.inputs, layer.outputs)
            if kind not in by_kind:
                by_kind[kind] = lookup(layer.inputs, layer.outputs, layer.times(self.points, times))
            tables.append(by_kind[kind])
        return tables


def plan_table(
    model: nn.Module,
    structure: Structure,
    choices: Sequence[Sequence[int]],
    *,
    step: int = 1,
    points: int = POINTS,
) -> Plan:
    """The plan for policies that take each group's keep count from `choices` (ascending).

    step: channels per stair of the runtime's latency; 1: no staircase.
    points: largest number of widths measured on each side of a layer.
    """
    least, dense = (np.array([options[end] for options in choices], dtype=np.int64) for end in (0, -1))
    layers = tuple(_plan(spec, least, dense, step) for spec in blocks_of(model, structure))
    return Plan(layers, points, step)


def network_key(model: nn.Module, plan: Plan, choices: Sequence[Sequence[int]]) -> str:
    """A hash, 16 hexadecimal digits, of everything that a network's latency depends on; weights are not part of it."""
    rows = [[layer.spec.block.name, _width(layer.inputs), _width(layer.outputs)] for layer in plan.layers]
    modules = [[name, type(module).__qualname__, module.extra_repr()] for name, module in model.named_modules()]
    text = json.dumps([rows, modules, [list(map(int, options)) for options in choices], plan.points])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plan(spec: LayerBlock, least: npt.NDArray[np.int64], dense: npt.NDArray[np.int64], step: int) -> LayerPlan:
    inputs = _axis(spec.inputs, least, dense, step)
    if spec.block.per_group:
        return LayerPlan(spec, inputs, Axis(1, 1, 1, 1))
    return LayerPlan(spec, inputs, _axis(spec.outputs, least, dense, step))


def _axis(width: Width, least: npt.NDArray[np.int64], dense: npt.NDArray[np.int64], step: int) -> Axis:
    low, high, unit = int(width.at(least)), int(width.at(dense)), width.unit
    if unit > 1:  # a flattened feature map: its staircase differs and is too fine to matter
        return Axis(low, high, unit, 1)
    return Axis(low, high, unit, step)


def _outputs(block: Block, inputs: int, outputs: int) -> int:
    return inputs // block.per_group[0] * block.per_group[1] if block.per_group else outputs


def _narrowed(width: int, share: float, step: int) -> int:
    return min(width, max(step, int(share * width) // step * step))


def _width(axis: Axis) -> list[int]:
    return [axis.low, axis.high, axis.unit]
