"""When to take the network as pruned in place of the recovered one: the rules, on networks whose truth is known.

    python benchmarks/refusals.py --model resnet20 --weights W --data cifar10:ROOT --search-images 2000

A recovered network may score less than it did as pruned. A search compares both on some images that it never scored,
and few images may be wrong about it. Here both are judged on the whole test split; then each rule decides from many
random parts of it, of as many images as a search has for this. The results go to
benchmarks/results/refusals-MODEL.json after each network; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import torch
from torch import nn

from amc.cli.jobs.devices import device_named
from amc.cli.jobs.origin import data_of, network_of
from amc.compression.inputs import Inputs
from amc.compression.scoring.evaluator import Evaluator
from amc.recovery.distillation import distill_
from amc.run.provenance import environment
from amc.search.statistics import PairedDrop, compare
from amc.structure.batches import moved
from amc.structure.copying import copy_model
from amc.structure.modes import device_of
from amc.zoo import DataSplits
from common import Record, load, machine, network_parser, percent, save, source_of, table
from recovery import Case, calibration_of, network, prepared

RESULT = "refusals-{model}.json"
RULES = {"any loss": 0.0, "half an error": 0.5, "one error": 1.0, "two errors": 2.0, "never": math.inf}
"""How large a loss is refused, in standard errors."""
CASES = (
    ("channel", "macs<=50%"), ("channel", "macs<=30%"), ("channel", "macs<=70%"), ("channel", "macs<=90%"),
    ("fine-grained", "params<=50%"), ("fine-grained", "params<=25%"),
)  # fmt: skip
IMAGES = (100, 500, 1000)  # of a search that never scored them
DRAWS = 4000


def options() -> argparse.ArgumentParser:
    parser = network_parser(__doc__)
    parser.add_argument("--policies", nargs="+", default=["uniform", "random"], choices=["uniform", "random"])
    parser.add_argument("--cases", type=int, default=len(CASES), help="how many methods and budgets, at most")
    parser.add_argument("--episodes", type=int, default=10, help="of the random policies, whose best is taken")
    parser.add_argument("--images", type=int, default=2048, help="for calibration and recovery")
    parser.add_argument("--device", default="cpu")
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(args.threads)
    device, label = device_named(args.device), args.model.rpartition(":")[2]
    name = RESULT.format(model=label)
    model, data = network_of(source_of(args)).to(device), data_of(source_of(args))
    record: Record = {"model": label, "threads": args.threads, "rows": []} | load(name)
    for case in cases(args):
        if all(row["case"] != asdict(case) for row in record["rows"]):
            record["rows"].append(judged(model, data, case, args.episodes))
            record["environment"] = environment(device)
            save(name, record)
            print(record["rows"][-1], flush=True)
    return record


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """What the options ask for."""
    for method, budget in CASES[: args.cases]:
        for policy in args.policies:
            yield Case(method, budget, policy, args.images, None)


def judged(model: nn.Module, data: DataSplits, case: Case, episodes: int) -> Record:
    """How one network answers on the test split before and after its recovery."""
    example = torch.zeros(1, *data.input_shape, device=device_of(model))
    calibration = [moved(batch, example.device) for batch in calibration_of(data, case.images)]
    job = prepared(Inputs(model, example, calibration, Evaluator(data.search)), case, episodes)
    slim, test = network(job, case, data), Evaluator(data.test)
    before = test.correct(slim)
    recovery = distill_(slim, copy_model(model), calibration, classes=True, masks=job.method.masks(slim) or None)
    change = compare(before, test.correct(slim))
    return {"case": asdict(case), "pruned": float(before.double().mean()), "lost": change.lost,
            "gained": change.gained, "images": change.images, "outcome": recovery.outcome}  # fmt: skip


def section(record: Record) -> str:
    rows = [row for row in record["rows"] if row["outcome"] == "recovered"]
    changes = [whole(row) for row in rows]
    lines = []
    for images in IMAGES if changes else ():
        for rule, errors in RULES.items():
            shares = [refused(change, min(images, change.images), errors) for change in changes]
            left = [-change.drop * (1 - share) for change, share in zip(changes, shares, strict=True)]
            missed = [max(0.0, -change.drop) - gain for change, gain in zip(changes, left, strict=True)]
            lines.append([
                f"{images:,}", rule, percent(statistics.mean(shares)), f"{100 * statistics.mean(left):+.2f}",
                f"{100 * max(missed):.2f}",
            ])  # fmt: skip
    gains = ", ".join(f"{-100 * change.drop:+.1f}" for change in changes)
    nearer = len(record["rows"]) - len(rows)
    policies = " ".join(dict.fromkeys(row["case"]["policy"] for row in record["rows"]))
    return (
        f"## When to refuse a recovery: {record['model']}\n\n"
        f"`python benchmarks/refusals.py --model {record['model']} --weights W --data cifar10:DATA --search-images "
        f"2000 --policies {policies}`: each rule on {DRAWS:,} random parts of the test split. "
        "`any loss` takes the network as pruned where "
        "the recovered one scores less on the part; the others, where it scores less by so many standard errors of "
        "the paired difference. The gain is the mean of all networks on the whole split, in points; what is missed is "
        f"the worst network's mean, beside always knowing better. {len(rows)} networks, {nearer} more that recovery "
        f"brought no nearer to the dense one. Gains on the whole split: {gains}.\n\n"
        + table(["unseen images", "refuses", "refused", "gain of recovery", "missed at most"], lines)
        + machine(record)
    )


def whole(row: Record) -> PairedDrop:
    """The answers on the whole test split."""
    return PairedDrop(row["images"], row["lost"], row["gained"])


def refused(change: PairedDrop, images: int, errors: float) -> float:
    """In what share of the random parts of so many images the recovered network is refused."""
    if math.isinf(errors):
        return 0.0
    rest = change.images - change.lost - change.gained
    drawn = np.random.default_rng(0).multivariate_hypergeometric([change.lost, change.gained, rest], images, DRAWS)
    parts = (PairedDrop(images, int(lost), int(gained)) for lost, gained, _ in drawn)
    return sum(part.drop > 0 and part.drop > errors * part.standard_error for part in parts) / DRAWS


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
