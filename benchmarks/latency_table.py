"""How well a latency table predicts whole networks: random policies, each measured in alternation with the dense one.

    python benchmarks/latency_table.py --model resnet56 --model mobilenet_v1_050 --policies 30

Weights are random, as latency does not depend on them. The table is measured anew, and its seconds are reported.
Needs a machine on which nothing else runs. The results go to benchmarks/results/latency-table.json.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from amc.compression.latency import aligned
from amc.deploy.table import Latency, bench_networks, latency_table, open_bench
from amc.deploy.table.measuring import Told, whole_policies
from amc.pruning.methods import MethodOptions
from amc.pruning.methods.channel import ChannelMethod
from amc.run.provenance import environment
from amc.structure import inspect
from amc.zoo import create_model
from common import Record, load, measured_on, plain_parser, save, table

RESULT = "latency-table.json"
TOGETHER = 5  # policies measured at a time, beside the dense network


def options() -> argparse.ArgumentParser:
    parser = plain_parser(__doc__)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--input", type=int, default=32, help="side of the square input")
    parser.add_argument("--policies", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--points", type=int, default=6, help="widths measured on each side of a layer")
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(1)
    for name in args.model:
        record = load(RESULT)
        record.setdefault("networks", {})[f"{name} on {args.runtime}"] = measured(name, args)
        save(RESULT, record | {"environment": environment()})
    return load(RESULT)


def measured(name: str, args: argparse.Namespace) -> Record:
    model, example = create_model(name).eval(), torch.zeros(1, 3, args.input, args.input)
    structure = inspect(model, example)
    method = ChannelMethod(model, structure, MethodOptions())
    choices = [decision.choices for decision in aligned(method.decisions, None)]
    build, bench = method.builder(None).build, open_bench(args.runtime, threads=args.threads)
    with tempfile.TemporaryDirectory() as folder:  # so that no table of the cache is used
        place, told = Path(folder), Told(warn=print)
        latency = latency_table(
            model, structure, example, choices, build, bench, folder=place, points=args.points, told=told
        )
    policies = whole_policies(choices, args.policies, np.random.default_rng(1))[2:]
    rows = []
    for start in range(0, len(policies), TOGETHER):
        part = {"dense": tuple(options[-1] for options in choices)}
        part |= {str(index): keep for index, keep in enumerate(policies[start : start + TOGETHER])}
        times = bench_networks(bench, {key: build(keep) for key, keep in part.items()}, example)
        dense = times["networks"]["dense"]["latency_ms"]
        for key, keep in list(part.items())[1:]:
            entry = times["networks"][key]
            rows.append(compared(latency, keep, entry, dense, steady=times["steady"]))
            print(f"{name}: {rows[-1]}")
    errors = np.abs([entry["error"] for entry in rows])
    return {
        "mean_error": round(float(errors.mean()), 2),
        "worst_error": round(float(errors.max()), 2),
        "unsteady": sum(not entry["steady"] for entry in rows),
        "dense_ms": latency.dense_ms,
        "table": latency.summary(),
        "place": str(bench.place),
        "cores": os.cpu_count(),
        "policies": rows,
    }


def compared(latency: Latency, keep: tuple[int, ...], entry: Record, dense: float, *, steady: bool) -> Record:
    """One policy: `error` is that of the predicted share of the dense latency, in percent of the measured share."""
    predicted = float(latency.cost(np.array(keep))) / latency.dense_ms
    share = entry["latency_ms"] / dense
    return {
        "keep": list(keep), "share": round(share, 4), "predicted": round(predicted, 4),
        "error": round(100 * (predicted / share - 1), 2), "uncertainty": round(entry["uncertainty"], 4),
        "steady": steady,
    }  # fmt: skip


def section(record: Record) -> str:
    header = ["network", "policies", "mean error", "worst", "blocks timed", "seconds for the table", "not steady"]
    rows = [
        [
            name, str(len(entry["policies"])), f"{entry['mean_error']:.1f}%", f"{entry['worst_error']:.1f}%",
            str(entry["table"]["blocks"]), f"{entry['table']['seconds']:.0f}", str(entry["unsteady"]),
        ]
        for name, entry in record["networks"].items()
    ]  # fmt: skip
    return (
        "### The table against whole networks\n\n"
        "Random policies between the dense network and the least, each measured whole in alternation with the dense "
        "one (`benchmarks/latency_table.py`). The error is that of the predicted share of the dense latency.\n\n"
        + table(header, rows, rule="|---" * len(header) + "|")
        + measured_on(record)
    )


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
