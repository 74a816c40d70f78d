"""Iterative pruning: the paper's four rounds beside one round with as much fine-tuning.

    python benchmarks/rounds.py --model resnet20 --weights W.safetensors --data cifar10:ROOT --runs DIR

Fine-grained, densities 0.5, 0.35, 0.25 and 0.2 of the parameters. Both are run directories under --runs, resumed where
they stopped. The outcome goes to benchmarks/results/rounds-MODEL.json.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console

from amc import jobs, rundir
from amc.config import SearchConfig
from amc.progress import ProgressBar
from amc.provenance import environment
from amc.recovery import FineTuneConfig
from amc.rundir import RunDir
from amc.stored import round_path
from common import load, save, source_of
from searches import finetuned, on_disk, parser, public, searched

FRACTIONS = (0.5, 0.35, 0.25, 0.2)


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    scheduled(args)
    for epochs in (args.epochs, len(FRACTIONS) * args.epochs):
        name, once = f"rounds-{args.model}.json", argparse.Namespace(**{**vars(args), "epochs": epochs})
        run = searched(
            once, f"once-{epochs}", budget=f"params<={FRACTIONS[-1]:.0%}", method="fine-grained", max_sparsity=0.9
        )
        summary = public(finetuned(once, run).read_json(rundir.SUMMARY))
        summary |= {"epochs": epochs, "file": on_disk(run, rundir.MODEL_FINETUNED)}
        record = load(name)
        save(name, record | {f"once, {epochs} epochs": summary, "environment": environment()})


def scheduled(args: argparse.Namespace) -> None:
    path, progress = args.runs / f"{args.model}-rounds", ProgressBar(Console(stderr=True))
    config = SearchConfig(episodes=args.episodes, bf16=True, method="fine-grained", max_sparsity=0.9)
    rounds = jobs.Rounds(FRACTIONS, FineTuneConfig(epochs=args.epochs, precision="bfloat16"), budget="params")
    if path.exists():
        jobs.resume(path, progress=progress)
    else:
        jobs.schedule(path, source_of(args), config, rounds, progress=progress)
    run = RunDir.open(path)
    summary = public(run.read_json(rundir.SUMMARY))
    for number, row in enumerate(summary["rounds"], start=1):
        row["file"] = on_disk(RunDir.open(round_path(run, number)), rundir.MODEL_FINETUNED)
    common = {"model": args.model, "episodes": args.episodes, "epochs": args.epochs}
    name = f"rounds-{args.model}.json"
    save(name, load(name) | common | {"search_images": args.search_images, "schedule": summary})


if __name__ == "__main__":
    main()
