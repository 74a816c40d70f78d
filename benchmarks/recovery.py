"""What recovery without labels is worth: the uniform policy, as pruned and after training on the calibration images.

    python benchmarks/recovery.py --model resnet20 --weights W.safetensors --data cifar10:ROOT

No label is read, and the dense network's outputs on 2,048 training images are all that the network learns. The results
go to benchmarks/results/recovery-MODEL.json.
"""

from __future__ import annotations

import argparse
import time

import torch

from amc.cli.jobs.origin import BATCH, data_of, network_of
from amc.compression.prepare import Inputs, prepare
from amc.compression.scoring.evaluator import Evaluator
from amc.compression.settings import SearchConfig
from amc.recovery.distillation import distill_
from amc.run.provenance import environment
from amc.search import Bounds, create_agent, roll_out
from amc.structure.copying import copy_model
from common import Record, load, machine, network_parser, percent, save, source_of, table

RESULT = "recovery-{model}.json"


def options() -> argparse.ArgumentParser:
    parser = network_parser(__doc__)
    parser.add_argument("--budgets", nargs="+", default=["macs<=50%", "macs<=30%"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the recovery")
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(args.threads)
    name, rows = RESULT.format(model=args.model), []
    model, data = network_of(source_of(args)), data_of(source_of(args))
    search, test = Evaluator(data.search), Evaluator(data.test)
    dense = {"search": search(model), "test": test(model)}
    for budget in args.budgets:
        example, calibration = torch.zeros(1, *data.input_shape), data.calibration.batches(BATCH)
        job = prepare(Inputs(model, example, calibration, search), SearchConfig(budget=budget, episodes=1))
        agent = create_agent("uniform", job.problem, episodes=1, seed=0)
        agent.begin_episode(0, 0)
        keep = roll_out(job.problem, Bounds(job.problem), agent.act).keep_counts
        pruned = job.scorer.build(keep)
        for seed in args.seeds:
            slim, began = copy_model(pruned), time.process_time()
            recovery = distill_(slim, copy_model(model), job.calibration, classes=True, seed=seed)
            row = {"budget": budget, "seed": seed, "cpu_seconds": time.process_time() - began, **recovery.to_json()}
            row |= {"search": [search(pruned), search(slim)], "test": [test(pruned), test(slim)]}
            rows.append(row)
            save(name, {"model": args.model, "threads": args.threads, "dense": dense, "rows": rows,
                        "environment": environment()})  # fmt: skip
            print(row, flush=True)
    return load(name)


def section(record: Record) -> str:
    rows = [
        [
            row["budget"], str(row["seed"]), *(percent(score) for score in (*row["search"], *row["test"])),
            f"{row['rate']:g}", f"{row['cpu_seconds']:.0f} s",
        ]
        for row in record["rows"]
    ]  # fmt: skip
    dense, images = record["dense"], record["rows"][0]["images"] + record["rows"][0]["held_out"]
    header = ["budget", "seed", "search, as pruned", "recovered", "test, as pruned", "recovered", "rate", "CPU time"]
    return (
        f"## Recovery without labels: {record['model']}\n\n"
        f"`python benchmarks/recovery.py --model {record['model']} --weights W --data cifar10:DATA`: the uniform "
        f"policy, trained towards the dense network's outputs on {images:,} calibration images, without a label, "
        f"{record['threads']} thread(s). "
        f"Dense: {percent(dense['search'])} search, {percent(dense['test'])} test.\n\n"
        + table(header, rows) + machine(record)
    )  # fmt: skip


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
