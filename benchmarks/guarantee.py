"""The accuracy-guaranteed protocol: what each of the paper's rewards, and --max-drop, come to without a budget.

    python benchmarks/guarantee.py --model resnet20 --weights W.safetensors --data cifar10:ROOT --runs DIR

Every search is a run directory under --runs, resumed where it stopped. The results go to
benchmarks/results/guarantee-MODEL.json.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from amc.run import files
from amc.run.provenance import environment
from common import Record, load, machine, percent, save, table
from searches import public, search_parser, searched

RESULT = "guarantee-{model}.json"

SEARCHES: dict[str, dict[str, Any]] = {
    "-error*log(MACs)": {"reward": "r_flops"},
    "-error*log(parameters)": {"reward": "r_params"},
    "--max-drop 0.5": {"max_drop": 0.5, "bn_images": 0},
    "--max-drop 0.5, fine-grained, parameters": {
        "max_drop": 0.5, "bn_images": 0, "method": "fine-grained", "minimise": "params",
    },
}  # fmt: skip


def options() -> argparse.ArgumentParser:
    return search_parser(__doc__)


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(args.threads)
    name = RESULT.format(model=args.model)
    for label, settings in SEARCHES.items():
        short = "-".join(str(value) for value in settings.values()).replace("_", "")
        run = searched(args, f"guarantee-{short}", baselines=("uniform",), **settings)
        record = load(name)
        rows = record.get("rows", {}) | {label: public(run.read_json(files.SUMMARY))}
        common = {"model": args.model, "episodes": args.episodes, "search_images": args.search_images}
        save(name, record | common | {"rows": rows, "environment": environment()})
    return load(name)


def section(record: Record) -> str:
    header = ["reward", "MACs", "parameters", "score, search", "loss on confirmation images, points", "test"]
    rows = [_cells(label, run) for label, run in record["rows"].items()]
    return (
        f"## No budget, accuracy guaranteed: {record['model']}\n\n"
        f"`python benchmarks/guarantee.py --model {record['model']} --weights W --data cifar10:DATA --runs DIR`: "
        f"{record['episodes']} episodes, without any fine-tuning. With `--max-drop` half of the search images score "
        "and the other half confirms (docs/accuracy.md).\n\n" + table(header, rows) + machine(record)
    )


def _cells(label: str, run: Record) -> list[str]:
    dense, slim, guarantee = run["dense"], run["slim"], run.get("guarantee")
    confirmation = ""
    if guarantee:
        state = "confirmed" if guarantee["confirmed"] else "not confirmed"
        confirmation = f"{guarantee['drop']:+.2f}, at most {guarantee['upper']:.2f}: {state}"
    return [
        label, percent(slim["macs"] / dense["macs"]), percent(slim["params"] / dense["params"]),
        f"{percent(dense['score'])} → {percent(slim['score'])}", confirmation,
        f"{percent(dense['test'])} → {percent(slim['test'])}",
    ]  # fmt: skip


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
