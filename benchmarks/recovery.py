"""What recovery without labels is worth: pruned networks before and after training on the calibration images.

    python benchmarks/recovery.py --model resnet20 --weights W.safetensors --data cifar10:ROOT --search-images 2000

No label is read; all that the pruned network learns are the dense network's outputs on the calibration images. The
networks are those of the uniform policy, of the best of some random or searched policies, or torch-pruning's. The
results go to benchmarks/results/recovery-MODEL.json after each network; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product

import torch
from torch import nn

from against_torch_pruning import rival
from amc.cli.jobs.devices import device_named
from amc.cli.jobs.origin import BATCH, data_of, network_of
from amc.compression.inputs import Inputs
from amc.compression.job import Job
from amc.compression.prepare import prepare
from amc.compression.scoring.batchnorm import reestimate_batchnorm_
from amc.compression.scoring.evaluator import Evaluator
from amc.compression.settings import SearchConfig
from amc.recovery.distillation import Plan, distill_
from amc.run.provenance import environment
from amc.search import SearchTask, create_agent, search
from amc.structure import count_macs
from amc.structure.batches import limited, moved
from amc.structure.copying import copy_model
from amc.structure.modes import device_of
from amc.structure.trace import Example
from amc.zoo import DataSplits
from amc.zoo.splits import Split, balanced_order
from common import Record, load, machine, network_parser, percent, save, source_of, table

RESULT = "recovery-{model}.json"
POLICIES = ("uniform", "random", "planner", "ddpg", "torch-pruning")


@dataclass(frozen=True)
class Case:
    """One pruned network, and the images that it is recovered with."""

    method: str
    budget: str
    policy: str
    images: int
    epochs: int | None  # of the recovery; None: as many as it takes by itself


def options() -> argparse.ArgumentParser:
    parser = network_parser(__doc__)
    parser.add_argument("--methods", nargs="+", default=["channel"])
    parser.add_argument("--budgets", nargs="+", default=["macs<=50%", "macs<=30%"])
    parser.add_argument("--policies", nargs="+", default=["uniform"], choices=POLICIES)
    parser.add_argument("--episodes", type=int, default=60, help="of a search, whose best policy is taken")
    parser.add_argument("--images", type=int, nargs="+", default=[2048], help="for calibration and recovery")
    parser.add_argument("--epochs", type=int, nargs="+", default=[None], help="of the recovery, in place of its own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the recovery")
    parser.add_argument("--device", default="cpu")
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(args.threads)
    device, label = device_named(args.device), args.model.rpartition(":")[2]
    name = RESULT.format(model=label)
    model, data = network_of(source_of(args)).to(device), data_of(source_of(args))
    record = {"model": label, "threads": args.threads, "episodes": args.episodes, "rows": []} | load(name)
    if "dense" not in record:
        record["dense"] = {"search": Evaluator(data.search)(model), "test": Evaluator(data.test)(model)}
    for case in cases(args):
        done = [row["seed"] for row in record["rows"] if row["case"] == asdict(case)]
        left = [seed for seed in args.seeds if seed not in done]
        for row in rows(model, data, case, left, args.episodes) if left else ():
            record["rows"].append(row)
            record["environment"] = environment(device)
            save(name, record)
            print(row, flush=True)
    return record


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """What the options ask for."""
    for parts in product(args.methods, args.budgets, args.policies, args.images, args.epochs):
        yield Case(*parts)


def rows(model: nn.Module, data: DataSplits, case: Case, seeds: list[int], episodes: int) -> Iterator[Record]:
    """The scores of one network before and after its recovery, for each seed."""
    example = torch.zeros(1, *data.input_shape, device=device_of(model))
    calibration = [moved(batch, example.device) for batch in calibration_of(data, case.images)]
    scores = {"search": Evaluator(data.search), "test": Evaluator(data.test)}
    job = prepared(Inputs(model, example, calibration, scores["search"]), case, episodes)
    pruned = network(job, case, data)
    before = {split: score(pruned) for split, score in scores.items()}
    for seed in seeds:
        slim, began, clock = copy_model(pruned), time.process_time(), time.perf_counter()
        recovery = distill_(
            slim, copy_model(model), calibration, classes=True, masks=job.method.masks(slim) or None,
            plan=Plan(epochs=case.epochs), seed=seed,
        )  # fmt: skip
        row: Record = {"case": asdict(case), "seed": seed, "cpu_seconds": time.process_time() - began}
        row["seconds"] = time.perf_counter() - clock
        row |= {split: [before[split], score(slim)] for split, score in scores.items()}
        yield row | {"recovery": recovery.to_json()}


def prepared(inputs: Inputs, case: Case, episodes: int) -> Job:
    """The search of a case, which recovers nothing by itself."""
    config = SearchConfig(
        budget=case.budget,
        method=case.method,
        episodes=episodes,
        calibration_images=case.images,
        recover="none",
        finalists=0,
    )
    return prepare(inputs, config)


def calibration_of(data: DataSplits, images: int) -> list[Example]:
    """Batches of the calibration split, which is a part of train, or of a larger part that is chosen like it."""
    split: Split = data.calibration
    if images > len(split):
        split = data.train.subset(torch.from_numpy(balanced_order(data.train.labels.numpy())[:images]))
    return limited(split.batches(BATCH), images)


def network(job: Job, case: Case, data: DataSplits) -> nn.Module:
    """The pruned network of a case."""
    if case.policy == "torch-pruning":
        share = float(case.budget.removeprefix("macs<=").removesuffix("%")) / 100
        model = rival(
            job.model, job.example_input, int(share * count_macs(job.model, job.example_input)), everywhere=False
        )
        reestimate_batchnorm_(model, job.calibration)
        return model
    agent = create_agent(case.policy, SearchTask(job.problem, episodes=job.config.episodes, seed=0))
    episodes = min(job.config.episodes, agent.max_episodes or job.config.episodes)
    found = search(job.problem, job.scorer, agent, episodes=episodes, seed=0, reward=job.reward)
    slim = job.scorer.build(found.best.keep)
    job.method.finish_(slim, job.example_input)
    return slim


def section(record: Record) -> str:
    groups: dict[tuple[str, ...], list[Record]] = {}
    for row in record["rows"]:
        case, steps = row["case"], row["recovery"]["steps"]
        key = (case["method"], case["budget"], case["policy"], f"{case['images']:,}", f"{steps:,}")
        groups.setdefault(key, []).append(row)
    lines = [
        [
            *key, str(len(group)), *(cell for split in ("search", "test") for cell in accuracies(group, split)),
            f"{statistics.mean(row['cpu_seconds'] for row in group):.0f} s",
        ]
        for key, group in groups.items()
    ]  # fmt: skip
    header = [
        "method", "budget", "policy", "images", "steps", "seeds", "search, as pruned", "recovered", "test, as pruned",
        "recovered", "CPU time",
    ]  # fmt: skip
    dense = record["dense"]
    return (
        f"## Recovery without labels: {record['model']}\n\n"
        f"`python benchmarks/recovery.py --model {record['model']} --weights W --data cifar10:DATA`: networks as "
        f"pruned, then trained towards the dense network's outputs on the calibration images, without a label, "
        f"{record['threads']} thread(s); mean and range over the seeds. The random and searched policies are the best "
        f"of {record['episodes']}. Dense: {percent(dense['search'])} search, {percent(dense['test'])} test.\n\n"
        + table(header, lines) + machine(record)
    )  # fmt: skip


def accuracies(group: list[Record], split: str) -> tuple[str, str]:
    """As pruned; and recovered, with the range where there are several seeds."""
    recovered = [row[split][1] for row in group]
    spread = f" ({percent(min(recovered))} to {percent(max(recovered))})" if len(recovered) > 1 else ""
    return percent(group[0][split][0]), percent(statistics.mean(recovered)) + spread


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
