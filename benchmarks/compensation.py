"""What ranking and compensation are worth to masked networks, at the same density in every layer.

    python benchmarks/compensation.py --model resnet20 --weights W.safetensors --data cifar10:ROOT

Accuracy on the search split without any fine-tuning; batch norms are re-estimated. The outcome goes to
benchmarks/results/compensation-MODEL.json.
"""

from __future__ import annotations

import numpy as np

from amc.evaluation import Evaluator
from amc.methods import MethodOptions, create_method
from amc.provenance import environment
from amc.pruning import calibrate
from amc.scoring import PolicyScorer
from common import parser, prepared, save

CASES = (("fine-grained", 0.5), ("fine-grained", 0.3), ("fine-grained", 0.2), ("2:4", 0.5), ("1:4", 0.25),
         ("columns", 0.5), ("blocks:4x4", 0.5), ("rows", 0.75))  # fmt: skip


def main() -> None:
    args = parser(__doc__).parse_args()
    ready = prepared(args)
    model, structure = ready.model, ready.structure
    whole = create_method("fine-grained", model, structure)
    gathered = calibrate(model, structure, ready.calibration, layers=whole.calibrated())
    evaluator = Evaluator(ready.data.search, autocast=True)
    rows = []
    for name, density in CASES:
        scores = {}
        for ranking in ("magnitude", "elimination"):
            for reconstruct in (False, True):
                options = MethodOptions(ranking=ranking, reconstruct=reconstruct)
                method = create_method(name, model, structure, options)
                scorer = PolicyScorer(method.builder(gathered), evaluator, ready.bn_images)
                choices = [np.array(decision.choices) for decision in method.decisions]
                keep = [int(c[np.abs(c - density * c[-1]).argmin()]) for c in choices]
                scores[f"{ranking}, {'compensated' if reconstruct else 'masked'}"] = scorer(keep)
        rows.append({"method": name, "density": density, "scores": scores})
        print(rows[-1], flush=True)
    record = {"model": args.model, "images": len(ready.data.search), "dense": evaluator(model), "rows": rows}
    save(f"compensation-{args.model}.json", record | {"environment": environment()})


if __name__ == "__main__":
    main()
