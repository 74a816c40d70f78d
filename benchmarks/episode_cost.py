"""What one episode costs: agent and environment, building the network, and scoring it.

    python benchmarks/episode_cost.py --model resnet20 --weights W.safetensors --data cifar10:ROOT

Dense and slim are scored in alternation, several rounds, and medians and the spread of the ratios are reported. The
outcome goes to benchmarks/results/episode-MODEL.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from amc.evaluation import Evaluator
from amc.methods import create_method, problem_of
from amc.provenance import environment
from amc.pruning import Pruner, calibrate
from amc.scoring import PolicyScorer
from amc.search import Bounds, create_agent, parse_budgets, roll_out
from amc.structure import inspect
from common import parser, prepared, save


def main() -> None:
    args = arguments()
    ready = prepared(args)
    model, example = ready.model, torch.zeros(1, *ready.data.input_shape)
    structure, structure_seconds = timed(lambda: inspect(model, example))
    evaluator = Evaluator(ready.data.search, autocast=args.bf16)
    problem = problem_of(create_method("channel", model, structure), parse_budgets("macs<=50%"))
    gathered, calibration_seconds = timed(lambda: calibrate(model, structure, ready.calibration))
    pruner, fit_seconds = timed(lambda: Pruner(model, structure, gathered))
    solve_seconds = timed(lambda: all_keep_counts(pruner, problem))[1]
    scorer = PolicyScorer(pruner, evaluator, ready.bn_images)
    policies, agent_seconds = proposals(problem, args.rounds)
    dense, parts = alternate(args.rounds, lambda: evaluator(model), scorer, policies)
    episode = [sum(part.values()) + agent_seconds for part in parts]
    record: dict[str, Any] = {
        "model": args.model,
        "images": len(ready.data.search),
        "threads": args.threads,
        "scoring": "bfloat16" if args.bf16 else "float32",
        "rounds": args.rounds,
        "seconds": {
            "agent": agent_seconds,
            **{name: statistics.median(part[name] for part in parts) for name in parts[0]},
            "dense score": statistics.median(dense),
            "structure, once": structure_seconds,
            "calibration, once": calibration_seconds,
            "ranking and factorisation, once": fit_seconds,
            "all keep counts, once": solve_seconds,
        },
        "overhead": statistics.median(
            (agent_seconds + part["build"]) / total for part, total in zip(parts, episode, strict=True)
        ),
        "speedup": spread([d / part["score"] for d, part in zip(dense, parts, strict=True)]),
        "reconstruction_in_episodes": (fit_seconds + solve_seconds) / statistics.median(episode),
        "environment": environment(),
    }
    save(f"episode-{args.model}.json", record)
    print(json.dumps(record, indent=1))


def arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--bf16", action="store_true")
    return options.parse_args()


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def all_keep_counts(pruner: Pruner, problem: Any) -> None:
    """Reconstruct every layer for every keep count on offer."""
    dense = pruner.structure.sizes
    for index, decision in enumerate(problem.decisions):
        for count in decision.choices:
            keep = dense.copy()
            keep[index] = count
            pruner.build(keep.tolist())


def proposals(problem: Any, count: int) -> tuple[list[tuple[int, ...]], float]:
    """Policies of a learning agent, and the median seconds of proposing and learning."""
    agent, bounds = create_agent("ddpg", problem, episodes=4 * count, seed=0), Bounds(problem)
    policies, seconds = [], []
    for episode in range(2 * count):
        began = time.perf_counter()
        agent.begin_episode(episode, 0)
        rollout = roll_out(problem, bounds, agent.act)
        agent.end_episode(rollout, -0.5 + 0.01 * np.sin(episode))
        seconds.append(time.perf_counter() - began)
        policies.append(rollout.keep_counts)
    return policies[count:], statistics.median(seconds[count:])


def alternate(
    rounds: int, dense: Callable[[], float], scorer: PolicyScorer, policies: list[tuple[int, ...]]
) -> tuple[list[float], list[dict[str, float]]]:
    """Seconds of scoring the dense network and, beside each, the parts of one policy's score."""
    dense()
    dense_seconds, parts = [], []
    for round_ in range(rounds):
        dense_seconds.append(timed(dense)[1])
        part = scorer.scored(policies[round_]).timing
        parts.append({"build": part.build, "batch norm": part.batch_norm, "score": part.evaluate})
    return dense_seconds, parts


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


if __name__ == "__main__":
    main()
