"""How many policies an hour workers score, beside one process, and what memory they hold.

    python benchmarks/workers.py --model resnet20 --weights W.safetensors --data cifar10:ROOT --search-images 2000

The same random policies at half the MACs are scored in this process, on one thread and on `--threads`, and by pools of
workers, in turns, by the wall clock: nothing else may run on the machine. The start of the workers is measured apart.
Memory is the proportional set size (Linux): what several processes hold together counts as a part of each. The results
go to benchmarks/results/workers-MODEL.json.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from amc.cli.jobs.origin import BATCH, data_of, network_of
from amc.compression.inputs import Inputs
from amc.compression.job import Job
from amc.compression.prepare import prepare
from amc.compression.scoring.evaluator import Evaluator
from amc.compression.scoring.policy import PolicyScorer
from amc.compression.scoring.workers.pool import Pool
from amc.compression.scoring.workers.processes import Processes
from amc.compression.settings import SearchConfig
from amc.run.provenance import CPU, environment
from amc.structure.batches import limited
from common import Record, machine, network_parser, save, source_of, table
from score_correlation import random_policies

RESULT = "workers-{model}.json"
HERE = "in this process, 1 thread"
Keep = tuple[int, ...]


def options() -> argparse.ArgumentParser:
    parser = network_parser(__doc__)
    parser.add_argument("--policies", type=int, default=24, help="a round")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(1)
    job, images = job_at_half(args)
    policies = list(random_policies(job.problem, args.policies * args.rounds, 0))
    parts = [policies[number :: args.rounds] for number in range(args.rounds)]
    ways: dict[str, Callable[[Sequence[Keep]], dict[str, float]]] = {HERE: partial(here, job.scorer, 1)}
    if args.threads > 1:
        ways[f"in this process, {args.threads} threads"] = partial(here, job.scorer, args.threads)
    for count in args.workers:
        ways[f"{count} worker{'s' * (count > 1)}"] = partial(pooled, job.scorer, count)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for part in parts:
        for name, way in ways.items():
            rounds[name].append(way(part))
            print(name, rounds[name][-1], flush=True)
    record: Record = {
        "model": args.model, "policies": args.policies, "threads": args.threads, "rounds": rounds,
        "images": images,
        "environment": environment(),
    }  # fmt: skip
    save(RESULT.format(model=args.model), record)
    return record


def job_at_half(args: argparse.Namespace) -> tuple[Job, int]:
    """A search at half the MACs, ready to score policies, and the number of its images."""
    model, data = network_of(source_of(args)), data_of(source_of(args))
    config = SearchConfig(budget="macs<=50%", recover="none", finalists=0)
    calibration = limited(data.calibration.batches(BATCH), config.calibration_images)
    job = prepare(Inputs(model, torch.zeros(1, *data.input_shape), calibration, Evaluator(data.search)), config)
    return job, len(data.search)


def forgetful(scorer: PolicyScorer) -> PolicyScorer:
    """The same scorer, without the scores that it remembers."""
    return PolicyScorer(scorer.builder, scorer.evaluate, scorer.batches, scorer.dense, scorer.norms)


def here(scorer: PolicyScorer, threads: int, policies: Sequence[Keep]) -> dict[str, float]:
    """Seconds of a policy, without what an earlier way has remembered."""
    scorer.engine.forget()
    torch.set_num_threads(threads)
    scorer, began = forgetful(scorer), time.perf_counter()
    for policy in policies:
        scorer(policy)
    torch.set_num_threads(1)
    return {"seconds": (time.perf_counter() - began) / len(policies)}


def pooled(
    scorer: PolicyScorer, workers: int, policies: Sequence[Keep], device: torch.device = CPU
) -> dict[str, float]:
    """Seconds of a policy and of the start, and the memory of a worker at the end."""
    began = time.perf_counter()
    processes = Processes(forgetful(scorer), workers, device=device)
    with Pool(forgetful(scorer), processes) as pool:
        pool.ready()
        started = time.perf_counter()
        pool.begin(policies)
        for policy in policies:
            pool.scored(policy)
        seconds = (time.perf_counter() - started) / len(policies)
        sizes = [held(process) for process in processes.pids]
    return {"seconds": seconds, "start": started - began, **{key: max(s[key] for s in sizes) for key in sizes[0]}}


def held(process: int) -> dict[str, float]:
    """MiB that a process holds: its share of what it holds with others, and what it alone holds."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8") if os.name == "posix" else ""
    found = {key: int(kilobytes) / 1024 for key, kilobytes in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}
    return {"pss": found.get("Pss", 0.0), "rss": found.get("Rss", 0.0)}


def section(record: Record) -> str:
    rounds = record["rounds"]
    rows = []
    for name, found in rounds.items():
        median = {key: statistics.median(row[key] for row in found) for key in found[0]}
        ratio = statistics.median(one["seconds"] / row["seconds"] for one, row in zip(rounds[HERE], found, strict=True))
        rows.append([
            name, f"{1000 * median['seconds']:.0f} ms", f"{3600 / median['seconds']:.0f}", f"{ratio:.2f}×",
            *(f"{median[key]:{form}} {unit}" if key in median else "" for key, form, unit in (
                ("start", ".1f", "s"), ("pss", ".0f", "MiB"), ("rss", ".0f", "MiB")
            )),
        ])  # fmt: skip
    return (
        f"## Workers: {record['model']}\n\n"
        f"`python benchmarks/workers.py --model {record['model']} --weights W --data cifar10:DATA --search-images "
        f"{record['images']} --threads {record['threads']}`: {record['policies']} random policies at half the MACs a "
        f"round, {len(rounds[HERE])} rounds, each way in turns, by the wall clock; medians. Workers have one thread "
        "each. Memory: of the worker that holds most, with what it shares counted in parts, and in full.\n\n"
        + table(["way", "a policy", "policies an hour", "as fast", "start", "memory", "in full"], rows)
        + machine(record)
    )


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
