"""Every method at the same budgets: channels, single weights with and without compensation, and N:M.

    python benchmarks/methods.py --model resnet20 --weights W.safetensors --data cifar10:ROOT --runs DIR

Scores before fine-tuning over the seeds, uniform policies beside; costs recounted on the saved files; test accuracy
after fine-tuning for the first seed. Every search is a run directory under --runs, so that the table can be filled over
several calls. The outcome goes to benchmarks/results/methods-MODEL.json.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from amc import rundir
from amc.errors import BudgetError
from amc.provenance import environment
from common import load, save
from searches import finetuned, on_disk, parser, public, searched

METHODS = {
    "channel": {"method": "channel"},
    "fine-grained, masked only": {"method": "fine-grained", "reconstruct": False},
    "fine-grained, compensated": {"method": "fine-grained"},
    "2:4": {"method": "2:4"},
    "n:8": {"method": "n:8", "max_sparsity": 0.875},
}
BUDGETS = ("macs<=50%", "macs<=25%", "params<=50%", "params<=25%")
EXTRA = {"2:4": ("macs<=51%", "params<=51%")}  # the least it can reach: the first layer and the biases stay dense


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    cells = [(name, budget) for budget in args.budgets for name in args.methods]
    cells += [(name, budget) for name in args.methods for budget in EXTRA.get(name, ())]
    for seed in args.seeds:
        for name, budget in cells:
            one_cell(args, name, budget, seed)
    for name, budget in cells if args.epochs else ():
        cell = load(file_of(args))["cells"][f"{name}, {budget}"]
        if "unreachable" not in cell:
            run = finetuned(args, searched(args, run_name(name, budget, args.seeds[0])))
            summary = run.read_json(rundir.SUMMARY)
            cell["finetuned"] = {"epochs": args.epochs, "test": summary["slim"]["test_finetuned"]}
            cell["finetuned"] |= on_disk(run, rundir.MODEL_FINETUNED)
            keep(args, name, budget, cell)


def one_cell(args: argparse.Namespace, name: str, budget: str, seed: int) -> None:
    """One search of one cell of the table, added to the record."""
    cell: dict[str, Any] = load(file_of(args)).get("cells", {}).get(f"{name}, {budget}", {"seeds": {}})
    if "unreachable" in cell or str(seed) in cell["seeds"]:
        return
    try:
        first = seed == args.seeds[0]  # the one that is fine-tuned and tested
        run = searched(args, run_name(name, budget, seed), test=first, budget=budget, seed=seed, **METHODS[name])
    except BudgetError as error:
        cell["unreachable"] = str(error)
    else:
        cell["seeds"][str(seed)] = public(run.read_json(rundir.SUMMARY)) | {"file": on_disk(run)}
    keep(args, name, budget, cell)


def keep(args: argparse.Namespace, name: str, budget: str, cell: dict[str, Any]) -> None:
    record = load(file_of(args))
    cells = record.get("cells", {}) | {f"{name}, {budget}": cell}
    common = {"model": args.model, "episodes": args.episodes, "search_images": args.search_images}
    save(file_of(args), record | common | {"cells": cells, "environment": environment()})


def run_name(name: str, budget: str, seed: int) -> str:
    short = name.replace("fine-grained, masked only", "fine-plain").replace("fine-grained, compensated", "fine")
    return f"{short.replace(':', 'of')}-{budget.replace('<=', '').rstrip('%')}-seed{seed}"


def file_of(args: argparse.Namespace) -> str:
    return f"methods-{args.model}.json"


def arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--budgets", nargs="+", default=list(BUDGETS))
    options.add_argument("--methods", nargs="+", default=list(METHODS))
    return options.parse_args()


if __name__ == "__main__":
    main()
