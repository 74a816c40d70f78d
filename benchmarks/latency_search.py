"""Searches for half the latency, and what comes out, measured afterwards in processes of their own.

    python benchmarks/latency_search.py --model resnet56 --weights W.safetensors --data cifar10:ROOT --runs DIR

One search a seed under `latency<=50%`, and one under `macs<=50%` with the first seed to compare the time with. The runs
are kept under --runs and resumed where they stopped. Needs a machine on which nothing else runs; the outcome goes to
benchmarks/results/latency-search-MODEL.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import torch

from amc import rundir
from amc.provenance import environment
from amc.rundir import RunDir
from common import load, save
from searches import parser, public, searched


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--runtime", default="onnxruntime")
    made.add_argument("--share", default="50%", help="of the dense latency")
    made.add_argument("--again", type=int, default=5, help="measurements afterwards, each in a process of its own")
    args = made.parse_args()
    torch.set_num_threads(args.threads)
    name = f"latency-search-{args.model}.json"
    save(name, load(name) | {"macs": under(args, "macs-0", budget="macs<=50%", seed=0)})
    for seed in range(args.seeds):
        found = under(args, f"latency-{seed}", budget=f"latency<={args.share}", seed=seed, runtime=args.runtime)
        record = load(name)
        record.setdefault("latency", {})[str(seed)] = found
        common = {"model": args.model, "episodes": args.episodes, "search_images": args.search_images}
        save(name, record | common | {"environment": environment()})


def under(args: argparse.Namespace, name: str, **settings: Any) -> dict[str, Any]:
    """The summary of a search with its wall-clock seconds, and its network measured afterwards."""
    path = args.runs / f"{args.model}-{name}"
    known = load(f"latency-search-{args.model}.json")
    before = known.get("macs", {}) if name == "macs-0" else known.get("latency", {}).get(str(settings["seed"]), {})
    done, began = path.exists() and RunDir.open(path).has(rundir.SUMMARY), time.perf_counter()
    run = searched(args, name, **settings)
    seconds = before.get("wall_seconds") if done else round(time.perf_counter() - began, 1)
    return {
        **public(run.read_json(rundir.SUMMARY)),
        "wall_seconds": seconds,
        "afterwards": before.get("afterwards") or [measured_again(run, args.runtime) for _ in range(args.again)],
    }


def measured_again(run: RunDir, runtime: str) -> dict[str, Any]:
    """`amc latency RUN`, as a user would."""
    command = [sys.executable, "-m", "amc.cli", "latency", str(run.path), "--runtime", runtime, "--json"]
    record = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    dense, slim = (record["networks"][name] for name in ("dense", "slim"))
    return {
        "dense_ms": dense["latency_ms"], "slim_ms": slim["latency_ms"], "share": slim["ratio"],
        "uncertainty": slim["uncertainty"], "steady": record["steady"],
    }  # fmt: skip


if __name__ == "__main__":
    main()
