"""What one fine-grained episode costs: masking alone, and masking with compensation.

    python benchmarks/masking_cost.py --model resnet20 --weights W.safetensors --data cifar10:ROOT

Random policies at half the parameters, medians over the policies; compensated weights are new in every episode, which
is the worst case: a search meets many keep counts again. The outcome goes to benchmarks/results/masking-MODEL.json.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

from amc import jobs
from amc.config import SearchConfig
from amc.evaluation import Evaluator
from amc.job import limited
from amc.methods import MethodOptions, create_method, problem_of
from amc.provenance import environment
from amc.pruning import calibrate
from amc.scoring import PolicyScorer
from amc.search import Bounds, RandomAgent, parse_budgets, roll_out
from amc.structure import inspect
from searches import save


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    origin = {"model": args.model, "weights": args.weights, "data": args.data, "search_images": args.search_images}
    model, data = jobs.network_of(origin), jobs.data_of(origin)
    structure = inspect(model, torch.zeros(1, *data.input_shape))
    config = SearchConfig()
    batches = limited(data.calibration.batches(jobs.BATCH), config.calibration_images)
    evaluator = Evaluator(data.search, autocast=True)
    rows: dict[str, Any] = {}
    for label, reconstruct in (("masked", False), ("masked and compensated", True)):
        method = create_method("fine-grained", model, structure, MethodOptions(reconstruct=reconstruct))
        gathered = calibrate(model, structure, batches, layers=method.calibrated())
        scorer = PolicyScorer(method.builder(gathered), evaluator, limited(batches, config.bn_images))
        problem = problem_of(method, parse_budgets("params<=50%"))
        agent, bounds = RandomAgent(problem, seed=0), Bounds(problem)
        parts = []
        for number in range(args.rounds):
            agent.begin_episode(number, 0)
            scorer(roll_out(problem, bounds, agent.act).keep_counts)
            parts.append(scorer.timing)
        build = statistics.median(part.build for part in parts)
        whole = statistics.median(part.build + part.batch_norm + part.evaluate for part in parts)
        rows[label] = {"build": build, "episode": whole, "share": build / whole}
    record = {"model": args.model, "rounds": args.rounds, "images": len(data.search), "threads": args.threads}
    save(f"masking-{args.model}.json", record | {"rows": rows, "environment": environment()})
    print(rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", required=True, help="cifar10:ROOT")
    parser.add_argument("--search-images", type=int)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
