"""Sparse TFLite files: their bytes, what XNNPACK will make of them, and dense beside sparse here and on Arm.

    python benchmarks/sparse_files.py --folder DIR
    python benchmarks/sparse_files.py --folder DIR --arm "ssh board python3"
    python benchmarks/sparse_files.py --folder DIR --arm ./arm-python --emulated "QEMU 10, user mode, Cortex-A76"

Weights are random, the smallest of the 1x1 convolutions and the classifier zero (of all layers in ResNet-20). A file
that `amc export` would refuse is written all the same, with the check switched off, to see whether it is wrong.

`--arm` is a command that runs a Python with ai-edge-litert on an Arm machine that sees DIR under the same path. Its
times are seconds of processor time, so other work disturbs them little; an emulator's say no more than "yes" or "no".

Each network's figures are kept once measured, also when the rest is not: run it again to fill in what is missing, or
with --again to measure once more. Needs amc-compress[litert]; times here need a machine on which nothing else runs.
The outcome goes to benchmarks/results/sparse-files.json, and `python benchmarks/render_sparse.py` shows it.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from amc.deploy import MeasureSettings, latency_of_files
from amc.deploy.formats import get_format, sparse_tflite, tflite_graph
from amc.deploy.formats.sparse_kernels import sparse_kernels
from amc.deploy.runtimes import get_runtime
from amc.errors import AmcError
from amc.provenance import environment
from amc.zoo import create_model
from common import load, save

RESULT = "sparse-files.json"


@dataclass(frozen=True)
class Case:
    """A network with zeros in it."""

    build: Callable[[], nn.Module]
    side: int = 32  # of the square input
    zeros: float = 0.9  # share of the weights of each 1x1 convolution, and of the classifier
    classifier: float | None = None  # where that of the classifier is another
    everywhere: bool = False  # zeros in all other convolutions too
    half: bool = False  # weights stored in 16 bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the files; those that it has are used again")
    parser.add_argument("--network", action="append", choices=list(CASES), metavar="NAME", help="default: all")
    parser.add_argument("--again", action="store_true", help="measure what has been measured already")
    parser.add_argument("--rounds", type=int, default=20, help="here, at least")
    parser.add_argument("--max-seconds", type=float, default=60.0, help="here, a network")
    parser.add_argument("--arm", help="command that runs Python on an Arm machine")
    parser.add_argument("--emulated", metavar="BY", help="what emulates the Arm machine")
    parser.add_argument("--arm-rounds", type=int, default=20)
    parser.add_argument("--arm-seconds", type=float, default=60.0, help="no round begins after this")
    args = parser.parse_args()
    if args.emulated and not args.arm:
        parser.error("--emulated says what kind of machine --arm is; give --arm too")
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.network or CASES:
        dense, sparse = written(args.folder.resolve(), name)
        keep(name, files(dense, sparse))
        if not sparse.exists():
            continue
        if args.again or "here" not in known(name):
            settings = MeasureSettings(rounds=args.rounds, max_seconds=args.max_seconds)
            keep(name, {"here": here(dense, sparse, CASES[name], settings)})
        if args.arm and (args.again or "arm" not in known(name)):
            try:
                found = on_arm(shlex.split(args.arm), dense, sparse, rounds=args.arm_rounds, seconds=args.arm_seconds)
            except AmcError as error:
                print(f"{name}: {error}", flush=True)
                continue
            keep(name, {"arm": found | {"emulated": args.emulated}})
        print(f"{name}: {json.dumps(known(name))}", flush=True)


def known(name: str) -> dict[str, Any]:
    """What has been kept of a network."""
    found: dict[str, Any] = load(RESULT).get("networks", {}).get(name, {})
    return found


def keep(name: str, found: dict[str, Any]) -> None:
    """Add to it; networks stay in the order in which they are listed here."""
    networks = load(RESULT).get("networks", {})
    networks[name] = networks.get(name, {}) | found
    save(RESULT, {"networks": {case: networks[case] for case in CASES if case in networks}})


def written(folder: Path, name: str) -> tuple[Path, Path]:
    """Paths of the dense and the sparse file; the second is not written where no weight has zeros enough."""
    stem = "".join(letter if letter.isalnum() else "-" for letter in name)
    dense, sparse = folder / f"{stem}.tflite", folder / f"{stem}-sparse.tflite"
    if not dense.exists():
        part = folder / f"part-{stem}.tflite"
        case = CASES[name]
        example = torch.randn(1, 3, case.side, case.side, generator=torch.Generator().manual_seed(1))
        get_format("litert").write(network(case), (example,), [part], dynamic=False, half=case.half)
        part.rename(dense)
    if not sparse.exists() and has_zeros(CASES[name]):
        sparse.write_bytes(unchecked(dense.read_bytes()))
    return dense, sparse


def has_zeros(case: Case) -> bool:
    return max(case.zeros, case.classifier or 0.0) > 0


def unchecked(data: bytes) -> bytes:
    """`sparsify_tflite` without its check for networks that Arm would get wrong."""
    judge = sparse_tflite.judge
    with mock.patch.object(sparse_tflite, "judge", lambda *graph: replace(judge(*graph), wrong=False)):
        return sparse_tflite.sparsify_tflite(data)


def files(dense: Path, sparse: Path) -> dict[str, Any]:
    """Bytes, the verdict, and what `sparsify_tflite` says where it refuses."""
    data = dense.read_bytes()
    try:
        sparse_tflite.sparsify_tflite(data)
        refused = None
    except AmcError as error:
        refused = str(error)
    return {
        "dense_bytes": len(data), "sparse_bytes": sparse.stat().st_size if sparse.exists() else None,
        "verdict": asdict(sparse_kernels(data)), "refused": refused,
    }  # fmt: skip


def here(dense: Path, sparse: Path, case: Case, settings: MeasureSettings) -> dict[str, Any]:
    """Outputs and times of the two on this machine, one thread; `plain` tells what is not due to sparse storage."""
    inputs = (torch.randn(1, 3, case.side, case.side, generator=torch.Generator().manual_seed(2)),)
    engine = get_runtime("litert")
    first, second = (engine.load([path], threads=1, half=False).run(inputs)[0].clone() for path in (dense, sparse))
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "model.tflite")
        plain.write_bytes(untransposed(dense.read_bytes()))
        networks = {name: ([path], inputs) for name, path in (("dense", dense), ("plain", plain), ("sparse", sparse))}
        measured = latency_of_files(networks, runtime="litert", settings=settings)
    difference = float((first - second).abs().max() / first.abs().max())
    return {"difference": finite(difference), "environment": environment()} | measured


def untransposed(data: bytes) -> bytes:
    """What `sparsify_tflite` would make of a file if it stored nothing sparse: the mean is not transposed any more."""
    schema, model = tflite_graph.load_schema(), tflite_graph.read_model(data)
    for graph in model.subgraphs:
        tflite_graph.fold_transposed_means_(schema, model, graph)
    return tflite_graph.write_model(schema, model)


def on_arm(command: Sequence[str], dense: Path, sparse: Path, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Outputs and times of the two on another machine, one thread: the program goes over on standard input."""
    call = f"{compare_files.__name__}({str(dense)!r}, {str(sparse)!r}, {rounds}, {seconds})"
    program = f"{inspect.getsource(compare_files)}\n\n{call}\n"
    done = subprocess.run([*command, "-"], input=program, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AmcError(f"{shlex.join(command)} ended with code {done.returncode}:\n{done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"difference": finite(found["difference"])}


def finite(value: float) -> float | None:
    """None where outputs were not even numbers."""
    return value if math.isfinite(value) else None


def compare_files(dense: str, sparse: str, rounds: int, seconds: float) -> None:
    """Run the two files in alternation and print a line of JSON. Self-contained: its source is all that goes over."""
    import json
    import platform
    import time
    from importlib.metadata import version

    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    runs, outputs, times = {}, {}, {"dense": [], "sparse": []}
    for name, path in (("dense", dense), ("sparse", sparse)):
        runs[name] = interpreter = Interpreter(model_path=path, num_threads=1)
        interpreter.allocate_tensors()
        entry = interpreter.get_input_details()[0]
        image = np.random.default_rng(0).standard_normal(entry["shape"]).astype(np.float32)
        interpreter.set_tensor(entry["index"], image)
        interpreter.invoke()  # warms up
        outputs[name] = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    begin, order, done = time.perf_counter(), list(runs), 0
    while done < rounds and (done < 2 or time.perf_counter() - begin < seconds):
        for name in order:
            calls = []
            while len(calls) < 100 and sum(calls) < 0.1:
                start = time.process_time()
                runs[name].invoke()
                calls.append(time.process_time() - start)
            times[name].append(float(np.median(calls)))
        order.reverse()
        done += 1
    difference = np.abs(outputs["dense"] - outputs["sparse"]).max() / np.abs(outputs["dense"]).max()
    ratios = sorted(b / a for a, b in zip(times["dense"], times["sparse"], strict=True))
    found = {
        "difference": float(difference), "dense_ms": min(times["dense"]) * 1e3, "sparse_ms": min(times["sparse"]) * 1e3,
        "ratio": min(times["sparse"]) / min(times["dense"]), "ratio_range": [ratios[0], ratios[-1]], "rounds": done,
        "machine": platform.machine(), "system": platform.system(), "python": platform.python_version(),
        "litert": version("ai-edge-litert"), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    print(json.dumps(found))


def network(case: Case) -> nn.Module:
    """With random weights, batch norms that do something, and the case's zeros."""
    torch.manual_seed(0)
    model = case.build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.5, 1.5), (module.bias.data, -0.2, 0.2),
            ):  # fmt: skip
                assert values is not None
                values.uniform_(low, high)
        elif isinstance(module, nn.Linear):
            zero_smallest_(module.weight.data, case.zeros if case.classifier is None else case.classifier)
        elif isinstance(module, nn.Conv2d) and (case.everywhere or module.kernel_size == (1, 1)):
            zero_smallest_(module.weight.data, case.zeros)
    return model


def zero_smallest_(weight: Tensor, share: float) -> None:
    """The `share` of the entries that is least in magnitude."""
    count = round(share * weight.numel())
    weight.view(-1)[weight.abs().flatten().argsort()[:count]] = 0


class InvertedResiduals(nn.Module):
    """MobileNet-V2's blocks: all that the sparse kernels take, or one thing that they do not."""

    def __init__(
        self,
        activation: Callable[[], nn.Module] = nn.ReLU6,
        *,
        stem_stride: int = 2,
        middle: nn.Module | None = None,
        squeeze: bool = False,
        window: bool = False,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            block(3, 32, 3, activation, stride=stem_stride),
            block(32, 128, 1, activation),
            middle or nn.Identity(),
            InvertedResidual(128, 256, activation, squeeze=squeeze),
            InvertedResidual(128, 256, activation, squeeze=squeeze),
            block(128, 512, 1, activation),
        )
        self.classifier = nn.Linear(512, 100)
        self._window = window

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to logits `[N, 100]`."""
        x = self.features(x)
        pooled = avg_pool2d(x, x.shape[-1]).flatten(1) if self._window else x.mean((2, 3))
        logits: Tensor = self.classifier(pooled)
        return logits


class InvertedResidual(nn.Module):
    """1x1 to more channels, depthwise 3x3, 1x1 back, and a sum."""

    def __init__(self, channels: int, inner: int, activation: Callable[[], nn.Module], *, squeeze: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            block(channels, inner, 1, activation),
            block(inner, inner, 3, activation, groups=inner),
            SqueezeExcitation(inner) if squeeze else nn.Identity(),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = x + self.body(x)
        return total


class SqueezeExcitation(nn.Module):
    """Each channel times a factor that depends on the means of all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factors = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels // 4, 1), nn.ReLU(),
            nn.Conv2d(channels // 4, channels, 1), nn.Hardsigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = x * self.factors(x)
        return scaled


def block(
    inputs: int, outputs: int, kernel: int, activation: Callable[[], nn.Module], *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), activation())


MOBILENET = partial(create_model, "mobilenet_v1_imagenet")
CASES = {
    **{f"MobileNet-V1, 224×224, {zeros:.0%} zeros": Case(MOBILENET, 224, zeros) for zeros in (0, 0.5, 0.7, 0.8, 0.9)},
    "inverted residuals, ReLU6": Case(InvertedResiduals),
    "the same with LeakyReLU": Case(partial(InvertedResiduals, nn.LeakyReLU)),
    "the same with SiLU": Case(partial(InvertedResiduals, nn.SiLU)),
    "the same in 16 bits": Case(InvertedResiduals, half=True),
    "the same with 70% zeros": Case(InvertedResiduals, zeros=0.7),
    "the same with 60% zeros": Case(InvertedResiduals, zeros=0.6),
    "the same with 80% zeros and a dense classifier": Case(InvertedResiduals, zeros=0.8, classifier=0.0),
    "the same with 90% zeros and a dense classifier": Case(InvertedResiduals, zeros=0.9, classifier=0.0),
    "the same with 60% zeros and 98% in the classifier": Case(InvertedResiduals, zeros=0.6, classifier=0.98),
    "the same with a first layer of stride 1": Case(partial(InvertedResiduals, stem_stride=1), 16),
    "MobileNet-V1 for 32×32": Case(partial(create_model, "mobilenet_v1")),
    "ResNet-20": Case(partial(create_model, "resnet20"), everywhere=True),
    "inverted residuals, average pooling as a window": Case(partial(InvertedResiduals, window=True)),
    "the same with squeeze-and-excitation": Case(partial(InvertedResiduals, squeeze=True)),
    "the same with a max pooling in the middle": Case(lambda: InvertedResiduals(middle=nn.MaxPool2d(2))),
    "the same with a 3x3 convolution in the middle": Case(
        lambda: InvertedResiduals(middle=nn.Conv2d(128, 128, 3, padding=1))
    ),
    "the same with a 1x1 convolution of stride 2 in the middle": Case(
        lambda: InvertedResiduals(middle=nn.Conv2d(128, 128, 1, stride=2))
    ),
    "the same with a depthwise 7x7 convolution in the middle": Case(
        lambda: InvertedResiduals(middle=nn.Conv2d(128, 128, 7, padding=3, groups=128))
    ),
}


if __name__ == "__main__":
    main()
