"""What it would be worth to refit each layer to the pruned network's own activations, as pruned and after recovery.

    python benchmarks/sequential.py --model resnet20 --weights W.safetensors --data cifar10:ROOT --search-images 2000

The uniform policy of each budget is built with both refits, from the same calibration and with the same channels, and
both networks are recovered in the same way. The results go to benchmarks/results/sequential-MODEL.json.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor, nn

from amc.compression.scoring.evaluator import Evaluator
from amc.compression.scoring.policy import PolicyScorer
from amc.pruning import Pruner, calibrate
from amc.pruning.methods import create_method, problem_of
from amc.recovery.distillation import Plan, distill_
from amc.run.provenance import environment
from amc.search import Bounds, SearchTask, create_agent, parse_budgets, roll_out
from amc.structure.copying import copy_model
from common import Prepared, Record, load, machine, network_parser, percent, prepared, save, table
from refitting import SequentialPruner

RESULT = "sequential-{model}.json"
WAYS = ("each layer alone", "in sequence")


def options() -> argparse.ArgumentParser:
    parser = network_parser(__doc__)
    parser.add_argument("--budgets", nargs="+", default=["macs<=90%", "macs<=50%", "macs<=30%"])
    parser.add_argument("--recovered", nargs="*", default=["macs<=50%", "macs<=30%"], help="budgets with recovery")
    parser.add_argument("--epochs", type=int, default=5, help="of the recovery")
    return parser


def measure(args: argparse.Namespace) -> Record:
    ready, name = prepared(args), RESULT.format(model=args.model)
    scores = {"search": Evaluator(ready.data.search), "test": Evaluator(ready.data.test)}
    record: Record = {
        "model": args.model, "threads": args.threads, "epochs": args.epochs, "rows": [],
        "search_images": len(ready.data.search), "bn_images": len(images_of(ready)),
        "dense": {split: score(ready.model) for split, score in scores.items()}, "environment": environment(),
    }  # fmt: skip
    scorers = scorers_of(ready)
    for budget in args.budgets:
        keep = uniform(ready, budget)
        for way, scorer in scorers.items():
            began = time.process_time()
            slim = scorer.build(keep)
            row: dict[str, Any] = {"budget": budget, "way": way, "cpu_build": time.process_time() - began}
            row["pruned"] = {split: score(slim) for split, score in scores.items()}
            if budget in args.recovered:
                row |= recovered_(slim, ready, args.epochs)
                row["recovered"] = {split: score(slim) for split, score in scores.items()}
            record["rows"].append(row)
            save(name, record)
            print(row, flush=True)
    return load(name)


def scorers_of(ready: Prepared) -> dict[str, PolicyScorer]:
    """A scorer for each way to refit. Both rank the channels in the same way."""
    model, structure, gathered = (
        ready.model,
        ready.structure,
        calibrate(ready.model, ready.structure, ready.calibration),
    )
    alone, sequence = Pruner(model, structure, gathered), SequentialPruner(model, structure, gathered, images_of(ready))
    return {
        way: PolicyScorer(pruner, no_score, ready.bn_images, norms=ready.norms)
        for way, pruner in zip(WAYS, (alone, sequence), strict=True)
    }


def images_of(ready: Prepared) -> Tensor:
    """The images [N, C, H, W] on which networks are refitted: those of the batch norms."""
    return torch.cat([batch.args[0] for batch in ready.bn_images])


def no_score(network: nn.Module) -> float:
    """Scores are measured by `measure`, on both splits."""
    raise AssertionError(network)


def uniform(ready: Prepared, budget: str) -> tuple[int, ...]:
    problem = problem_of(create_method("channel", ready.model, ready.structure), parse_budgets(budget))
    agent = create_agent("uniform", SearchTask(problem, episodes=1, seed=0))
    agent.begin_episode(0, 0)
    return tuple(roll_out(problem, Bounds(problem), agent.act).keep_counts)


def recovered_(slim: nn.Module, ready: Prepared, epochs: int) -> dict[str, float]:
    """Recover the network **in place**; its CPU seconds."""
    began = time.process_time()
    distill_(slim, copy_model(ready.model), ready.calibration, classes=True, plan=Plan(epochs=epochs))
    return {"cpu_recovery": time.process_time() - began}


def section(record: Record) -> str:
    rows = [
        [
            row["budget"], row["way"], *(percent(value) for value in row["pruned"].values()),
            f"{row['cpu_build']:.2f} s",
            *(percent(value) for value in row.get("recovered", {}).values() or ()),
        ]
        for row in record["rows"]
    ]  # fmt: skip
    header = ["budget", "refit", "search, as pruned", "test", "CPU, building", "search, recovered", "test"]
    filled = [[*row, *["" for _ in range(len(header) - len(row))]] for row in rows]
    dense = record["dense"]
    return (
        f"## Refitting in sequence: {record['model']}\n\n"
        f"`python benchmarks/sequential.py --model {record['model']} --weights W --data cifar10:DATA --search-images "
        f"{record['search_images']}`: the uniform policy, its layers refitted to the dense network's activations, each "
        f"alone, and then to the pruned network's own on {record['bn_images']} images (He, Zhang and Sun, arXiv "
        f"1707.06168), which AMC does not do. Recovered: {record['epochs']} epochs, without labels. One seed. "
        f"{record['threads']} thread(s). Dense: {percent(dense['search'])} search, {percent(dense['test'])} test.\n\n"
        + table(header, filled) + machine(record)
    )  # fmt: skip


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
