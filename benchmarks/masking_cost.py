"""What one fine-grained episode costs: masking alone, and masking with compensation.

    python benchmarks/masking_cost.py --model resnet20 --weights W.safetensors --data cifar10:ROOT

Random policies at half the parameters, medians over the policies. Compensated weights are new in every episode, which
is the worst case: a search meets many keep counts again. The results go to benchmarks/results/masking-MODEL.json.
"""

from __future__ import annotations

import argparse
import statistics

from amc.compression.scoring.evaluator import Evaluator
from amc.compression.scoring.policy import PolicyScorer
from amc.pruning import calibrate
from amc.pruning.methods import MethodOptions, create_method, problem_of
from amc.run.provenance import environment
from amc.search import Bounds, SearchTask, create_agent, parse_budgets, roll_out
from common import Prepared, Record, machine, network_parser, prepared, save, table

RESULT = "masking-{model}.json"


def options() -> argparse.ArgumentParser:
    parser = network_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    return parser


def measure(args: argparse.Namespace) -> Record:
    ready = prepared(args)
    ways = {"masked": False, "masked and compensated": True}
    rows = {label: timed(ready, args.rounds, reconstruct=reconstruct) for label, reconstruct in ways.items()}
    record = {"model": args.model, "rounds": args.rounds, "images": len(ready.data.search), "threads": args.threads}
    record |= {"rows": rows, "environment": environment()}
    save(RESULT.format(model=args.model), record)
    return record


def timed(ready: Prepared, rounds: int, *, reconstruct: bool) -> dict[str, float]:
    """Median seconds of building a network and of a whole episode, over random policies."""
    method = create_method("fine-grained", ready.model, ready.structure, MethodOptions(reconstruct=reconstruct))
    gathered = calibrate(ready.model, ready.structure, ready.calibration, layers=method.calibrated())
    evaluator = Evaluator(ready.data.search, autocast=True)
    scorer = PolicyScorer(method.builder(gathered), evaluator, ready.bn_images, norms=ready.norms)
    problem = problem_of(method, parse_budgets("params<=50%"))
    agent, bounds = create_agent("random", SearchTask(problem, episodes=rounds, seed=0)), Bounds(problem)
    parts = []
    for number in range(rounds):
        agent.begin_episode(number, 0)
        parts.append(scorer.scored(roll_out(problem, bounds, agent.act).keep_counts).timing)
    build = statistics.median(part.build for part in parts)
    whole = statistics.median(part.build + part.batch_norm + part.evaluate for part in parts)
    return {"build": build, "episode": whole, "share": build / whole}


def section(record: Record) -> str:
    rows = [
        [label, f"{1000 * row['build']:.0f} ms", f"{row['episode']:.2f} s", f"{row['share']:.1%}"]
        for label, row in record["rows"].items()
    ]
    return (
        f"## What masking costs in an episode: {record['model']}, fine-grained\n\n"
        f"`python benchmarks/masking_cost.py --model {record['model']} --weights W --data cifar10:DATA`: "
        f"{record['images']} search images in bfloat16, {record['threads']} thread(s), medians of {record['rounds']} "
        "policies, all of them new.\n\n"
        + table(["", "building the network", "episode", "share"], rows)
        + machine(record)
    )


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
