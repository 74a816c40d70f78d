"""How well the score of a pruned network predicts its accuracy after fine-tuning, for four ways to score.

    python benchmarks/score_correlation.py --model resnet20 --weights W.safetensors --data cifar10:ROOT

Random policies on the surface of the budget are scored plain, with batch norms re-estimated, with refitted weights,
and with both; then each is fine-tuned from the weights with both. The outcome goes to
benchmarks/results/correlation-MODEL.json after each policy, so that a stopped benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from amc import jobs
from amc.evaluation import Evaluator
from amc.job import limited
from amc.methods import MethodOptions, create_method, problem_of
from amc.provenance import environment
from amc.pruning import calibrate
from amc.recovery import FineTuneConfig, finetune
from amc.rundir import atomic_write_bytes
from amc.scoring import PolicyScorer
from amc.search import Bounds, RandomAgent, parse_budgets, roll_out
from amc.structure import inspect

RESULTS = Path(__file__).parent / "results"
WAYS = {"plain": (False, 0), "batch norm": (False, 512), "refitted": (True, 0), "both": (True, 512)}


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    origin = {"model": args.model, "weights": str(args.weights), "data": args.data, "search_images": args.search_images}
    data, dense = jobs.data_of(origin), jobs.network_of(origin)
    structure = inspect(dense, torch.zeros(1, *data.input_shape))
    method = create_method("channel", dense, structure, MethodOptions())
    problem = problem_of(method, parse_budgets(args.budget))
    batches = limited(data.calibration.batches(jobs.BATCH), 2048)
    gathered = calibrate(dense, structure, batches, layers=method.calibrated())
    evaluator, test = Evaluator(data.search, autocast=True), Evaluator(data.test)
    scorers = {}
    for way, (reconstruct, images) in WAYS.items():
        builder = create_method("channel", dense, structure, MethodOptions(reconstruct=reconstruct)).builder(gathered)
        scorers[way] = PolicyScorer(builder, evaluator, limited(batches, images))
    path = RESULTS / f"correlation-{args.model}.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"policies": []}
    agent, bounds = RandomAgent(problem, seed=args.seed), Bounds(problem)
    for number in range(args.policies):
        agent.begin_episode(number, 0)
        keep = roll_out(problem, bounds, agent.act).keep_counts
        if number < len(record["policies"]):
            continue
        row: dict[str, Any] = {"keep": list(keep), "macs": problem.policy_costs(keep)["macs"]}
        row["scores"] = {way: scorer(keep) for way, scorer in scorers.items()}
        slim = scorers["both"].build(keep)
        finetune(slim, data.train, FineTuneConfig(epochs=args.epochs, precision="bfloat16"))
        row["test"] = test(slim)
        record["policies"].append(row)
        record |= {"model": args.model, "budget": args.budget, "epochs": args.epochs, "environment": environment()}
        record |= {"search_images": len(data.search)}
        atomic_write_bytes(path, (json.dumps(record, indent=1) + "\n").encode())
        print(number, row["scores"], row["test"], flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", required=True, help="cifar10:ROOT")
    parser.add_argument("--budget", default="macs<=50%")
    parser.add_argument("--search-images", type=int)
    parser.add_argument("--policies", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
