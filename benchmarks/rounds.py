"""Iterative pruning: the paper's four rounds beside one round with as much fine-tuning.

    python benchmarks/rounds.py --model resnet20 --weights W.safetensors --data cifar10:ROOT --runs DIR

Fine-grained, densities 0.5, 0.35, 0.25 and 0.2 of the parameters. All are run directories under --runs, resumed where
they stopped. The results go to benchmarks/results/rounds-MODEL.json.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from amc.compression.load import round_path
from amc.run import files
from amc.run.directory import RunDir
from amc.run.provenance import environment
from common import Record, load, machine, percent, save, table
from searches import finetuned, on_disk, public, search_parser, searched, searched_in_rounds

RESULT = "rounds-{model}.json"

FRACTIONS = (0.5, 0.35, 0.25, 0.2)
SETTINGS: dict[str, Any] = {"method": "fine-grained", "budget": f"params<={FRACTIONS[-1]:.0%}", "max_sparsity": 0.9}


def options() -> argparse.ArgumentParser:
    return search_parser(__doc__)


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(args.threads)
    name = RESULT.format(model=args.model)
    run = searched_in_rounds(args, "rounds", FRACTIONS, **SETTINGS)
    common = {"model": args.model, "episodes": args.episodes, "epochs": args.epochs}
    save(name, load(name) | common | {"search_images": args.search_images, "schedule": scheduled(run)})
    for epochs in (args.epochs, len(FRACTIONS) * args.epochs):
        once = argparse.Namespace(**{**vars(args), "epochs": epochs})
        run = finetuned(once, searched(once, f"once-{epochs}", **SETTINGS))
        summary = public(run.read_json(files.SUMMARY))
        summary |= {"epochs": epochs, "file": on_disk(run, files.MODEL_FINETUNED)}
        save(name, load(name) | {f"once, {epochs} epochs": summary, "environment": environment()})
    return load(name)


def scheduled(run: RunDir) -> Record:
    """The summary of the rounds, each recounted on its stored file."""
    summary = public(run.read_json(files.SUMMARY))
    for number, row in enumerate(summary["rounds"], start=1):
        row["file"] = on_disk(RunDir.open(round_path(run, number)), files.MODEL_FINETUNED)
    return summary


def section(record: Record) -> str:
    plan, rows = record["schedule"], []
    epochs, dense = record["epochs"], plan["dense"]
    for number, row in enumerate(plan["rounds"], start=1):
        share = row["params"] / dense["params"]
        rows.append([f"round {number}, {epochs} epochs", percent(share), percent(row["score"]), *_tests(row)])
    for label, run in record.items():
        if label.startswith("once"):
            slim = run["slim"]
            rows.append([label, percent(slim["params"] / dense["params"]), percent(slim["score"]), *_tests(slim)])
    header = ["", "density, recounted", "score, search, as pruned", "test as pruned", "test fine-tuned"]
    return (
        f"## Four rounds beside one: {record['model']}, fine-grained\n\n"
        f"`python benchmarks/rounds.py --model {record['model']} --weights W --data cifar10:DATA --runs DIR`: the "
        f"paper's schedule of densities, {record['episodes']} episodes a search; beside it one round straight to the "
        "last density, with as much fine-tuning as one round, and as all four. "
        f"Dense: {percent(dense['test'])} test.\n\n" + table(header, rows) + machine(record)
    )


def _tests(row: Record) -> list[str]:
    return [percent(row[name]) if name in row else "" for name in ("test", "test_finetuned")]


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
