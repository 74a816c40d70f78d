"""What fine-tuning with labels adds after recovery without labels, and what it reaches from the network as pruned.

    python benchmarks/after_recovery.py --model resnet20 --weights W.safetensors --data cifar10:ROOT

The uniform policy's network is fine-tuned for each number of epochs at each learning rate, from its weights as pruned
and as recovered. The results go to benchmarks/results/after-recovery-MODEL.json after each training, so an interrupted
benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from itertools import product

import torch

from amc.cli.jobs.origin import BATCH, data_of, network_of
from amc.compression.inputs import Inputs
from amc.compression.prepare import prepare
from amc.compression.scoring.evaluator import Evaluator
from amc.compression.settings import SearchConfig
from amc.recovery import FineTuneConfig, finetune
from amc.recovery.distillation import distill_
from amc.run.provenance import environment
from amc.search import SearchTask, create_agent, search
from amc.structure.copying import copy_model
from common import Record, load, machine, network_parser, percent, save, source_of, table

RESULT = "after-recovery-{model}.json"
STARTS = ("pruned", "recovered")


def options() -> argparse.ArgumentParser:
    parser = network_parser(__doc__)
    parser.add_argument("--budget", default="macs<=50%")
    parser.add_argument("--epochs", type=int, nargs="+", default=[2, 5])
    parser.add_argument("--lrs", type=float, nargs="+", default=[0.05, 0.01], help="the highest of each training")
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=STARTS)
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(args.threads)
    name = RESULT.format(model=args.model)
    model, data = network_of(source_of(args)), data_of(source_of(args))
    config = SearchConfig(budget=args.budget, episodes=1, agent="uniform", recover="none", finalists=0)
    inputs = Inputs(model, torch.zeros(1, *data.input_shape), data.calibration.batches(BATCH), Evaluator(data.search))
    job = prepare(inputs, config)
    agent = create_agent("uniform", SearchTask(job.problem, episodes=1, seed=0))
    policy = search(job.problem, job.scorer, agent, episodes=1, seed=0, reward=job.reward).best.keep
    pruned, test = job.scorer.build(policy), Evaluator(data.test)
    recovered, began = copy_model(pruned), time.process_time()
    distill_(recovered, copy_model(model), job.calibration, classes=True)
    seconds = time.process_time() - began
    record: Record = {"rows": []} | load(name)
    record |= {"model": args.model, "budget": args.budget, "threads": args.threads, "recovery_seconds": seconds}
    record |= {"dense": test(model), "start": {"pruned": test(pruned), "recovered": test(recovered)}}
    for epochs, lr, start in product(args.epochs, args.lrs, args.starts):
        if any((row["epochs"], row["lr"], row["start"]) == (epochs, lr, start) for row in record["rows"]):
            continue
        slim, began = copy_model(recovered if start == "recovered" else pruned), time.process_time()
        finetune(slim, data.train, FineTuneConfig(epochs=epochs, lr=lr))
        tuning = time.process_time() - began
        record["rows"].append({"epochs": epochs, "lr": lr, "start": start, "test": test(slim), "seconds": tuning})
        save(name, record | {"environment": environment()})
        print(record["rows"][-1], flush=True)
    return load(name)


def section(record: Record) -> str:
    spent = {"pruned": 0.0, "recovered": record["recovery_seconds"]}
    rows = [
        ["0", "", percent(record["start"]["pruned"]), "0 s", percent(record["start"]["recovered"]),
         f"{spent['recovered']:.0f} s"]
    ]  # fmt: skip
    for epochs, lr in sorted({(row["epochs"], row["lr"]) for row in record["rows"]}):
        cells = [str(epochs), f"{lr:g}"]
        for start, before in spent.items():
            found = [row for row in record["rows"] if (row["epochs"], row["lr"], row["start"]) == (epochs, lr, start)]
            cells += [percent(found[0]["test"]), f"{before + found[0]['seconds']:.0f} s"] if found else ["", ""]
        rows.append(cells)
    return (
        f"## Fine-tuning after recovery: {record['model']}, {record['budget']}\n\n"
        f"`python benchmarks/after_recovery.py --model {record['model']} --weights W --data cifar10:DATA`: the uniform "
        f"policy's network on the test split after epochs of fine-tuning on the training split, from its weights as "
        f"pruned and as recovered without labels; CPU seconds in all, {record['threads']} thread(s), one seed. Dense: "
        f"{percent(record['dense'])}.\n\n"
        + table(
            ["epochs", "learning rate", "from as pruned", "CPU time", "from recovered", "CPU time, recovery included"],
            rows,
        )
        + machine(record)
    )


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
