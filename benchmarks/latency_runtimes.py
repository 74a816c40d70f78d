"""Latency, MACs, parameters and file size on every runtime that is installed, one thread, batch 1.

    python benchmarks/latency_runtimes.py trained --runs DIR --model resnet56 --model mobilenet_v1_050
    python benchmarks/latency_runtimes.py imagenet

`trained`: the runs that latency_search.py left under --runs: dense, uniform at half the MACs, and the two searches.
`imagenet`: networks for 224x224 images with random weights, as latency does not depend on them: dense, uniform at half
the MACs, and the channel lists that the paper's authors published.

Variants of one network are timed in alternation; ratios are to the dense one in the same rounds. Runtimes may need
virtual environments of their own: run it in each, every runtime's figures are kept. Needs a machine on which nothing
else runs. The results go to benchmarks/results/latency-runtimes.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from amc import load_run
from amc.cli.jobs.origin import network_of
from amc.deploy.measure import MeasureSettings
from amc.deploy.runtimes import installed_runtimes
from amc.deploy.timing import latency_record
from amc.errors import AmcError
from amc.pruning.methods import MethodOptions
from amc.pruning.methods.channel import ChannelMethod
from amc.run import files
from amc.run.directory import RunDir
from amc.run.provenance import environment
from amc.run.settings import Source
from amc.search import Bounds, Problem, SearchTask, create_agent, parse_budgets, roll_out
from amc.structure import count_macs, count_params, inspect
from amc.zoo import create_model
from common import Record, load, measured_on, plain_parser, save, table

RESULT = "latency-runtimes.json"
IMAGENET = ("mobilenet_v1_imagenet", "mobilenet_v2", "torchvision:resnet50", "torchvision:vgg16")
PUBLISHED = {  # arXiv 1802.03494's channel lists for MobileNet-V1, by the authors' own code
    "published, half the FLOPs": (24, 48, 96, 80, 192, 200, 328, 352, 368, 360, 328, 400, 736, 752),
    "published, half the time": (16, 48, 88, 80, 192, 168, 336, 360, 360, 352, 352, 368, 768, 680),
}

Variants = dict[str, tuple[nn.Module, dict[str, Any]]]


# Latency ratios to the dense network on a Pixel 1 with TFLite, one thread, as cited from the paper.
PIXEL = {"dense": "123 ms", "published, half the FLOPs": "1.81×", "published, half the time": "1.95×"}

TITLES = {"trained": "Trained networks, 32x32", "imagenet": "ImageNet shapes, 224x224, random weights"}
TRAINED = "Latency was searched for on ONNX Runtime; scores are those of the searches, before any fine-tuning."


def options() -> argparse.ArgumentParser:
    parser = plain_parser(__doc__)
    parser.add_argument("kind", choices=("trained", "imagenet"))
    parser.add_argument("--runs", type=Path, help="needed for trained")
    parser.add_argument("--model", action="append", help="needed for trained")
    parser.add_argument("--runtime", action="append", help="default: all that are installed")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--max-seconds", type=float, default=60.0)
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(1)
    for name in args.model or IMAGENET:
        variants, example = trained(args.runs, name) if args.kind == "trained" else imagenet(name)
        for runtime in args.runtime or installed_runtimes():
            timed(args, name, variants, example, runtime)
    return load(RESULT)


def timed(args: argparse.Namespace, name: str, variants: Variants, example: torch.Tensor, runtime: str) -> None:
    """Measure on one runtime and save. A network that the runtime cannot express gets its error saved instead."""
    settings = MeasureSettings(rounds=args.rounds, max_seconds=args.max_seconds)
    networks = {variant: module for variant, (module, _) in variants.items()}
    try:
        times: Record = latency_record(networks, example, runtime=runtime, settings=settings)
    except AmcError as error:
        times = {"error": str(error)}
        print(f"{name} on {runtime}: {error}")
    record = load(RESULT)
    entry = record.setdefault(args.kind, {}).setdefault(name, {"variants": {}, "runtimes": {}})
    for variant, (module, more) in variants.items():
        costs = {"macs": count_macs(module, example), "params": count_params(module)}
        entry["variants"][variant] = costs | more
    entry["runtimes"][runtime] = times
    save(RESULT, record | {"environment": environment()})
    for variant, time in times.get("networks", {}).items():
        print(f"{name} on {runtime}: {variant} {time['latency_ms']:.3f} ms, ratio {time.get('ratio', 1):.3f}")


def trained(runs: Path, name: str) -> tuple[Variants, torch.Tensor]:
    """Dense, uniform, and the searches under MACs and latency, each with its search score."""
    macs, timed_run = (RunDir.open(runs / f"{name}-{kind}-0") for kind in ("macs", "latency"))
    summary, other = (run.read_json(files.SUMMARY) for run in (macs, timed_run))
    example = torch.zeros(1, *macs.config()["input_shape"])
    dense = network_of(Source.from_json(macs.config()), macs.path)
    return {
        "dense": (dense, {"score": summary["dense"]["score"]}),
        "uniform, 50% MACs": (uniform(dense, example), {"score": summary["baselines"]["uniform"]["score"]}),
        "AMC, 50% MACs": (load_run(macs.path, finetuned=False), {"score": summary["slim"]["score"]}),
        "AMC, 50% latency": (load_run(timed_run.path, finetuned=False), {"score": other["slim"]["score"]}),
    }, example


def imagenet(name: str) -> tuple[Variants, torch.Tensor]:
    """Dense, uniform, and for MobileNet-V1 the published lists."""
    model, example = create_model(name).eval(), torch.zeros(1, 3, 224, 224)
    variants: Variants = {"dense": (model, {}), "uniform, 50% MACs": (uniform(model, example), {})}
    if name == "mobilenet_v1_imagenet":
        structure = inspect(model, example)
        build = ChannelMethod(model, structure, MethodOptions(round_to=1)).builder(None).build
        variants |= {title: (build(counts), {}) for title, counts in PUBLISHED.items()}
    return variants, example


def uniform(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """The same share of every group, as large as half the MACs allow."""
    method = ChannelMethod(model, inspect(model, example), MethodOptions())
    problem = Problem(method.decisions, method.costs, parse_budgets("macs<=50%"))
    agent = create_agent("uniform", SearchTask(problem, episodes=1, seed=0))
    agent.begin_episode(0, 0)
    keep = roll_out(problem, Bounds(problem), agent.act).keep_counts
    assert problem.cost(problem.metric, keep) <= problem.limit(problem.budgets[0])
    return method.builder(None).build(np.array(keep).tolist())


def section(record: Record) -> str:
    text = ""
    for kind in (kind for kind in TITLES if kind in record):
        text += (
            f"### {TITLES[kind]}\n\n"
            "Each cell: ms and speed-up over the dense network, measured in the same rounds; one thread, batch 1, "
            "float32 (`benchmarks/latency_runtimes.py`). `?` marks a difference within the noise. "
            f"{TRAINED * (kind == 'trained')}\n\n"
        )
        text += "".join(f"{_network(name, entry)}\n" for name, entry in record[kind].items())
    return text + measured_on(record)


def _network(name: str, entry: Record) -> str:
    """One network: a table of its variants on all runtimes, and which runtimes failed or were not steady."""
    runtimes, variants = entry["runtimes"], entry["variants"]
    versions = ", ".join(f"{r} {times['runtime_version']}" for r, times in runtimes.items() if "networks" in times)
    columns: dict[str, list[str]] = {
        "network": list(variants),
        "MACs": [f"{costs['macs'] / 1e6:.1f} M" for costs in variants.values()],
        "parameters": [f"{costs['params'] / 1e6:.2f} M" for costs in variants.values()],
        "file": [_megabytes(runtimes.values(), variant) for variant in variants],
    }
    if any("score" in costs for costs in variants.values()):
        columns["search score"] = [f"{c['score']:.4f}" if "score" in c else "" for c in variants.values()]
    columns |= {runtime: [_time(times, variant) for variant in variants] for runtime, times in runtimes.items()}
    if any(variant in PIXEL for variant in variants if variant != "dense"):
        columns["Pixel 1 (cited)"] = [PIXEL.get(variant, "") for variant in variants]
    rows = zip(*columns.values(), strict=True)
    remarks = "".join(_remark(runtime, times) for runtime, times in runtimes.items())
    return f"**{name}** ({versions})\n\n" + table(columns, rows, rule="|---" * len(columns) + "|") + remarks


def _time(times: Record, variant: str) -> str:
    """Milliseconds, and the speed-up over the dense network."""
    time = times.get("networks", {}).get(variant)
    if time is None:
        return "—"
    if "ratio" not in time:
        return f"{time['latency_ms']:.2f}"
    mark = "?" if time["verdict"] == "undecided" else ""
    return f"{time['latency_ms']:.2f} ({1 / time['ratio']:.2f}×{mark})"


def _megabytes(runtimes: Iterable[Record], variant: str) -> str:
    """The smallest of the runtimes' files."""
    files = [times["networks"][variant]["file_bytes"] for times in runtimes if variant in times.get("networks", {})]
    sizes = [size for size in files if size]
    return f"{min(sizes) / 1e6:.2f} MB" if sizes else ""


def _remark(runtime: str, times: Record) -> str:
    if "error" in times:
        return f"\n{runtime}: {times['error']}\n"
    if times["steady"]:
        return ""
    doubt = max(time["uncertainty"] / time["ratio"] for time in times["networks"].values() if "ratio" in time)
    return f"\n{runtime} was not steady: its speed-ups may be off by {doubt:.0%}.\n"


def main() -> None:
    parser = options()
    args = parser.parse_args()
    if args.kind == "trained" and (args.runs is None or not args.model):
        parser.error("trained needs --runs and --model")
    print(section(measure(args)))


if __name__ == "__main__":
    main()
