"""What ranking, reconstruction and batch-norm re-estimation are worth, without any fine-tuning.

    python benchmarks/reconstruction.py --model resnet20 --weights W.safetensors --data cifar10:ROOT

The same keep fraction in every group. The outcome goes to benchmarks/results/reconstruction-MODEL.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from amc import jobs
from amc.config import SearchConfig
from amc.evaluation import Evaluator, reestimate_batchnorm_
from amc.job import limited
from amc.provenance import environment
from amc.pruning import Pruner, calibrate
from amc.rundir import atomic_write_bytes
from amc.structure import inspect, restrict

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    origin = {"model": args.model, "weights": args.weights, "data": args.data, "search_images": args.search_images}
    model, data = jobs.network_of(origin), jobs.data_of(origin)
    structure = inspect(model, torch.zeros(1, *data.input_shape))
    if args.lock:
        structure = restrict(structure, lock=tuple(args.lock))
    config = SearchConfig()
    batches = limited(data.calibration.batches(jobs.BATCH), config.calibration_images)
    gathered, evaluator = calibrate(model, structure, batches), Evaluator(data.search)
    images = limited(batches, config.bn_images)
    rows = []
    for ranking in ("magnitude", "elimination"):
        pruners = [Pruner(model, structure, gathered, ranking=ranking, reconstruct=refit) for refit in (False, True)]
        for fraction in args.fractions:
            keep = np.maximum(1, np.round(structure.sizes * fraction)).astype(np.int64).tolist()
            scores = []
            for pruner in pruners:
                slim = pruner.build(keep)
                scores.append(evaluator(slim))
                reestimate_batchnorm_(slim, images)
                scores.append(evaluator(slim))
            macs = structure.cost.macs(keep) / structure.macs
            rows.append({"kept": fraction, "ranking": ranking, "macs": macs, "scores": scores})
            print(rows[-1], flush=True)
    record = {
        "model": args.model, "images": len(data.search), "locked": args.lock, "rows": rows,
        "dense": evaluator(model), "environment": environment(),
    }  # fmt: skip
    path = RESULTS / f"reconstruction-{args.model}.json"
    atomic_write_bytes(path, (json.dumps(record, indent=1) + "\n").encode())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True, help="cifar10:ROOT")
    parser.add_argument("--search-images", type=int, default=2000)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.75, 0.5, 0.35, 0.25])
    parser.add_argument("--lock", nargs="*", default=[], help="patterns of groups to leave whole")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
