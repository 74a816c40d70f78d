"""`amc inspect`: the structure of a network as a record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from amc.cli.jobs.devices import AUTO, placed
from amc.errors import AmcError, ModelError
from amc.pruning import reconstructible
from amc.pruning.methods.channel import keep_choices
from amc.run.settings import MAX_SPARSITY
from amc.structure import Certificate, Structure, certify
from amc.structure import inspect as inspect_structure
from amc.structure.modes import device_of
from amc.structure.part import Part
from amc.structure.trace import ExampleError
from amc.structure.why import Explanation, explain
from amc.zoo import create_model, load_weights, model_info


def run_inspect(
    spec: str,
    *,
    weights: Path | None,
    input_shape: str | None,
    keep_sets: int,
    lock: tuple[str, ...],
    only: tuple[str, ...],
    part: str | None = None,
    approximate: bool = False,
    device: str = AUTO,
) -> dict[str, Any]:
    """The structure of a network, or of its part, as a record: costs, groups, locks, certificate, reachable budgets."""
    model, shape = _loaded(spec, weights, input_shape, device)
    with _fitting(spec):
        found, pruned, inputs = _part(model, shape, part)
        structure = inspect_structure(pruned, inputs, lock=lock, only=only, approximate=approximate)
    certificate = None
    if keep_sets and structure.groups:
        structure, certificate = certify(pruned, structure, inputs, keep_sets=keep_sets)
    record = structure_record(spec, shape, structure, certificate) | refitting_record(structure)
    if found is None:
        return record
    if structure.groups:
        found.check(structure)
    return record | {"part": found.name, "calls": found.calls, "notes": found.notes()}


def run_why(
    spec: str, name: str, *, weights: Path | None, input_shape: str | None, part: str | None = None, device: str = AUTO
) -> dict[str, Any]:
    """How the channels of a layer came to be tied or locked, as a record."""
    model, shape = _loaded(spec, weights, input_shape, device)
    with _fitting(spec):
        _, pruned, inputs = _part(model, shape, part)
        explanations = explain(pruned, inputs, name)
    return {"model": spec, "input": list(shape), "name": name, "why": [_why(each) for each in explanations]}


def _why(explanation: Explanation) -> dict[str, Any]:
    lock = explanation.lock
    return {
        "channels": list(explanation.channels),
        "steps": [asdict(step) for step in explanation.steps],
        "locked": None if lock is None else {"reason": str(lock), "source": lock.source},
    }


def _loaded(spec: str, weights: Path | None, input_shape: str | None, device: str) -> tuple[nn.Module, tuple[int, ...]]:
    """The network, and the shape of one example."""
    model = placed(create_model(spec), device)
    if weights:
        load_weights(model, weights)
    return model, example_shape(spec, input_shape)


@contextmanager
def _fitting(spec: str) -> Iterator[None]:
    """Say how to give another example where the network refuses it."""
    try:
        yield
    except ExampleError as error:
        info = model_info(spec)
        known = "x".join(map(str, info.input_shape)) if info else "3x224x224"
        remedy = f"--input is the shape of one example without the batch, such as {known}"
        raise ModelError(f"{error}; {remedy}") from error


def _part(model: nn.Module, shape: tuple[int, ...], part: str | None) -> tuple[Part | None, nn.Module, Any]:
    """The part, if one is asked for; what is inspected; and the example for it."""
    example = torch.zeros(1, *shape, device=device_of(model))
    if part is None:
        return None, model, example
    found = Part.of(model, example, part)
    return found, found.module, found.example


def example_shape(spec: str, input_shape: str | None) -> tuple[int, ...]:
    """The shape of one example of a network, without the batch: as given, or that of a zoo network. Raises AmcError."""
    if input_shape:
        return parse_shape(input_shape)
    info = model_info(spec)
    if info is None:
        raise ModelError(f"'{spec}' is your own network: give the shape of one example, such as --input 3x224x224")
    return info.input_shape


def parse_shape(text: str) -> tuple[int, ...]:
    """`3x224x224` -> (3, 224, 224)."""
    try:
        shape = tuple(int(part) for part in text.lower().replace(",", "x").split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise AmcError(f"input shape {text!r} is malformed; write 3x224x224")
    return shape


def structure_record(
    spec: str, shape: tuple[int, ...], structure: Structure, certificate: Certificate | None
) -> dict[str, Any]:
    least = np.array([keep_choices(group.size, None, MAX_SPARSITY)[0] for group in structure.groups], dtype=np.int64)
    return {
        "model": spec,
        "input": list(shape),
        "macs": structure.macs,
        "params": structure.params,
        "memory": structure.memory,
        "prunable_macs": structure.prunable_macs(),
        "least": {
            "macs": structure.cost.macs(least),
            "params": structure.cost.params(least),
            "memory": structure.cost.memory(least),
        },
        "groups": [
            {
                "name": group.name,
                "size": group.size,
                "producers": _names(structure, group.producers),
                "consumers": _names(structure, group.consumers),
                "macs": sum(structure.layers[i].macs for i in {*group.producers, *group.consumers}),
                **({} if group.averaged is None else {"approximate": str(group.averaged)}),
            }
            for group in structure.groups
        ],
        "bound": list(dict.fromkeys(each.module for each in structure.bound)),
        "layers": _layers(structure),
        "locked": [
            {"name": item.name, "size": item.size, "reason": str(item.lock), "source": item.lock.source}
            for item in structure.locked
        ],
        "certificate": certificate.to_json() if certificate else None,
    }


def _names(structure: Structure, layers: Iterable[int]) -> list[str]:
    """The names of the layers, each once: a layer that is called several times has several indices."""
    return list(dict.fromkeys(structure.layers[index].name for index in layers))


def _layers(structure: Structure) -> list[dict[str, Any]]:
    """Every weight that is contracted with an activation, with the multiply-accumulates of all its uses."""
    macs: dict[tuple[str, str, str], int] = {}
    for layer in structure.layers:
        key = (layer.name, layer.kind, layer.weight)
        macs[key] = macs.get(key, 0) + layer.macs
    return [{"name": name, "kind": kind, "weight": weight, "macs": each} for (name, kind, weight), each in macs.items()]


def refitting_record(structure: Structure) -> dict[str, Any]:
    """The layers that are refitted by least squares after pruning, and why the others are only sliced."""
    refitted, sliced = reconstructible(structure)
    return {
        "refitted": list(refitted),
        "only_sliced": [{"name": name, "reason": reason} for name, reason in sliced.items()],
    }
