"""What one episode costs: agent and environment, building the network, and scoring it.

    python benchmarks/episode_cost.py --model resnet20 --weights W.safetensors --data cifar10:ROOT

Dense and slim are scored in alternation, several rounds, and medians and the spread of the ratios are reported. The
results go to benchmarks/results/episode-MODEL.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from amc.compression.scoring.evaluator import Evaluator
from amc.compression.scoring.policy import PolicyScorer
from amc.pruning import Pruner, calibrate
from amc.pruning.methods import create_method, problem_of
from amc.run.provenance import environment
from amc.search import Bounds, EpisodeRecord, Problem, SearchTask, create_agent, parse_budgets, roll_out
from amc.structure import inspect
from common import Record, machine, network_parser, prepared, save, table

RESULT = "episode-{model}.json"


def options() -> argparse.ArgumentParser:
    parser = network_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bf16", action="store_true")
    return parser


def measure(args: argparse.Namespace) -> Record:
    ready = prepared(args)
    model, example = ready.model, torch.zeros(1, *ready.data.input_shape)
    structure, structure_seconds = timed(lambda: inspect(model, example))
    evaluator = Evaluator(ready.data.search, autocast=args.bf16)
    problem = problem_of(create_method("channel", model, structure), parse_budgets("macs<=50%"))
    gathered, calibration_seconds = timed(lambda: calibrate(model, structure, ready.calibration))
    pruner, fit_seconds = timed(lambda: Pruner(model, structure, gathered))
    solve_seconds = timed(lambda: all_keep_counts(pruner, problem))[1]
    scorer = PolicyScorer(pruner, evaluator, ready.bn_images, norms=ready.norms)
    policies, agent_seconds = proposals(problem, args.rounds)
    dense, parts = alternate(args.rounds, lambda: evaluator(model), scorer, policies)
    episode = [sum(part.values()) + agent_seconds for part in parts]
    record: Record = {
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
    save(RESULT.format(model=args.model), record)
    return record


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` returns, and the seconds it takes."""
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def all_keep_counts(pruner: Pruner, problem: Problem) -> None:
    """Reconstruct every layer for every keep count that the agent may choose."""
    dense = pruner.structure.sizes
    for index, decision in enumerate(problem.decisions):
        for count in decision.choices:
            keep = dense.copy()
            keep[index] = count
            pruner.build(keep.tolist())


def proposals(problem: Problem, count: int) -> tuple[list[tuple[int, ...]], float]:
    """Policies of a learning agent, and the median seconds of proposing and learning."""
    agent, bounds = create_agent("ddpg", SearchTask(problem, episodes=4 * count, seed=0)), Bounds(problem)
    policies, seconds = [], []
    for episode in range(2 * count):
        began = time.perf_counter()
        agent.begin_episode(episode, 0)
        rollout = roll_out(problem, bounds, agent.act)
        agent.end_episode(rollout, EpisodeRecord(episode, rollout.keep_counts, {}, 0.5, -0.5 + 0.01 * np.sin(episode)))
        seconds.append(time.perf_counter() - began)
        policies.append(rollout.keep_counts)
    return policies[count:], statistics.median(seconds[count:])


def alternate(
    rounds: int, dense: Callable[[], float], scorer: PolicyScorer, policies: Sequence[tuple[int, ...]]
) -> tuple[list[float], list[dict[str, float]]]:
    """Seconds of scoring the dense network and, beside each, the parts of one policy's score."""
    dense()
    dense_seconds, parts = [], []
    for number in range(rounds):
        dense_seconds.append(timed(dense)[1])
        part = scorer.scored(policies[number]).timing
        parts.append({"build": part.build, "batch norm": part.batch_norm, "score": part.evaluate})
    return dense_seconds, parts


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def section(record: Record) -> str:
    seconds, speed = record["seconds"], record["speedup"]
    rows = [[name, f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"] for name, value in seconds.items()]
    return (
        f"## What one episode costs: {record['model']}\n\n"
        f"`python benchmarks/episode_cost.py --model {record['model']} --weights W --data cifar10:DATA`, "
        f"{record['images']} search images, {record['scoring']}, {record['threads']} thread(s), medians of "
        f"{record['rounds']} rounds in which dense and slim alternate.\n\n"
        + table(["part", "time"], rows)
        + f"\nEverything but judging the network (re-estimating its batch norms, and the score) takes "
        f"{record['overhead']:.1%} of an episode. Scoring at 50% of the MACs is "
        f"{speed['median']:.2f} times as fast as scoring the dense network "
        f"({speed['least']:.2f} to {speed['most']:.2f}). "
        f"Ranking, factorising and solving for all keep counts, once, take as long as "
        f"{record['reconstruction_in_episodes']:.1f} episodes.\n" + machine(record)
    )


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
