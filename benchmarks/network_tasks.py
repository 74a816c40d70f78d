"""What is measured of a network for docs/networks.md, each task in a process of its own."""

from __future__ import annotations

import collections
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from amc.deploy.export import export
from amc.structure import Structure, certify, count_macs, count_params, inspect, slice_model
from common import Record
from network_list import create
from network_rival import attempt
from tests.structure.nets import chain

POLICIES = 20
KEEP_SETS = 3
LARGE = {"resnet50": 224, "densenet121": 224, "vit_b_16": 224, "convnext_tiny": 224}
CHAINS = (250, 500, 1000)


def structure_of(name: str) -> Record:
    """All columns of the table for one network, except torch-pruning's."""
    model, example = create(name)
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        structure = inspect(model, example)
        seconds.append(time.process_time() - begin)
    begin = time.process_time()
    structure, certificate = certify(model, structure, example, keep_sets=KEEP_SETS)
    certificate_seconds = time.process_time() - begin
    reasons = collections.Counter(locked.lock.reason for locked in structure.locked)
    return {
        "macs": structure.macs,
        "params": structure.params,
        "prunable_macs": structure.prunable_macs(),
        "prunable_params": structure.prunable_params(),
        "groups": len(structure.groups),
        "locks": len(structure.locked),
        "reason": _commonest(reasons),
        "least_macs": structure.cost.macs(np.ones(len(structure.groups))) / structure.macs,
        "seconds": statistics.median(seconds),
        "certificate_seconds": certificate_seconds,
        "certificate_failed": len(certificate.failed),
        "certificate_error": certificate.worst_error,
        "costs_agree": costs_agree(model, structure, example),
        "digest": digest(structure),
    }


def exported(name: str) -> Record:
    """The network with half of every group, as an ONNX file: its largest difference from PyTorch, on ONNX Runtime."""
    model, example = create(name)
    structure, _ = certify(model, inspect(model, example), example, keep_sets=KEEP_SETS)
    slim = slice_model(model, structure, structure.mask({g.name: range(max(1, g.size // 2)) for g in structure.groups}))
    with tempfile.TemporaryDirectory() as folder:
        written = export(slim.eval(), example, Path(folder, "slim.onnx"))
    return {"difference": max(written.errors.values()), "dynamic_batch": written.dynamic_batch}


def approximated(name: str) -> Record:
    """What is prunable with approximate groups, after the certificate, how many there are, and how far off at most."""
    model, example = create(name)
    structure, certificate = certify(model, inspect(model, example, approximate=True), example, keep_sets=1)
    differences = [difference for _, difference in certificate.approximate]
    return {
        "prunable_macs": structure.prunable_macs(),
        "groups": len(differences),
        "difference": max(differences, default=0.0),
        "locked": len(certificate.failed),
    }


def digest(structure: Structure) -> str:
    """A digest of what can be pruned: groups with their layers, locks with their reasons, and costs."""
    ones = np.ones(len(structure.groups))
    names = [layer.name for layer in structure.layers]
    content = {
        "groups": [
            [group.name, group.size, [names[i] for i in group.producers], [names[i] for i in group.consumers]]
            for group in structure.groups
        ],
        "locked": [[item.name, item.size, item.lock.reason] for item in structure.locked],
        "costs": [structure.macs, structure.params, structure.memory],
        "least": [float(cost(ones)) for cost in (structure.cost.macs, structure.cost.params, structure.cost.memory)],
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def costs_agree(model: nn.Module, structure: Structure, example: Any) -> bool:
    """Whether the closed-form costs equal torch's counter, for the dense network and for random policies."""
    rng = np.random.default_rng(0)
    agree = structure.macs == count_macs(model, example) and structure.params == count_params(model)
    for _ in range(POLICIES):
        keep = {g.name: np.sort(rng.choice(g.size, rng.integers(1, g.size + 1), False)) for g in structure.groups}
        counts = np.array([len(keep[g.name]) for g in structure.groups], dtype=np.int64)
        slim = slice_model(model, structure, structure.mask(keep))
        claimed = structure.cost.macs(counts), structure.cost.params(counts)
        agree &= claimed == (count_macs(slim, example), count_params(slim))
    return bool(agree)


def _commonest(reasons: collections.Counter[str]) -> str:
    """The commonest reason besides the network's output, which is always locked."""
    others = [(reason, count) for reason, count in reasons.most_common() if reason != "network output"]
    return f"{others[0][0]} ({others[0][1]})" if others else "network output"


def timings() -> Record:
    """Seconds of the large networks at full size and of long chains: CPU time of one thread."""
    seconds: Record = {}
    for name, size in LARGE.items():
        model, example = create(name, size)
        begin = time.process_time()
        structure = inspect(model, example)
        middle = time.process_time()
        certify(model, structure, example, keep_sets=KEEP_SETS)
        seconds[name] = {"structure": middle - begin, "certificate": time.process_time() - middle}
    for length in CHAINS:
        model, example = chain(length)
        repeats = []
        for _ in range(3):
            begin = time.process_time()
            inspect(model, example)
            repeats.append(time.process_time() - begin)
        seconds[f"chain {length}"] = {"structure": statistics.median(repeats)}
    return seconds


TASKS: dict[str, Callable[[str], dict[str, Any]]] = {
    "structure": structure_of,
    "rival": attempt,
    "onnx": exported,
    "approximate": approximated,
    "timings": lambda _: timings(),
}
