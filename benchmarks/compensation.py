"""What ranking and compensation are worth to masked networks, at the same density in every layer.

    python benchmarks/compensation.py --model resnet20 --weights W.safetensors --data cifar10:ROOT

Accuracy on the search split without any fine-tuning; batch norms are re-estimated. The outcome goes to
benchmarks/results/compensation-MODEL.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from amc import jobs
from amc.config import SearchConfig
from amc.evaluation import Evaluator
from amc.job import limited
from amc.methods import MethodOptions, create_method
from amc.provenance import environment
from amc.pruning import calibrate
from amc.scoring import PolicyScorer
from amc.structure import inspect
from searches import save

CASES = (("fine-grained", 0.5), ("fine-grained", 0.3), ("fine-grained", 0.2), ("2:4", 0.5), ("1:4", 0.25),
         ("columns", 0.5), ("blocks:4x4", 0.5), ("rows", 0.75))  # fmt: skip


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    origin = {"model": args.model, "weights": args.weights, "data": args.data, "search_images": args.search_images}
    model, data = jobs.network_of(origin), jobs.data_of(origin)
    structure = inspect(model, torch.zeros(1, *data.input_shape))
    config = SearchConfig()
    batches = limited(data.calibration.batches(jobs.BATCH), config.calibration_images)
    whole = create_method("fine-grained", model, structure)
    gathered = calibrate(model, structure, batches, layers=whole.calibrated())
    evaluator = Evaluator(data.search, autocast=True)
    rows = []
    for name, density in CASES:
        scores = {}
        for ranking in ("magnitude", "elimination"):
            for reconstruct in (False, True):
                options = MethodOptions(ranking=ranking, reconstruct=reconstruct)
                method = create_method(name, model, structure, options)
                scorer = PolicyScorer(method.builder(gathered), evaluator, limited(batches, config.bn_images))
                choices = [np.array(decision.choices) for decision in method.decisions]
                keep = [int(c[np.abs(c - density * c[-1]).argmin()]) for c in choices]
                scores[f"{ranking}, {'compensated' if reconstruct else 'masked'}"] = scorer(keep)
        rows.append({"method": name, "density": density, "scores": scores})
        print(rows[-1], flush=True)
    record = {"model": args.model, "images": len(data.search), "dense": evaluator(model), "rows": rows}
    save(f"compensation-{args.model}.json", record | {"environment": environment()})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", required=True, help="cifar10:ROOT")
    parser.add_argument("--search-images", type=int)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
