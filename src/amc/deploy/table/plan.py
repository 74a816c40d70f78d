"""Which block of which widths has to be measured for one network: the plan of its latency table.

Reads the structure and the keep counts on offer; measures nothing.
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
CACHED_WEIGHTS = 50_000  # of a block that is measured: three copies fit into every second-level cache

_LARGEST = 4  # measured blocks that those with more weights are extrapolated from

Key = tuple[str, int, int]  # name of the block, channels in, channels out


@dataclass(frozen=True)
class LayerPlan:
    """One layer with the widths it can have on either side."""

    spec: LayerBlock
    inputs: Axis
    outputs: Axis  # of a layer that loses whole groups, one place only: its inputs say everything

    def keys(self, points: int) -> dict[Key, Node]:
        """What the layer's table consists of, and the place of each in it."""
        block = self.spec.block
        nodes = [(a, b) for a in self.inputs.nodes(points) for b in self.outputs.nodes(points)]
        return {(block.name, a, _outputs(block, a, b)): (a, b) for a, b in nodes}

    def measured(self, points: int) -> tuple[Key, ...]:
        """What of it is measured: all that has few weights enough, and one more if that is not all.

        A block with more weights than the nearest cache holds would be timed waiting for them, and alone it waits at
        other times than within a network. So it is extrapolated from those that have fewer; the waiting is seen in
        whole networks, and is part of the correction.
        """
        keys = self.keys(points)
        small = [key for key in keys if self._weights(key) <= CACHED_WEIGHTS]
        return tuple(small) if len(small) == len(keys) else tuple(dict.fromkeys([*small, self._reference(keys)]))

    def times(self, points: int, times: Mapping[Key, float]) -> dict[Node, float]:
        """ms at every node: as measured, or as many more as it has multiply-accumulates than those that are."""
        block, keys, measured = self.spec.block, self.keys(points), self.measured(points)
        largest = sorted(measured, key=lambda key: -block.macs(*key[1:]))[:_LARGEST]
        rate = float(np.median([times[key] / block.macs(*key[1:]) for key in largest]))
        return {node: times[key] if key in measured else rate * block.macs(*key[1:]) for key, node in keys.items()}

    def _weights(self, key: Key) -> int:
        return self.spec.block.weights(*key[1:])

    def _reference(self, keys: Mapping[Key, Node]) -> Key:
        """The largest of a layer narrowed alike on both sides until it has few weights enough."""
        largest = max(keys, key=self._weights)
        name, inputs, outputs = largest
        share = (CACHED_WEIGHTS / self._weights(largest)) ** 0.5
        step = math.lcm(self.spec.block.groups, self.inputs.step)
        return (name, _narrowed(inputs, share, step), _narrowed(outputs, share, step))


@dataclass(frozen=True)
class Plan:
    """The table's shape for one network."""

    layers: tuple[LayerPlan, ...]
    points: int
    step: int  # of the runtime's staircase over the channels

    @cached_property
    def blocks(self) -> dict[str, Block]:
        """By name."""
        return {layer.spec.block.name: layer.spec.block for layer in self.layers}

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """Everything to measure, each once, in execution order."""
        return tuple(dict.fromkeys(key for layer in self.layers for key in layer.measured(self.points)))

    def tables(self, times: Mapping[Key, float]) -> list[FloatArray]:
        """The lookup table of every layer, [places in, places out]; layers that are alike share one."""
        made: dict[tuple[str, Axis, Axis], FloatArray] = {}
        out = []
        for layer in self.layers:
            kind = (layer.spec.block.name, layer.inputs, layer.outputs)
            if kind not in made:
                made[kind] = lookup(layer.inputs, layer.outputs, layer.times(self.points, times))
            out.append(made[kind])
        return out


def plan_table(
    model: nn.Module,
    structure: Structure,
    choices: Sequence[Sequence[int]],
    *,
    step: int = 1,
    points: int = POINTS,
) -> Plan:
    """The plan for policies whose keep counts are among `choices`, group by group, ascending.

    `step`: of the runtime's staircase over the channels. `points`: widths measured on each side of a layer.
    """
    least, dense = (np.array([options[end] for options in choices], dtype=np.int64) for end in (0, -1))
    layers = tuple(_plan(spec, least, dense, step) for spec in blocks_of(model, structure))
    return Plan(layers, points, step)


def network_key(model: nn.Module, plan: Plan, choices: Sequence[Sequence[int]]) -> str:
    """Sixteen hexadecimal digits that change with whatever a network's latency depends on; weights are not among it."""
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
    if unit > 1:  # a flattened map: its staircase is another one, and too fine to matter
        return Axis(low, high, unit, 1)
    return Axis(low, high, unit, step)


def _outputs(block: Block, inputs: int, outputs: int) -> int:
    return inputs // block.per_group[0] * block.per_group[1] if block.per_group else outputs


def _narrowed(width: int, share: float, step: int) -> int:
    return min(width, max(step, int(share * width) // step * step))


def _width(axis: Axis) -> list[int]:
    return [axis.low, axis.high, axis.unit]
