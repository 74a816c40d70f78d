"""What carries the search: DDPG and its variants beside random policies on closed-form toy problems.

    python -m benchmarks.search_toys            (from the root of the repository)

The toys (tests/search/toys.py) have unequal, saturating layer sensitivities and score in microseconds, so that many
seeds can be compared. The outcome goes to benchmarks/results/toys.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import torch

from amc.provenance import environment
from amc.search import Agent, DDPGAgent, DDPGConfig, Problem, create_agent, search
from benchmarks.common import save
from tests.search.toys import chain_problem, residual_problem

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=6)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, make in PROBLEMS.items():
        scores = {variant: best_scores(make, variant, args) for variant in VARIANTS}
        for variant, values in scores.items():
            gains = [a - b for a, b in zip(values, scores["random"], strict=True)]
            rows.append({"problem": name, "variant": variant, **compared(values, gains)})
            print(rows[-1])
    record = {"episodes": args.episodes, "seeds": args.seeds, "rows": rows, "environment": environment()}
    save("toys.json", record)


def best_scores(make: Callable[[int], Any], variant: str, args: argparse.Namespace) -> list[float]:
    """Best score of the search for each seed; seed and toy change together."""
    found = []
    for seed in range(args.seeds):
        problem, score = make(seed)
        result = search(
            problem, score, agent_of(variant, problem, args.episodes, seed), episodes=args.episodes, seed=seed
        )
        found.append(float(result.best.score or 0.0))
    return found


def agent_of(variant: str, problem: Problem, episodes: int, seed: int) -> Agent:
    kind = VARIANTS[variant]
    if isinstance(kind, str):  # another seed than the warm-up's, so that the baseline draws its own policies
        return create_agent(kind, problem, episodes=episodes, seed=seed + 1000)
    return DDPGAgent(problem, dataclasses.replace(DDPGConfig.for_episodes(episodes), **kind), seed=seed)


def compared(values: list[float], gains: list[float]) -> dict[str, Any]:
    return {
        "score": statistics.mean(values),
        "gain": statistics.mean(gains),
        "spread": statistics.stdev(gains),
        "wins": sum(gain > 0 for gain in gains),
    }


if __name__ == "__main__":
    main()
