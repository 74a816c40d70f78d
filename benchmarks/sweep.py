"""A sweep of many budgets against a search of its own for each of them: scores, and CPU time in all.

    python benchmarks/sweep.py --model resnet20 --weights W.safetensors --data cifar10:ROOT --search-images 3000

Two thirds of the search images score the policies; the last third and the test split steer nothing. Networks are scored
as pruned, without recovery, so that the policies are compared and the time is that of the searches. The results go to
benchmarks/results/sweep-MODEL.json after every search; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

import amc
from amc.cli.jobs.origin import BATCH, data_of, network_of
from amc.compression.scoring.evaluator import Evaluator
from amc.compression.sweep_settings import SweepConfig
from amc.run.provenance import environment
from common import Record, load, machine, network_parser, percent, save, source_of, table
from search_agents import divided

RESULT = "sweep-{model}.json"
Judges = Mapping[str, Callable[[nn.Module], float]]


def options() -> argparse.ArgumentParser:
    parser = network_parser(__doc__)
    parser.add_argument("--start", default="80%")
    parser.add_argument("--end", default="25%")
    parser.add_argument("--points", type=int, default=8)
    parser.add_argument("--policies", type=int, default=100, help="of each search of its own")
    parser.add_argument("--together", type=int, default=200, help="policies of a sweep, all points together")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(args.threads)
    name = RESULT.format(model=args.model)
    model, data = network_of(source_of(args)), data_of(source_of(args))
    seen, unseen = divided(data.search)
    judges = {"held out": Evaluator(unseen), "test": Evaluator(data.test)}
    plan = SweepConfig(start=args.start, end=args.end, points=args.points)
    record: Record = {"rows": []} | load(name)
    record |= {"model": args.model, "threads": args.threads, "policies": args.policies, "together": args.together}
    record |= {"images": [len(seen), len(unseen)], "budgets": list(plan.texts), "plan": plan.to_json()}
    record["dense"] = {"search": Evaluator(seen)(model)} | {split: judge(model) for split, judge in judges.items()}
    example = torch.zeros(1, *data.input_shape)
    for seed in args.seeds:
        given: dict[str, Any] = {
            "calibration": data.calibration.batches(BATCH), "evaluate": Evaluator(seen), "recover": "none",
            "finalists": 0, "baselines": ("none",), "seed": seed,
        }  # fmt: skip
        for budget in ("sweep", *plan.texts):
            if any((row["seed"], row["of"]) == (seed, budget) for row in record["rows"]):
                continue
            given["calibration"], began = list(data.calibration.batches(BATCH)), time.process_time()
            if budget == "sweep":
                found = amc.sweep(model, example, **plan.to_json(), episodes=args.together, **given)
                spent = time.process_time() - began
                points = [scores(point.model, point.record["slim"]["score"], judges) for point in found.points]
            else:
                result = amc.compress(model, example, budget=budget, episodes=args.policies, **given)
                spent = time.process_time() - began
                points = [scores(result.model, result.summary["slim"]["score"], judges)]
            record["rows"].append({"of": budget, "seed": seed, "cpu_seconds": spent, "points": points})
            save(name, record | {"environment": environment()})
            print(record["rows"][-1], flush=True)
    return load(name)


def scores(model: nn.Module, search: float, judges: Judges) -> Record:
    return {"search": search} | {split: judge(model) for split, judge in judges.items()}


def section(record: Record) -> str:
    scored, unseen = record["images"]
    sweeps = [row for row in record["rows"] if row["of"] == "sweep"]
    own = [[row for row in record["rows"] if row["of"] == budget] for budget in record["budgets"]]
    lines = []
    for place, (budget, rows) in enumerate(zip(record["budgets"], own, strict=True)):
        cells = [budget]
        for split in ("search", "held out", "test"):
            cells.append(spread([row["points"][place][split] for row in sweeps]))
            cells.append(spread([row["points"][0][split] for row in rows]))
        lines.append(cells)
    whole = statistics.median(row["cpu_seconds"] for row in sweeps)
    single = [row["cpu_seconds"] for rows in own for row in rows]
    ratio = f"{whole / statistics.median(single):.2f}" if single else "–"
    dense = {split: percent(value) for split, value in record["dense"].items()}
    header = ["budget", *(f"{split}, {of}" for split in ("search", "held out", "test") for of in ("sweep", "own"))]
    return (
        f"## One sweep against a search for each budget: {record['model']}\n\n"
        f"`python benchmarks/sweep.py --model {record['model']} --weights W --data cifar10:DATA --search-images "
        f"{scored + unseen}`: a sweep of {len(record['budgets'])} budgets with {record['together']} policies together, "
        f"and a search of its own with {record['policies']} policies for each; {scored:,} images score, {unseen:,} "
        f"others and the test split steer nothing; as pruned. Mean and range over {len(sweeps)} seeds, "
        f"{record['threads']} thread(s). A sweep takes {whole:.0f} CPU seconds with all preparation, {ratio} times the "
        f"median of a search of its own; all of these take {sum(single) / max(1, len(sweeps)):.0f}. Dense: "
        f"{dense['search']} search, {dense['held out']} held out, {dense['test']} test.\n\n"
        + table(header, lines)
        + machine(record)
    )


def spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{percent(statistics.mean(values))} ({percent(min(values))} to {percent(max(values))})"


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
