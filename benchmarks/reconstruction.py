"""What ranking, reconstruction and batch-norm re-estimation are worth, without any fine-tuning.

    python benchmarks/reconstruction.py --model resnet20 --weights W.safetensors --data cifar10:ROOT

Every group keeps the same share of its channels. The results go to benchmarks/results/reconstruction-MODEL.json.
"""

from __future__ import annotations

import argparse

import numpy as np

from amc.compression.scoring.batchnorm import reestimate_batchnorm_
from amc.compression.scoring.evaluator import Evaluator
from amc.pruning import Pruner, calibrate
from amc.run.provenance import environment
from amc.structure import restrict
from common import Record, machine, network_parser, percent, prepared, save, table

RESULT = "reconstruction-{model}.json"


def options() -> argparse.ArgumentParser:
    parser = network_parser(__doc__)
    parser.set_defaults(search_images=2000)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.75, 0.5, 0.35, 0.25])
    parser.add_argument("--lock", nargs="*", default=[], help="patterns of groups to leave whole")
    return parser


def measure(args: argparse.Namespace) -> Record:
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
    save(RESULT.format(model=args.model), record)
    return record


def section(record: Record) -> str:
    rows = [
        [f"{row['kept']:.0%}", f"{row['macs']:.1%}", row["ranking"], *(percent(score) for score in row["scores"])]
        for row in record["rows"]
    ]
    lock = f" --lock {' '.join(record['locked'])}" if record["locked"] else ""
    header = ["kept", "MACs", "ranking", "plain", "batch norm re-estimated", "least squares", "both"]
    return (
        f"## What ranking, least squares and batch-norm re-estimation are worth: {record['model']}\n\n"
        f"`python benchmarks/reconstruction.py --model {record['model']} --weights W --data cifar10:DATA{lock}`: "
        f"the same share of every group kept, accuracy on {record['images']} search images without any fine-tuning "
        f"(dense {percent(record['dense'])}).\n\n" + table(header, rows) + machine(record)
    )


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
