"""What scoring a policy costs with each engine, and whether they give the same scores.

    python benchmarks/engines.py --model mobilenet_v1_050 --weights W.safetensors --data cifar10:ROOT

A search by DDPG proposes the policies, and learns from torch's scores. All engines score every policy, in turns, each
with a memory of its own, in CPU seconds. The dense network and one with half of every group are then scored in
bfloat16. The results go to benchmarks/results/engines-MODEL.json.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import nn

from amc.compression.scoring.engine.base import TorchEngine
from amc.compression.scoring.engine.choice import Task, onnx_engine, torch_engine
from amc.compression.scoring.engine.network import PiecewiseEngine
from amc.compression.scoring.evaluator import Evaluator
from amc.compression.scoring.policy import PolicyScorer
from amc.compression.settings import BN_IMAGES_BEFORE
from amc.pruning import Pruner, calibrate
from amc.pruning.methods import create_method, problem_of
from amc.run.provenance import environment
from amc.search import SearchTask, create_agent, parse_budgets, search
from amc.structure.batches import limited, size_of
from common import Prepared, Record, machine, network_parser, percent, prepared, save, table

RESULT = "engines-{model}.json"
CALLED = "torch, the network called"
BEFORE = f"{CALLED}; {BN_IMAGES_BEFORE} images for batch norms"
PARTS = ("build", "batch norms", "score")


def options() -> argparse.ArgumentParser:
    parser = network_parser(__doc__)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def measure(args: argparse.Namespace) -> Record:
    ready = prepared(args)
    problem = problem_of(create_method("channel", ready.model, ready.structure), parse_budgets("macs<=50%"))
    pruner = Pruner(ready.model, ready.structure, calibrate(ready.model, ready.structure, ready.calibration))
    scorers = scorers_of(ready, pruner)
    rows: dict[str, dict[str, Any]] = {name: {"same": 0, **dict.fromkeys(PARTS, 0.0)} for name in scorers}

    def score(policy: tuple[int, ...]) -> float:
        scores = {name: timed(scorer, policy, rows[name]) for name, scorer in scorers.items()}
        for name, each in scores.items():
            rows[name]["same"] += each == scores[CALLED]
        return scores[CALLED]

    agent = create_agent("ddpg", SearchTask(problem, episodes=args.episodes, seed=args.seed))
    search(problem, score, agent, episodes=args.episodes, seed=args.seed)
    for name, row in rows.items():
        engine = scorers[name].engine
        memory = engine.memory if isinstance(engine, PiecewiseEngine) else None
        row["hits"] = None if memory is None else memory.hits / max(1, memory.hits + memory.misses)
        row |= {part: row[part] / args.episodes for part in PARTS}
    record: Record = {
        "model": args.model,
        "images": len(ready.data.search),
        "episodes": args.episodes,
        "seed": args.seed,
        "rows": rows,
        "bfloat16": in_bfloat16(ready, pruner, problem.dense.tolist()),
        "environment": environment(),
    }
    save(RESULT.format(model=args.model), record)
    return record


def scorers_of(ready: Prepared, pruner: Pruner) -> dict[str, PolicyScorer]:
    """One scorer for each engine, by its name in the table."""
    evaluator = Evaluator(ready.data.search)
    batches = [batch for batch, _ in evaluator.held]
    task = Task(ready.model, batches, ready.structure.macs, others=sum(map(size_of, ready.bn_images)))
    engines = {CALLED: TorchEngine(), "torch, in pieces": torch_engine(task), "ONNX Runtime": onnx_engine(task)}
    scorers = {}
    for name, engine in engines.items():
        scorers[name] = PolicyScorer(pruner, evaluator.using(engine), ready.bn_images)
    more = limited(ready.calibration, BN_IMAGES_BEFORE)
    return {BEFORE: PolicyScorer(pruner, evaluator.using(TorchEngine()), more), **scorers}


def timed(scorer: PolicyScorer, policy: tuple[int, ...], row: dict[str, Any]) -> float:
    """The policy's score. Adds the CPU seconds of its parts to the row."""
    stops = [time.process_time()]
    slim = scorer.builder.build(policy)
    stops.append(time.process_time())
    slim = scorer.estimated(slim, policy)
    stops.append(time.process_time())
    score = scorer.evaluate(slim)
    stops.append(time.process_time())
    for part, begin, end in zip(PARTS, stops, stops[1:], strict=False):
        row[part] += end - begin
    return float(score)


def in_bfloat16(ready: Prepared, pruner: Pruner, dense: list[int]) -> list[dict[str, Any]]:
    """The scores and CPU seconds of two networks in float32 and in bfloat16, by torch."""
    evaluator = Evaluator(ready.data.search)
    half = pruner.build([max(1, size // 2) for size in dense])
    rows = []
    for name, network in (("dense", ready.model), ("half of every group", half)):
        for dtype in (torch.float32, torch.bfloat16):
            seconds, score = min(once(evaluator, network, dtype) for _ in range(2))
            rows.append({"network": name, "type": str(dtype).removeprefix("torch."), "s": seconds, "score": score})
    return rows


def once(evaluator: Evaluator, network: nn.Module, dtype: torch.dtype) -> tuple[float, float]:
    """CPU seconds of a score, and the score."""
    began = time.process_time()
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        right = [(network(batch.args[0]).argmax(1) == labels).sum() for batch, labels in evaluator.held]
    return time.process_time() - began, int(torch.stack(right).sum()) / len(evaluator)


def section(record: Record) -> str:
    rows = record["rows"]
    whole = {name: sum(row[part] for part in PARTS) for name, row in rows.items()}
    engines = [
        [
            name, *(f"{1000 * row[part]:.0f} ms" for part in PARTS), f"{1000 * whole[name]:.0f} ms",
            f"{whole[name] / whole[BEFORE]:.0%}", "" if row["hits"] is None else f"{row['hits']:.0%}",
            "" if name == BEFORE else f"{row['same']} of {record['episodes']}",
        ]
        for name, row in rows.items()
    ]  # fmt: skip
    halves = [
        [each["network"], each["type"], f"{each['s']:.2f} s", percent(each["score"])] for each in record["bfloat16"]
    ]
    return (
        f"## Engines: {record['model']}\n\n"
        f"`python benchmarks/engines.py --model {record['model']} --weights W --data cifar10:DATA`: "
        f"{record['episodes']} policies that DDPG proposes at half the MACs (seed {record['seed']}), "
        f"{record['images']} search images, CPU seconds of one thread for each policy, the engines in turns. Hits: how "
        "often the beginning of a network was already computed for a batch.\n\n"
        + table(["engine", *PARTS, "policy", "of the first", "hits", "same score"], engines)
        + "\nIn bfloat16, by torch's autocast:\n\n"
        + table(["network", "type", "time", "score"], halves)
        + machine(record)
    )


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
