"""Tasks other than the classification of images: dense, uniform and AMC at two budgets, as pruned and after recovery.

    python benchmarks/tasks.py                        # all tasks of small_tasks.py
    python benchmarks/tasks.py --tasks text keywords  # these; the others stay as they were measured

Data is generated and networks are trained here, a minute or two each. The results go to benchmarks/results/tasks.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch import nn

import amc
from amc.compression.scoring.evaluator import Evaluator
from amc.report.tables import format_score
from amc.run.provenance import environment
from amc.run.settings.scores import SCORES
from common import Record, load, machine, plain_parser, save, table
from small_tasks import BATCH, TASKS, Task, trained

RESULT = "tasks.json"
SEARCH, CALIBRATION, TEST = 1, 2, 3  # seeds of the examples; each step of the training has one of its own
PARTS = 10  # of the test examples, for the standard error


def options() -> argparse.ArgumentParser:
    parser = plain_parser(__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--budgets", nargs="+", default=["macs<=50%", "macs<=25%"])
    parser.add_argument("--policies", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400, help="of the training")
    parser.add_argument("--search-images", type=int, default=600)
    parser.add_argument("--calibration-images", type=int, default=500)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(args.threads)
    settings = {
        name: getattr(args, name)
        for name in ("budgets", "policies", "seeds", "steps", "search_images", "calibration_images", "test_images")
    }
    record = load(RESULT)
    if record.get("settings") != settings:
        record = {"settings": settings, "tasks": {}}
    record["environment"] = environment()
    for name in args.tasks:
        record["tasks"][name] = measured(TASKS[name], args)
        save(RESULT, record)
        print(name, record["tasks"][name], flush=True)
    return record


def measured(task: Task, args: argparse.Namespace) -> Record:
    """One task: the scores on the test examples of each network, and what they cost."""
    began = time.process_time()
    dense = trained(task, args.steps)
    took = time.process_time() - began
    structure = amc.inspect(dense, task.example(), part=task.part)
    parts = [
        Evaluator(task.batches(args.test_images // PARTS, 1000 * TEST + part), score=task.score,
                  example_input=task.example())
        for part in range(PARTS)
    ]  # fmt: skip

    def judged(network: nn.Module) -> list[float]:
        return [score(network) for score in parts]

    found: Record = {}
    for budget in args.budgets:
        uniform = compressed(task, dense, args, judged, budget=budget, seed=0, agent="uniform", episodes=1)
        runs = [
            compressed(task, dense, args, judged, budget=budget, seed=seed, episodes=args.policies)
            for seed in range(args.seeds)
        ]
        found[budget] = {"uniform": uniform, "amc": runs}
    return {
        "score": task.score, "what": task.what, "part": task.part, "training_seconds": took, "dense": judged(dense),
        "prunable": structure.prunable_macs(), "budgets": found,
    }  # fmt: skip


def compressed(task: Task, dense: nn.Module, args: argparse.Namespace, judged: Any, **settings: Any) -> Record:
    """A search and its recovery, without a label; the scores on each part of the test examples."""
    found: Record = {}
    given = {
        "calibration": [inputs for inputs, _ in task.batches(args.calibration_images, 1000 * CALIBRATION)],
        "evaluate": task.batches(args.search_images, 1000 * SEARCH), "score": task.score,
        "part": task.part, "calibration_images": args.calibration_images,
    }  # fmt: skip
    for name, recover in (("pruned", "none"), ("recovered", "calibration")):
        began = time.process_time()
        result = amc.compress(
            dense, task.example(), recover=recover, finalists=1, baselines=("none",), **given, **settings
        )
        found[f"{name}_seconds"] = time.process_time() - began
        found[name] = judged(result.model)
        found["macs"] = result.summary["slim"]["macs"] / result.summary["dense"]["macs"]
        found["certified"] = result.summary["certificate"]["passed"]
    return found


def section(record: Record) -> str:
    settings = record["settings"]
    rows = [row_of(name, each, budget) for name, each in record["tasks"].items() for budget in each["budgets"]]
    header = ["task: network, data", "score", "prunable", "dense", "budget", "uniform, as pruned", "AMC, as pruned",
              "uniform, recovered", "AMC, recovered", "AMC better by", "in all seeds", "CPU"]  # fmt: skip
    return (
        "## Dense, uniform and AMC\n\n"
        f"`python benchmarks/tasks.py`: generated data, {settings['steps']} steps of training of {BATCH} examples, "
        f"{settings['policies']} policies scored on {settings['search_images']} examples, recovery of the best one on "
        f"{settings['calibration_images']} examples without a label. Scores are averages over {PARTS} test sets of "
        f"{settings['test_images'] // PARTS} examples; AMC's are those of the median of {settings['seeds']} seeds. "
        "*prunable* is the share of MACs that can be pruned, of the backbone for detection. *AMC better by* is how "
        "much better its recovered network is than the recovered uniform one, in percentage points or in the "
        "score's own unit, with the standard error over the test sets; *in all seeds* has the least and the most. "
        "*CPU* is a search with recovery, in CPU seconds.\n\n"
        f"{table(header, rows)}\n{machine(record)}\n"
    )


def row_of(name: str, each: Record, budget: str) -> list[str]:
    kind = SCORES[each["score"]]
    uniform, runs = each["budgets"][budget]["uniform"], each["budgets"][budget]["amc"]
    chosen = sorted(runs, key=lambda run: statistics.mean(run["recovered"]))[len(runs) // 2]
    unit = 100 if kind.is_share else 1
    gains = [difference(run["recovered"], uniform["recovered"])[0] for run in runs]
    gain, error = difference(chosen["recovered"], uniform["recovered"])

    def shown(values: list[float]) -> str:
        return format_score(kind.named(statistics.mean(values)))

    return [
        f"{name}: {each['what']}", kind.label, f"{each['prunable']:.0%}", shown(each["dense"]), f"`{budget}`",
        shown(uniform["pruned"]), shown(chosen["pruned"]), shown(uniform["recovered"]), shown(chosen["recovered"]),
        f"{unit * gain:+.2f} ± {unit * error:.2f}".replace("-", "−"),
        f"{unit * min(gains):+.2f} to {unit * max(gains):+.2f}".replace("-", "−"),
        f"{statistics.median(run['recovered_seconds'] for run in runs):.0f} s",
    ]  # fmt: skip


def difference(first: list[float], second: list[float]) -> tuple[float, float]:
    """How much better the first is, and the standard error over the test sets; of the scores, higher is better."""
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    return statistics.mean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
