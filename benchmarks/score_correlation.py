"""How well the score of a pruned network predicts its accuracy after fine-tuning, for four ways to score.

    python benchmarks/score_correlation.py --model resnet20 --weights W.safetensors --data cifar10:ROOT

Random policies on the surface of the budget are scored plain, with batch norms re-estimated, with refitted weights,
and with both; then each is fine-tuned from the weights with both. The outcome goes to
benchmarks/results/correlation-MODEL.json after each policy, so that a stopped benchmark goes on.
"""

from __future__ import annotations

import argparse
from typing import Any

from amc.evaluation import Evaluator
from amc.methods import MethodOptions, create_method, problem_of
from amc.provenance import environment
from amc.pruning import calibrate
from amc.recovery import FineTuneConfig, finetune
from amc.scoring import PolicyScorer
from amc.search import Bounds, RandomAgent, parse_budgets, roll_out
from common import load, parser, prepared, save

WAYS = {  # refitted weights, batch norms estimated again
    "plain": (False, False), "batch norm": (False, True), "refitted": (True, False), "both": (True, True),
}  # fmt: skip


def main() -> None:
    args = arguments()
    ready = prepared(args)
    data, dense, structure = ready.data, ready.model, ready.structure
    method = create_method("channel", dense, structure, MethodOptions())
    problem = problem_of(method, parse_budgets(args.budget))
    gathered = calibrate(dense, structure, ready.calibration, layers=method.calibrated())
    evaluator, test = Evaluator(data.search, autocast=True), Evaluator(data.test)
    scorers = {}
    for way, (reconstruct, again) in WAYS.items():
        builder = create_method("channel", dense, structure, MethodOptions(reconstruct=reconstruct)).builder(gathered)
        scorers[way] = PolicyScorer(builder, evaluator, ready.bn_images if again else [])
    name = f"correlation-{args.model}.json"
    record = {"policies": []} | load(name)
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
        save(name, record)
        print(number, row["scores"], row["test"], flush=True)


def arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--budget", default="macs<=50%")
    options.add_argument("--policies", type=int, default=30)
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--seed", type=int, default=0)
    return options.parse_args()


if __name__ == "__main__":
    main()
