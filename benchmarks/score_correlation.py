"""How well the score of a pruned network predicts its accuracy after fine-tuning, for four ways to score.

    python benchmarks/score_correlation.py --model resnet20 --weights W.safetensors --data cifar10:ROOT

Random policies on the surface of the budget are scored plain, with batch norms re-estimated, with refitted weights,
and with both; then each is fine-tuned from the weights with both. The results go to
benchmarks/results/correlation-MODEL.json after each policy, so an interrupted benchmark can be resumed.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.stats import spearmanr

from amc.compression.scoring.evaluator import Evaluator
from amc.compression.scoring.policy import PolicyScorer
from amc.pruning import calibrate
from amc.pruning.methods import MethodOptions, create_method, problem_of
from amc.recovery import FineTuneConfig, finetune
from amc.run.provenance import environment
from amc.search import Bounds, Problem, SearchTask, create_agent, parse_budgets, roll_out
from common import Prepared, Record, load, machine, network_parser, percent, prepared, save, table

RESULT = "correlation-{model}.json"

WAYS = {  # refitted weights, batch norms re-estimated
    "plain": (False, False), "batch norm": (False, True), "refitted": (True, False), "both": (True, True),
}  # fmt: skip


def options() -> argparse.ArgumentParser:
    parser = network_parser(__doc__)
    parser.add_argument("--budget", default="macs<=50%")
    parser.add_argument("--policies", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def measure(args: argparse.Namespace) -> Record:
    ready = prepared(args)
    data, test = ready.data, Evaluator(ready.data.test)
    problem = problem_of(create_method("channel", ready.model, ready.structure), parse_budgets(args.budget))
    scorers = scorers_of(ready)
    name = RESULT.format(model=args.model)
    record: Record = {"policies": []} | load(name)
    for number, keep in enumerate(random_policies(problem, args.policies, args.seed)):
        if number < len(record["policies"]):
            continue
        row: Record = {"keep": list(keep), "macs": problem.policy_costs(keep)["macs"]}
        row["scores"] = {way: scorer(keep) for way, scorer in scorers.items()}
        slim = scorers["both"].build(keep)
        finetune(slim, data.train, FineTuneConfig(epochs=args.epochs, precision="bfloat16"))
        row["test"] = test(slim)
        record["policies"].append(row)
        record |= {"model": args.model, "budget": args.budget, "epochs": args.epochs, "environment": environment()}
        record |= {"search_images": len(data.search)}
        save(name, record)
        print(number, row["scores"], row["test"], flush=True)
    return record


def scorers_of(ready: Prepared) -> dict[str, PolicyScorer]:
    """A scorer for each way to score."""
    dense, structure, evaluator = ready.model, ready.structure, Evaluator(ready.data.search, autocast=True)
    method = create_method("channel", dense, structure)
    gathered = calibrate(dense, structure, ready.calibration, layers=method.calibrated())
    scorers = {}
    for way, (reconstruct, again) in WAYS.items():
        builder = create_method("channel", dense, structure, MethodOptions(reconstruct=reconstruct)).builder(gathered)
        scorers[way] = PolicyScorer(builder, evaluator, ready.bn_images if again else [])
    return scorers


def random_policies(problem: Problem, count: int, seed: int) -> list[tuple[int, ...]]:
    """Keep counts of random policies on the surface of the budget, the same for the same seed."""
    agent, bounds = create_agent("random", SearchTask(problem, episodes=count, seed=seed)), Bounds(problem)
    policies = []
    for number in range(count):
        agent.begin_episode(number, 0)
        policies.append(roll_out(problem, bounds, agent.act).keep_counts)
    return policies


def section(record: Record) -> str:
    policies = record["policies"]
    test = np.array([row["test"] for row in policies])
    rows = []
    for way in policies[0]["scores"]:
        score = np.array([row["scores"][way] for row in policies])
        top = score >= np.median(score)
        rows.append(
            [
                way, f"{spearmanr(score, test).statistic:+.2f}", f"{spearmanr(score[top], test[top]).statistic:+.2f}",
                f"{percent(score.min())} to {percent(score.max())}", percent(test[score.argmax()]),
            ]
        )  # fmt: skip
    header = ["score", "rank correlation", "in its top half", "scores", "fine-tuned accuracy of its best"]
    return (
        f"## What the score is worth: {record['model']}, {record['budget']}\n\n"
        f"`python benchmarks/score_correlation.py --model {record['model']} --weights W --data cifar10:DATA`: "
        f"Spearman's rank correlation of four scores ({record['search_images']} search images, bfloat16) with the test "
        f"accuracy after {record['epochs']} epochs of fine-tuning, over {len(policies)} random policies. Test "
        f"accuracies lie between {percent(test.min())} and {percent(test.max())}, median "
        f"{percent(float(np.median(test)))}.\n\n" + table(header, rows) + machine(record)
    )


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
