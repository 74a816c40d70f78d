"""What approximate groups are worth: a vision transformer whose stream may be pruned, beside one whose stream stays.

    python benchmarks/approximate.py                  # of the built-in digits, trained first
    python benchmarks/approximate.py --model vision_transformers:deit_tiny --weights W --data cifar10:ROOT --device cuda

Three networks under each budget: of a search that prunes heads and hidden layers alone, exactly; of one with
`approximate`, which prunes the stream, too; and torch-pruning's, which prunes all alike. Each is recovered in the same
way. The results go to benchmarks/results/approximate-MODEL.json after each network.
"""

from __future__ import annotations

import argparse
import statistics
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

import amc
import vision_transformers
from against_torch_pruning import rival
from amc.cli.jobs.devices import device_named
from amc.cli.jobs.origin import BATCH, data_of, network_of
from amc.compression.scoring.evaluator import Evaluator
from amc.recovery.distillation import distill_
from amc.run.provenance import environment
from amc.structure.batches import limited, moved
from amc.structure.copying import copy_model
from amc.structure.modes import device_of
from amc.zoo import DataSplits, load_data
from common import Record, load, machine, percent, plain_parser, save, source_of, table

RESULT = "approximate-{model}.json"
DIGITS = "digits_vit"
WAYS = ("exact", "approximate", "torch-pruning")
FIGURES = {
    "uniform": "uniform, search images", "score": "as pruned, search images", "test": "test, as pruned",
    "test_recovered": "test, recovered",
}  # fmt: skip


def options() -> argparse.ArgumentParser:
    parser = plain_parser(__doc__)
    parser.add_argument("--model", default=DIGITS, help="default: a small one, trained on the digits first")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--search-images", type=int)
    parser.add_argument("--budgets", nargs="+", default=["macs<=50%", "macs<=30%"])
    parser.add_argument("--policies", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3, help="of the searches")
    parser.add_argument("--epochs", type=int, default=60, help="of training on the digits")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(args.threads)
    device, label = device_named(args.device), args.model.rpartition(":")[2]
    name = RESULT.format(model=label)
    record: Record = {"rows": []} | load(name)
    record |= {"model": label, "policies": args.policies, "threads": args.threads, "environment": environment(device)}
    model, data = subject(args)
    model = model.to(device)
    record["dense"] = Evaluator(data.test)(model)
    for seed, budget, way in product(range(args.seeds), args.budgets, WAYS):
        if any((row["seed"], row["budget"], row["way"]) == (seed, budget, way) for row in record["rows"]):
            continue
        row = (
            torch_pruned(model, data, budget, seed)
            if way == WAYS[-1]
            else searched(args, model, data, budget, seed, way)
        )
        record["rows"].append({"seed": seed, "budget": budget, "way": way, **row})
        save(name, record)
        print(record["rows"][-1], flush=True)
    return record


def subject(args: argparse.Namespace) -> tuple[nn.Module, DataSplits]:
    """The trained network and its data."""
    if args.model != DIGITS:
        return network_of(source_of(args)), data_of(source_of(args))
    training = SimpleNamespace(
        model=DIGITS, data=args.data, epochs=args.epochs, rate=3e-3, mixed=0.0, device="cpu", seed=0
    )
    return vision_transformers.train(training), load_data(args.data)  # type: ignore[arg-type]


def searched(args: argparse.Namespace, model: nn.Module, data: DataSplits, budget: str, seed: int, way: str) -> Record:
    """The figures of a search's result."""
    result = amc.compress(
        model, torch.zeros(1, *data.input_shape, device=device_of(model)), approximate=way == "approximate",
        calibration=data.calibration.batches(BATCH), evaluate=data.search, test=data.test, budget=budget,
        episodes=args.policies, seed=seed, baselines=("uniform",),
    )  # fmt: skip
    slim, dense = result.summary["slim"], result.summary["dense"]
    found = {"macs": slim["macs"] / dense["macs"], "uniform": result.summary["baselines"]["uniform"]["score"]}
    recovered = slim.get("test_recovered", slim["test"])  # a recovery that would not help is not kept
    return found | {"score": slim["score"], "test": slim["test"], "test_recovered": recovered}


def torch_pruned(model: nn.Module, data: DataSplits, budget: str, seed: int) -> Record:
    """The same of torch-pruning's network, with the same recovery."""
    example = torch.zeros(1, *data.input_shape, device=device_of(model))
    dense = amc.count_macs(model, example)
    limit = int(float(budget.removeprefix("macs<=").removesuffix("%")) / 100 * dense)
    slim = rival(model, example, limit, everywhere=False)
    found: Record = {"macs": amc.count_macs(slim, example) / dense}
    found |= {"score": Evaluator(data.search)(slim), "test": Evaluator(data.test)(slim)}
    calibration = [moved(each, example.device) for each in limited(data.calibration.batches(BATCH), 2048)]
    distill_(slim, copy_model(model), calibration, classes=True, seed=seed)
    return found | {"test_recovered": Evaluator(data.test)(slim)}


def section(record: Record) -> str:
    rows = []
    for budget, way in product(dict.fromkeys(row["budget"] for row in record["rows"]), WAYS):
        found = [row for row in record["rows"] if (row["budget"], row["way"]) == (budget, way)]
        if found:
            shown = [spread([row[figure] for row in found if figure in row]) for figure in FIGURES]
            rows.append(
                [budget, way, str(len(found)), percent(statistics.median(row["macs"] for row in found)), *shown]
            )
    return (
        f"## Approximate groups: {record['model']}\n\n"
        f"`python benchmarks/approximate.py`: {record['policies']} policies a search, medians and ranges over the "
        "seeds. Exact searches prune heads and hidden layers; approximate ones prune the stream under the layer norms, "
        f"too, and so does torch-pruning. Dense, test: {percent(record['dense'])}.\n\n"
        + table(["budget", "network", "seeds", "MACs left", *FIGURES.values()], rows)
        + machine(record)
    )


def spread(values: list[float]) -> str:
    """The median, and the range of several values."""
    if not values:
        return ""
    middle = percent(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({percent(min(values))} to {percent(max(values))})"


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
