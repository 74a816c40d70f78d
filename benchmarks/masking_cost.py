"""What one fine-grained episode costs: masking alone, and masking with compensation.

    python benchmarks/masking_cost.py --model resnet20 --weights W.safetensors --data cifar10:ROOT

Random policies at half the parameters, medians over the policies; compensated weights are new in every episode, which
is the worst case: a search meets many keep counts again. The outcome goes to benchmarks/results/masking-MODEL.json.
"""

from __future__ import annotations

import statistics
from typing import Any

from amc.evaluation import Evaluator
from amc.methods import MethodOptions, create_method, problem_of
from amc.provenance import environment
from amc.pruning import calibrate
from amc.scoring import PolicyScorer
from amc.search import Bounds, RandomAgent, parse_budgets, roll_out
from common import parser, prepared, save


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=15)
    args = options.parse_args()
    ready = prepared(args)
    evaluator = Evaluator(ready.data.search, autocast=True)
    rows: dict[str, Any] = {}
    for label, reconstruct in (("masked", False), ("masked and compensated", True)):
        method = create_method("fine-grained", ready.model, ready.structure, MethodOptions(reconstruct=reconstruct))
        gathered = calibrate(ready.model, ready.structure, ready.calibration, layers=method.calibrated())
        scorer = PolicyScorer(method.builder(gathered), evaluator, ready.bn_images)
        problem = problem_of(method, parse_budgets("params<=50%"))
        agent, bounds = RandomAgent(problem, seed=0), Bounds(problem)
        parts = []
        for number in range(args.rounds):
            agent.begin_episode(number, 0)
            parts.append(scorer.scored(roll_out(problem, bounds, agent.act).keep_counts).timing)
        build = statistics.median(part.build for part in parts)
        whole = statistics.median(part.build + part.batch_norm + part.evaluate for part in parts)
        rows[label] = {"build": build, "episode": whole, "share": build / whole}
    record = {"model": args.model, "rounds": args.rounds, "images": len(ready.data.search), "threads": args.threads}
    save(f"masking-{args.model}.json", record | {"rows": rows, "environment": environment()})
    print(rows)


if __name__ == "__main__":
    main()
