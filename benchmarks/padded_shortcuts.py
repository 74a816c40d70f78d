"""What it gains that the channels of zeros in the shortcuts of a CIFAR ResNet can be pruned.

    python benchmarks/padded_shortcuts.py --model resnet20 --weights W --data cifar10:ROOT --search-images 3000

The same search of the same network, once as it is, and once with shortcuts whose numbers of zeros are literal: then
the channels that are added to them stay. Seed by seed in turns. The results go to
benchmarks/results/padded-shortcuts-MODEL.json after each search, so an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import amc
from amc.cli.jobs.devices import device_named
from amc.cli.jobs.origin import BATCH, data_of, network_of
from amc.run.provenance import environment
from amc.structure.modes import device_of
from amc.zoo.resnet import ZeroPadShortcut
from common import Record, load, machine, network_parser, percent, save, source_of, table

RESULT = "padded-shortcuts-{model}.json"
WAYS = ("locked", "free")
FIGURES = {"score": "as pruned", "test": "test, as pruned", "test_recovered": "test, recovered"}


class LiteralShortcut(nn.Module):
    """A shortcut that holds its numbers where no slice finds them."""

    def __init__(self, shortcut: ZeroPadShortcut) -> None:
        super().__init__()
        self.padded = partial(F.pad, pad=(0, 0, 0, 0, shortcut.before, shortcut.after))

    def forward(self, x: Tensor) -> Tensor:
        """As the shortcut that it replaces."""
        return self.padded(x[:, :, ::2, ::2])


def with_literals(model: nn.Module) -> nn.Module:
    """The network with literal shortcuts, in place."""
    for name, module in [*model.named_modules()]:
        if isinstance(module, ZeroPadShortcut):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, LiteralShortcut(module))
    return model


PREPARED: dict[str, Callable[[nn.Module], nn.Module]] = {"locked": with_literals, "free": lambda model: model}


def options() -> argparse.ArgumentParser:
    parser = network_parser(__doc__)
    parser.add_argument("--budgets", nargs="+", default=["macs<=50%", "macs<=30%"])
    parser.add_argument("--policies", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, default=3)
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(args.threads)
    name = RESULT.format(model=args.model)
    record: Record = {"rows": []} | load(name)
    record |= {"model": args.model, "policies": args.policies, "threads": args.threads}
    for seed, budget, way in product(range(args.seeds), args.budgets, WAYS):
        if any((row["seed"], row["budget"], row["way"]) == (seed, budget, way) for row in record["rows"]):
            continue
        row = searched(args, seed, budget, way)
        record["rows"].append(row)
        save(name, record | {"environment": environment(device_named(args.device))})
        print(row, flush=True)
    return load(name)


def searched(args: argparse.Namespace, seed: int, budget: str, way: str) -> Record:
    """One search: its result on the search split and on the test split."""
    source, began = source_of(args), time.process_time()
    model, data = PREPARED[way](network_of(source)).to(device_named(args.device)), data_of(source)
    result = amc.compress(
        model, torch.zeros(1, *data.input_shape, device=device_of(model)),
        calibration=data.calibration.batches(BATCH), evaluate=data.search, test=data.test,
        budget=budget, episodes=args.policies, seed=seed, baselines=("uniform",),
    )  # fmt: skip
    slim = result.summary["slim"]
    return {
        "seed": seed, "budget": budget, "way": way, "decisions": len(result.summary["groups"]),
        "macs": slim["macs"] / result.summary["dense"]["macs"], "seconds": time.process_time() - began,
        "dense": result.summary["dense"]["test"], **{figure: slim[figure] for figure in FIGURES},
    }  # fmt: skip


def section(record: Record) -> str:
    rows = []
    for budget in dict.fromkeys(row["budget"] for row in record["rows"]):
        by_way = {way: {row["seed"]: row for row in record["rows"] if (row["budget"], row["way"]) == (budget, way)}
                  for way in WAYS}  # fmt: skip
        seeds = sorted(by_way["locked"].keys() & by_way["free"].keys())
        if not seeds:
            continue
        for way in WAYS:
            found = [by_way[way][seed] for seed in seeds]
            shown = [percent(statistics.median(row[figure] for row in found)) for figure in FIGURES]
            rows.append([budget, way, str(found[0]["decisions"]), percent(found[0]["macs"]), *shown])
        gains = {figure: [by_way["free"][seed][figure] - by_way["locked"][seed][figure] for seed in seeds]
                 for figure in FIGURES}  # fmt: skip
        rows.append([
            budget, "gain, seed by seed", "", "",
            *(", ".join(f"{100 * gain:+.2f}" for gain in gains[figure]) for figure in FIGURES),
        ])  # fmt: skip
    return (
        f"## Channels of zeros in shortcuts: {record['model']}\n\n"
        f"`python benchmarks/padded_shortcuts.py --model {record['model']} --weights W --data cifar10:DATA "
        f"--search-images 3000`: {record['policies']} policies a search, medians over the seeds; locked: the numbers "
        f"of zeros are literal. Points of the score in the rows of gains. Dense, test: "
        f"{percent(record['rows'][0]['dense'])}.\n\n"
        + table(["budget", "channels of zeros", "decisions", "MACs left", *FIGURES.values()], rows)
        + machine(record)
    )


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
