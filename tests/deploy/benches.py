"""Benches whose latency is a known function of the shapes: oracles for measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from amc.deploy.measure import MeasureSettings
from amc.deploy.table.bench import OnStep, Place
from amc.deploy.table.blocks import BlockRun, ProbeRun, Run
from amc.structure.modes import evaluating

MACHINE = {"cpu": "an oracle", "architecture": "paper", "cores": 1, "system": "none", "python": "3", "load": 0.0}
PLACE = Place("onnxruntime", "1.0", 1, "float32", MACHINE)
CALL_MS = 0.02  # constant cost of every call
BETWEEN_MS = 0.3  # constant cost of a whole network

Law = Callable[[int, int, int], float]  # channels in, channels out, multiply-accumulates per pair -> ms


def smooth(inputs: int, outputs: int, area: int) -> float:
    return 1e-6 * inputs * outputs * area + 1e-5 * outputs


def stairs(inputs: int, outputs: int, area: int) -> float:
    """Vectors of eight channels."""
    return smooth(8 * math.ceil(inputs / 8), 8 * math.ceil(outputs / 8), area)


def uneven(inputs: int, outputs: int, area: int) -> float:
    """Output widths that are not multiples of eight are slower than the next multiple."""
    penalty = 1.3 if outputs % 8 else 1.0
    return penalty * stairs(inputs, outputs, area)


class OracleBench:
    """Latency is the sum of the law over the layers, `smooth` for linear ones; `asked` counts the timed networks."""

    def __init__(self, law: Law = smooth, *, factor: float = 1.0, place: Place = PLACE, steady: bool = True) -> None:
        self.law, self.factor, self.steady, self.place = law, factor, steady, place
        self.asked = {"blocks": 0, "networks": 0}

    def version(self, version: str) -> OracleBench:
        return OracleBench(self.law, factor=self.factor, place=replace(self.place, version=version))

    def blocks(self, runs: Sequence[Run], on_step: OnStep = None) -> list[float]:
        self.asked["blocks"] += len(runs)
        return [self._block(run) for run in runs]

    def _block(self, run: Run) -> float:
        if isinstance(run, ProbeRun):
            area = 9 * run.size**2
            return CALL_MS + self.law(run.around, run.width, area) + self.law(run.width, run.around, area)
        assert isinstance(run, BlockRun)
        if run.block.kind == "linear":
            return CALL_MS + run.copies * smooth(run.inputs, run.outputs, 1)
        read = 1 if run.block.per_group else run.inputs  # inputs of one output
        area = run.block.macs(run.inputs, run.outputs) // (read * run.outputs)
        return CALL_MS + 1e-5 * run.inputs + run.copies * self.law(read, run.outputs, area)

    def networks(
        self, networks: Mapping[str, nn.Module], example_input: Any, settings: MeasureSettings
    ) -> dict[str, Any]:
        self.asked["networks"] += len(networks)
        times = {name: self.whole(module, example_input) for name, module in networks.items()}
        dense = next(iter(times.values()))
        records = {
            name: {"latency_ms": value, "spread": 0.01, "ratio": value / dense, "uncertainty": 0.02}
            for name, value in times.items()
        }
        return {"steady": self.steady, "machine": MACHINE, "networks": records}

    def whole(self, module: nn.Module, example_input: Any) -> float:
        """Latency of the whole network, in ms."""
        layer_ms: list[float] = []

        def add(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if isinstance(layer, nn.Conv2d):
                area = layer.weight[0, 0].numel() * output[0, 0].numel()
                layer_ms.append(self.law(layer.in_channels // layer.groups, layer.out_channels, area))
            elif isinstance(layer, nn.Linear):
                layer_ms.append(smooth(layer.in_features, layer.out_features, 1))

        handles = [layer.register_forward_hook(add) for layer in module.modules()]
        try:
            with evaluating(module), torch.no_grad():
                module(example_input)
        finally:
            for handle in handles:
                handle.remove()
        return BETWEEN_MS + self.factor * sum(layer_ms)
