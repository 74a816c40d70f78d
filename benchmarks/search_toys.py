"""What carries the search: DDPG and its variants beside random policies on closed-form toy problems.

    python benchmarks/search_toys.py

The toys (tests/search/toys.py) have unequal, saturating layer sensitivities and score in microseconds, so that many
seeds can be compared. The results go to benchmarks/results/toys.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from amc.run.provenance import environment
from amc.search import Agent, DDPGAgent, DDPGConfig, Problem, SearchTask, create_agent, search
from common import Record, machine, percent, plain_parser, save, table
from tests.search.toys import chain_problem, residual_problem

RESULT = "toys.json"

PROBLEMS: dict[str, Callable[[int], Any]] = {
    "residual, 9 groups": lambda seed: residual_problem(9, "macs<=50%", seed),
    "chain, 14 groups": lambda seed: chain_problem(14, "macs<=50%", seed),
    "residual, 27 groups": lambda seed: residual_problem(27, "macs<=50%", seed),
}
VARIANTS: dict[str, dict[str, Any] | str] = {
    "uniform": "uniform",
    "random": "random",
    "DDPG as shipped": {},
    "DDPG, never around the best": {"elite_fraction": 0.0},
    "only around the best": {"elite_fraction": 1.0},
}


def options() -> argparse.ArgumentParser:
    parser = plain_parser(__doc__)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=6)
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(1)
    rows = []
    for name, make in PROBLEMS.items():
        scores = {variant: best_scores(make, variant, args) for variant in VARIANTS}
        for variant, values in scores.items():
            gains = [a - b for a, b in zip(values, scores["random"], strict=True)]
            rows.append({"problem": name, "variant": variant, **compared(values, gains)})
            print(rows[-1], flush=True)
    record = {"episodes": args.episodes, "seeds": args.seeds, "rows": rows, "environment": environment()}
    save(RESULT, record)
    return record


def best_scores(make: Callable[[int], Any], variant: str, args: argparse.Namespace) -> list[float]:
    """Best score of the search for each seed; seed and toy change together."""
    scores = []
    for seed in range(args.seeds):
        problem, score = make(seed)
        agent = agent_of(variant, problem, args.episodes, seed)
        result = search(problem, score, agent, episodes=args.episodes, seed=seed)
        scores.append(float(result.best.score or 0.0))
    return scores


def agent_of(variant: str, problem: Problem, episodes: int, seed: int) -> Agent:
    kind = VARIANTS[variant]
    if isinstance(kind, str):  # another seed than the warm-up's, so that the baseline draws its own policies
        return create_agent(kind, SearchTask(problem, episodes=episodes, seed=seed + 1000))
    return DDPGAgent(problem, dataclasses.replace(DDPGConfig.for_episodes(episodes), **kind), seed=seed)


def compared(values: Sequence[float], gains: Sequence[float]) -> dict[str, Any]:
    return {
        "score": statistics.mean(values),
        "gain": statistics.mean(gains),
        "spread": statistics.stdev(gains),
        "wins": sum(gain > 0 for gain in gains),
    }


def section(record: Record) -> str:
    rows = [
        [
            row["problem"], row["variant"], percent(row["score"]),
            f"{100 * row['gain']:+.2f} ± {100 * row['spread']:.2f}" if row["variant"] != "random" else "",
            f"{row['wins']}/{record['seeds']}" if row["variant"] != "random" else "",
        ]
        for row in record["rows"]
    ]  # fmt: skip
    return (
        f"## What carries the search\n\n`python benchmarks/search_toys.py`: closed-form toys with unequal layer "
        f"sensitivities at 50% of the MACs, best of {record['episodes']} scored policies, {record['seeds']} seeds.\n\n"
        + table(["problem", "agent", "best score, mean", "points over random", "wins"], rows)
        + "\nExploring around the best policy so far carries the gain; the actor-critic alone is no better than random "
        "policies at this length.\n" + machine(record)
    )


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
