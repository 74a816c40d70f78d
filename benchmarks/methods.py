"""Every method at the same budgets: channels, single weights with and without compensation, and N:M.

    python benchmarks/methods.py --model resnet20 --weights W.safetensors --data cifar10:ROOT --runs DIR

Scores before fine-tuning over the seeds, uniform policies beside them; costs recounted on the saved files; test
accuracy after fine-tuning for the first seed. Every search is a run directory under --runs, so the table can be filled
over several calls. The results go to benchmarks/results/methods-MODEL.json.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch

from amc.errors import BudgetError
from amc.run import files
from amc.run.provenance import environment
from common import Record, load, machine, percent, save, table
from searches import finetuned, on_disk, public, search_parser, searched

RESULT = "methods-{model}.json"

METHODS: dict[str, dict[str, Any]] = {
    "channel": {"method": "channel"},
    "fine-grained, masked only": {"method": "fine-grained", "reconstruct": False},
    "fine-grained, compensated": {"method": "fine-grained"},
    "2:4": {"method": "2:4"},
    "n:8": {"method": "n:8", "max_sparsity": 0.875},
}
BUDGETS = ("macs<=50%", "macs<=25%", "params<=50%", "params<=25%")
EXTRA = {"2:4": ("macs<=51%", "params<=51%")}  # the least it can reach: the first layer and the biases stay dense


def options() -> argparse.ArgumentParser:
    parser = search_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(args.threads)
    cells = [(name, budget) for budget in args.budgets for name in args.methods]
    cells += [(name, budget) for name in args.methods for budget in EXTRA.get(name, ())]
    for seed in args.seeds:
        for name, budget in cells:
            search_cell(args, name, budget, seed)
    for name, budget in cells if args.epochs else ():
        finetune_cell(args, name, budget)
    return load(RESULT.format(model=args.model))


def search_cell(args: argparse.Namespace, name: str, budget: str, seed: int) -> None:
    """Add one search of one cell of the table to the record."""
    cells = load(RESULT.format(model=args.model)).get("cells", {})
    cell: Record = cells.get(f"{name}, {budget}", {"seeds": {}})
    if "unreachable" in cell or str(seed) in cell["seeds"]:
        return
    try:
        first = seed == args.seeds[0]  # the one that is fine-tuned and tested
        run = searched(args, run_name(name, budget, seed), test=first, budget=budget, seed=seed, **METHODS[name])
    except BudgetError as error:
        cell["unreachable"] = str(error)
    else:
        cell["seeds"][str(seed)] = public(run.read_json(files.SUMMARY)) | {"file": on_disk(run)}
    keep(args, name, budget, cell)


def finetune_cell(args: argparse.Namespace, name: str, budget: str) -> None:
    """Add the fine-tuned accuracy of the cell's first seed to the record."""
    cell = load(RESULT.format(model=args.model))["cells"][f"{name}, {budget}"]
    if "unreachable" in cell:
        return
    run = finetuned(args, searched(args, run_name(name, budget, args.seeds[0])))
    summary = run.read_json(files.SUMMARY)
    cell["finetuned"] = {"epochs": args.epochs, "test": summary["slim"]["test_finetuned"]}
    cell["finetuned"] |= on_disk(run, files.MODEL_FINETUNED)
    keep(args, name, budget, cell)


def keep(args: argparse.Namespace, name: str, budget: str, cell: Record) -> None:
    """Save one cell of the table."""
    record = load(RESULT.format(model=args.model))
    cells = record.get("cells", {}) | {f"{name}, {budget}": cell}
    common = {"model": args.model, "episodes": args.episodes, "search_images": args.search_images}
    save(RESULT.format(model=args.model), record | common | {"cells": cells, "environment": environment()})


def run_name(name: str, budget: str, seed: int) -> str:
    short = name.replace("fine-grained, masked only", "fine-plain").replace("fine-grained, compensated", "fine")
    return f"{short.replace(':', 'of')}-{budget.replace('<=', '').rstrip('%')}-seed{seed}"


def section(record: Record) -> str:
    rows = []
    for key, cell in record["cells"].items():
        name, _, budget = key.rpartition(", ")
        rows.append([name, budget, *_cells(cell, budget.partition("<=")[0])])
    header = ["method", "budget", "score, median (least to most)", "uniform", "recounted", "fine-tuned, test"]
    return (
        f"## Methods and budgets: {record['model']}\n\n"
        f"`python benchmarks/methods.py --model {record['model']} --weights W --data cifar10:DATA --runs DIR "
        f"--episodes {record['episodes']} --search-images {record['search_images']}`: score on the search split before "
        f"any fine-tuning, {record['episodes']} episodes, beside the uniform policy of the same budget (median of "
        "the seeds); the budgeted cost as counted on the saved networks; the first seed's test accuracy after "
        "fine-tuning. "
        "MACs and parameters of masked networks are those that are not zero.\n\n" + table(header, rows)
    ) + machine(record)


def _cells(cell: Record, metric: str) -> list[str]:
    if "unreachable" in cell:
        return [f"out of reach: {cell['unreachable'].partition(': even')[2].partition(' (')[0].strip()}", "", "", ""]
    runs = list(cell["seeds"].values())
    scores = [run["slim"]["score"] for run in runs]
    uniform = [run["baselines"]["uniform"]["score"] for run in runs if "uniform" in run["baselines"]]
    shares = [run["slim"][metric] / run["dense"][metric] for run in runs]
    tuned = cell.get("finetuned")
    return [
        f"{percent(statistics.median(scores))} "
        + (f"({percent(min(scores))} to {percent(max(scores))})" if len(scores) > 1 else "(one seed)"),
        percent(statistics.median(uniform)) if uniform else "",
        f"{100 * min(shares):.2f} to {100 * max(shares):.2f}%",
        f"{percent(tuned['test'])} ({tuned['epochs']} epochs)" if tuned else "",
    ]


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
