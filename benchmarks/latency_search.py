"""Searches for half the latency, and what comes out, measured afterwards in processes of their own.

    python benchmarks/latency_search.py --model resnet56 --weights W.safetensors --data cifar10:ROOT --runs DIR

One search a seed under `latency<=50%`, and one under `macs<=50%` with the first seed to compare the time with. The runs
are kept under --runs and resumed where they stopped. Needs a machine on which nothing else runs. The results go to
benchmarks/results/latency-search-MODEL.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from amc.run import files
from amc.run.directory import RunDir
from amc.run.provenance import environment
from common import Record, load, measured_on, save, table
from searches import public, run_path, search_parser, searched

RESULT = "latency-search-{model}.json"


def options() -> argparse.ArgumentParser:
    parser = search_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--share", default="50%", help="of the dense latency")
    parser.add_argument("--again", type=int, default=5, help="measurements afterwards, each in a process of its own")
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(args.threads)
    name = RESULT.format(model=args.model)
    record = load(name)
    record |= {"model": args.model, "episodes": args.episodes, "search_images": args.search_images}
    record["macs"] = summary_of(args, "macs-0", record.get("macs", {}), budget="macs<=50%", seed=0)
    save(name, record | {"environment": environment()})
    budget, searches = f"latency<={args.share}", record.setdefault("latency", {})
    for seed in range(args.seeds):
        before = searches.get(str(seed), {})
        run = f"latency-{seed}"
        searches[str(seed)] = summary_of(args, run, before, budget=budget, seed=seed, runtime=args.runtime)
        save(name, record | {"environment": environment()})
    return load(name)


def summary_of(args: argparse.Namespace, name: str, before: Record, **settings: Any) -> Record:
    """The summary of a search with its wall-clock seconds, and its network measured afterwards.

    `before` is what an earlier call saved: a finished search keeps its seconds and its measurements.
    """
    path = run_path(args, name)
    done, began = path.exists() and RunDir.open(path).has(files.SUMMARY), time.perf_counter()
    run = searched(args, name, **settings)
    seconds = before.get("wall_seconds") if done else round(time.perf_counter() - began, 1)
    return {
        **public(run.read_json(files.SUMMARY)),
        "wall_seconds": seconds,
        "afterwards": before.get("afterwards") or [measured_again(run, args.runtime) for _ in range(args.again)],
    }


def measured_again(run: RunDir, runtime: str) -> Record:
    """The latencies that `amc latency RUN` reports."""
    command = [sys.executable, "-m", "amc.cli", "latency", str(run.path), "--runtime", runtime, "--json"]
    record = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    dense, slim = (record["networks"][name] for name in ("dense", "slim"))
    return {
        "dense_ms": dense["latency_ms"], "slim_ms": slim["latency_ms"], "share": slim["ratio"],
        "uncertainty": slim["uncertainty"], "steady": record["steady"],
    }  # fmt: skip


def section(records: Sequence[Record]) -> str:
    """One table of all networks."""
    header = ["network", "search", "in the search", "afterwards", "score", "policies measured, scored again", "search"]
    header += ["deciding", "table"]
    return (
        "### Searches for half the latency\n\n"
        "`benchmarks/latency_search.py`: the share of the dense latency as the search measured it, and as "
        "`amc latency RUN` measures it afterwards, the median and the range of several runs, a process each. "
        "`search` is the time of the episodes, `deciding` that of measuring the best policies and of scoring "
        "neighbours (and as a share of the episodes), `table` that of the latency table, which later searches "
        "find in the cache.\n\n"
        + table(header, [cells for record in records for cells in _rows(record)], rule="|---" * len(header) + "|")
        + measured_on(records[-1])
    )


def _rows(record: Record) -> list[list[str]]:
    searches = {"macs<=50%": record["macs"]} if record.get("macs") else {}
    searches |= {f"latency<=50%, seed {seed}": search for seed, search in sorted(record.get("latency", {}).items())}
    return [_cells(record["model"], title, search) for title, search in searches.items()]


def _cells(model: str, title: str, search: Record) -> list[str]:
    latency, shares = search.get("latency"), [after["share"] for after in search["afterwards"]]
    unsteady = sum(not after["steady"] for after in search["afterwards"])
    doubt = f", {unsteady} of {len(shares)} not steady" if unsteady else ""
    after = f"{statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%}){doubt}"
    score, wall = f"{search['slim']['score']:.4f}", search["wall_seconds"]
    if not latency:
        return [model, f"`{title}`", "", after, score, "", f"{wall:.0f} s", "", ""]
    table_seconds = latency["table"]["seconds"] * title.endswith("seed 0")
    episodes = wall - latency["seconds"] - table_seconds
    return [
        model, f"`{title}`", f"{latency['share']:.1%}", after, score,
        f"{latency['measured']}, {latency['scored_again']}", f"{episodes:.0f} s",
        f"{latency['seconds']:.0f} s ({latency['seconds'] / episodes:.0%})",
        f"{table_seconds:.0f} s" if table_seconds else "cached",
    ]  # fmt: skip


def main() -> None:
    print(section([measure(options().parse_args())]))


if __name__ == "__main__":
    main()
