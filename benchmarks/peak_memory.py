"""Peak memory of activations: the closed form beside what ONNX Runtime and LiteRT take for the same networks.

    python benchmarks/peak_memory.py
    python benchmarks/peak_memory.py --runtime litert

The networks have random weights, as memory does not depend on them: dense, and as a uniform policy leaves them within
70% of the dense memory. ONNX Runtime: by how much a process grows at most during a pass, without an arena, so that the
memory of every tensor is taken and given back by itself; plus the input. LiteRT: from the first to the last byte of the
arena that its tensors lie in, with the plain kernels. Runtimes may need virtual environments of their own: run it in
each, the figures of both are kept. The results go to benchmarks/results/peak-memory.json.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import amc
from amc.pruning.methods import MethodOptions, problem_of
from amc.pruning.methods.channel import ChannelMethod
from amc.run.provenance import environment
from amc.search import Bounds, SearchTask, create_agent, parse_budgets, roll_out
from amc.structure import inspect
from amc.zoo import create_model
from common import Record, load, machine, plain_parser, save, table

RESULT = "peak-memory.json"
NETWORKS = (
    "mobilenet_v1_imagenet",
    "mobilenet_v2",
    "torchvision:resnet50",
    "torchvision:densenet121",
    "torchvision:shufflenet_v2_x1_0",
)
BUDGET = "memory<=70%"
GAP = 4096  # bytes between two tensors of one arena, at most
MEASURED = """
import re, sys
import numpy as np
import onnxruntime as ort
path, layout = sys.argv[1:]
options = ort.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 4
options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # memory is taken and given back tensor by tensor
if layout == "plain":  # no layout in blocks of channels
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
given = session.get_inputs()[0]
shape = [size if isinstance(size, int) else 1 for size in given.shape]
image = np.ones(shape, dtype=np.float32)
held = lambda what: 1024 * int(re.search(what + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
found = []
for _ in range(7):
    before = held("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
    session.run(None, {given.name: image})
    found.append(held("VmHWM") - before)
print(sorted(found[2:])[2] + image.nbytes)
"""
SINGLE = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "0"}  # what is given back leaves the process


def options() -> argparse.ArgumentParser:
    parser = plain_parser(__doc__)
    parser.add_argument("--models", nargs="+", default=list(NETWORKS))
    parser.add_argument(
        "--runtime", nargs="+", default=["onnxruntime", "onnxruntime, plain layout"], choices=list(RUNTIMES)
    )
    return parser


def measure(args: argparse.Namespace) -> Record:
    record: Record = {"networks": {}} | load(RESULT)
    for name in args.models:
        for kind, model, example in variants(name):
            row = record["networks"].setdefault(f"{name}, {kind}", {})
            row["closed form"] = inspect(model, example).memory
            row["input"] = example.numel() * example.element_size()
            for runtime in args.runtime:
                row[runtime] = RUNTIMES[runtime](model, example)
            print(name, kind, row, flush=True)
            save(RESULT, record | {"environment": environment()})
    return load(RESULT)


def variants(name: str) -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    """The network, dense and within the budget."""
    model = create_model(name).eval()
    example = torch.zeros(1, 3, 224, 224)
    yield "dense", model, example
    method = ChannelMethod(model, inspect(model, example), MethodOptions())
    problem = problem_of(method, parse_budgets(BUDGET))
    agent = create_agent("uniform", SearchTask(problem, episodes=1, seed=0))
    agent.begin_episode(0, 0)
    keep = roll_out(problem, Bounds(problem), agent.act).keep_counts
    yield BUDGET, method.builder(None).build(np.array(keep).tolist()), example


def onnxruntime(model: nn.Module, example: torch.Tensor, layout: str = "blocked") -> int:
    """Bytes, the median of five passes."""
    with tempfile.TemporaryDirectory(prefix="amc-memory-") as folder:
        path = Path(folder) / "network.onnx"
        amc.export(model, example, path)
        command = [sys.executable, "-c", MEASURED, str(path), layout]
        return int(subprocess.run(command, env=os.environ | SINGLE, check=True, capture_output=True, text=True).stdout)


def litert(model: nn.Module, example: torch.Tensor) -> int:
    """Bytes from the first to the last tensor in the memory where the input lies, with the plain kernels."""
    from ai_edge_litert import interpreter  # in an environment of its own

    with tempfile.TemporaryDirectory(prefix="amc-memory-") as folder:
        path = Path(folder) / "network.tflite"
        amc.export(model, example, path, format="litert")
        plain = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        network = interpreter.Interpreter(str(path), num_threads=1, experimental_op_resolver_type=plain)
        network.allocate_tensors()
        given = place(network, network.get_input_details()[0]["index"])
        assert given is not None
        tensors = (place(network, detail["index"]) for detail in network.get_tensor_details())
        return joined(given, sorted(span for span in tensors if span is not None))


def place(network: Any, index: int) -> tuple[int, int] | None:
    """The first byte of a tensor, and the one after its last; None if it has no memory."""
    try:
        value = network.tensor(index)()
    except ValueError:
        return None
    begin = value.__array_interface__["data"][0]
    return (begin, begin + value.nbytes) if value.nbytes else None


def joined(given: tuple[int, int], spans: list[tuple[int, int]]) -> int:
    """The length of the memory around `given` that tensors fill without a gap."""
    least, most = given
    for begin, end in spans:
        if begin <= most + GAP and end >= least - GAP:
            least, most = min(least, begin), max(most, end)
    for begin, end in reversed(spans):
        if begin <= most + GAP and end >= least - GAP:
            least, most = min(least, begin), max(most, end)
    return most - least


RUNTIMES: dict[str, Callable[[nn.Module, torch.Tensor], int]] = {
    "onnxruntime": onnxruntime,
    "onnxruntime, plain layout": functools.partial(onnxruntime, layout="plain"),
    "litert": litert,
}


def section(record: Record) -> str:
    rows = []
    for name, row in record["networks"].items():
        cells = [f"{row[key] / 1e6:.2f}" if key in row else "–" for key in ("closed form", *RUNTIMES)]
        rows.append([name.removeprefix("torchvision:"), *cells])
    return (
        "### Peak memory of activations\n\n"
        "`python benchmarks/peak_memory.py` (and `--runtime litert` in its environment): MB at 224x224, batch 1, "
        "random weights; dense, and a uniform policy within 70% of the memory. ONNX Runtime without an arena, by the "
        "growth of its process; LiteRT's arena with the plain kernels.\n\n"
        + table(("network", "closed form", "ONNX Runtime", "the same, plain layout", "LiteRT"), rows)
        + "\n"
        + machine(record)
    )


def main() -> None:
    args = options().parse_args()
    print(section(measure(args)))


if __name__ == "__main__":
    main()
