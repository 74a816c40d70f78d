"""What ranking, reconstruction and batch-norm re-estimation are worth, without any fine-tuning.

    python benchmarks/reconstruction.py --model resnet20 --weights W.safetensors --data cifar10:ROOT

The same keep fraction in every group. The outcome goes to benchmarks/results/reconstruction-MODEL.json.
"""

from __future__ import annotations

import argparse

import numpy as np

from amc.evaluation import Evaluator, reestimate_batchnorm_
from amc.provenance import environment
from amc.pruning import Pruner, calibrate
from amc.structure import restrict
from common import parser, prepared, save


def main() -> None:
    args = arguments()
    ready = prepared(args)
    model = ready.model
    structure = restrict(ready.structure, lock=tuple(args.lock)) if args.lock else ready.structure
    gathered, evaluator = calibrate(model, structure, ready.calibration), Evaluator(ready.data.search)
    rows = []
    for ranking in ("magnitude", "elimination"):
        pruners = [Pruner(model, structure, gathered, ranking=ranking, reconstruct=refit) for refit in (False, True)]
        for fraction in args.fractions:
            keep = np.maximum(1, np.round(structure.sizes * fraction)).astype(np.int64).tolist()
            scores = []
            for pruner in pruners:
                slim = pruner.build(keep)
                scores.append(evaluator(slim))
                reestimate_batchnorm_(slim, ready.bn_images)
                scores.append(evaluator(slim))
            macs = structure.cost.macs(keep) / structure.macs
            rows.append({"kept": fraction, "ranking": ranking, "macs": macs, "scores": scores})
            print(rows[-1], flush=True)
    record = {
        "model": args.model, "images": len(ready.data.search), "locked": args.lock, "rows": rows,
        "dense": evaluator(model), "environment": environment(),
    }  # fmt: skip
    save(f"reconstruction-{args.model}.json", record)


def arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.set_defaults(search_images=2000)
    options.add_argument("--fractions", type=float, nargs="+", default=[0.75, 0.5, 0.35, 0.25])
    options.add_argument("--lock", nargs="*", default=[], help="patterns of groups to leave whole")
    return options.parse_args()


if __name__ == "__main__":
    main()
