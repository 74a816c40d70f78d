"""What batches cost in quality: an agent that learns from many policies at once, on toys whose optimum is known.

    python benchmarks/batches.py
    python benchmarks/batches.py --episodes 400 --batches 1 16 64 256 --seeds 4

A batch is proposed before the first of its policies is scored, so that workers can score it together; the agent then
learns later than one that learns after every policy. The toys and the shares are those of search_toys.py. The results
go to benchmarks/results/batches-EPISODES.json after every search; a second call measures what is missing.
"""

from __future__ import annotations

import argparse
import itertools

import torch

from amc.run.provenance import environment
from common import Record, load, machine, plain_parser, save, table
from search_toys import REFERENCE, Case, Outcome, cell, points, searched, shares
from tests.search.landscapes import TOYS

RESULT = "batches-{episodes}.json"
BATCHES = (1, 4, 8, 16)


def options() -> argparse.ArgumentParser:
    parser = plain_parser(__doc__)
    parser.add_argument("--agent", default="planner")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--toys", nargs="+", default=list(TOYS), choices=list(TOYS), metavar="TOY")
    parser.add_argument("--images", type=int, default=2000, help="on which the scores are sampled; 0: exact scores")
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(1)
    setting = {"agent": args.agent, "episodes": args.episodes, "images": args.images}
    file = RESULT.format(episodes=args.episodes)
    record = load(file)
    if {name: record.get(name) for name in setting} != setting:
        record = {**setting, "runs": {}}
    for seed, toy in itertools.product(range(args.seeds), args.toys):
        for agent, batch in [(REFERENCE, 1), *((args.agent, batch) for batch in args.batches)]:
            name = f"{batch} | {Case(toy, args.images, agent, seed)}"
            if name not in record["runs"]:
                outcome = searched(Case(toy, args.images, agent, seed), args.episodes, batch)
                record["runs"][name] = str(outcome)
                save(file, record | {"environment": environment()})
    return load(file)


def section(record: Record) -> str:
    runs: dict[int, dict[Case, Outcome]] = {}
    for name, outcome in record["runs"].items():
        batch, _, case = name.partition(" | ")
        runs.setdefault(int(batch), {})[Case.parse(case)] = Outcome.parse(outcome)
    reference = {case: outcome for case, outcome in runs[1].items() if case.agent == REFERENCE}
    agent, counts = record["agent"], points(record["episodes"])
    toys = [toy for toy in TOYS if any(case.toy == toy for case in reference)]
    rows = []
    for batch, found in sorted(runs.items()):
        mine = {case: outcome for case, outcome in found.items() if case.agent == agent}
        seeds = len({case.seed for case in mine})
        if seeds:  # with a batch of 1 there may be the reference alone
            rows.append([str(batch), *(cell(list(shares(reference | mine, toy, agent))) for toy in toys), str(seeds)])
    return (
        f"## What a batch costs: {counts[-1]:,} policies\n\n"
        f"`python benchmarks/batches.py --episodes {counts[-1]}`: the agent `{agent}` on the toys of search_toys.py, "
        f"scores sampled on {record['images']:,} images. A cell is the share of the gap between the best of "
        f"{counts[-1]:,} random policies and the optimum, in percent, that is closed after {counts[0]:,}, "
        f"{counts[1]:,} and {counts[2]:,} scored policies, in the median over the seeds. The agent learns from no "
        "policy of a batch before all of it is proposed.\n\n"
        + table(["batch", *toys, "seeds"], rows) + machine(record)
    )  # fmt: skip


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
