"""What ranking and compensation are worth to masked networks, at the same density in every layer.

    python benchmarks/compensation.py --model resnet20 --weights W.safetensors --data cifar10:ROOT

Accuracy on the search split without any fine-tuning; batch norms are re-estimated. The results go to
benchmarks/results/compensation-MODEL.json.
"""

from __future__ import annotations

import argparse

import numpy as np

from amc.compression.scoring.evaluator import Evaluator
from amc.compression.scoring.policy import PolicyScorer
from amc.pruning import calibrate
from amc.pruning.methods import MethodOptions, create_method
from amc.run.provenance import environment
from common import Record, machine, network_parser, percent, prepared, save, table

RESULT = "compensation-{model}.json"

CASES = (("fine-grained", 0.5), ("fine-grained", 0.3), ("fine-grained", 0.2), ("2:4", 0.5), ("1:4", 0.25),
         ("columns", 0.5), ("blocks:4x4", 0.5), ("rows", 0.75))  # fmt: skip


def options() -> argparse.ArgumentParser:
    return network_parser(__doc__)


def measure(args: argparse.Namespace) -> Record:
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
                settings = MethodOptions(ranking=ranking, reconstruct=reconstruct)
                method = create_method(name, model, structure, settings)
                scorer = PolicyScorer(method.builder(gathered), evaluator, ready.bn_images, norms=ready.norms)
                choices = [np.array(decision.choices) for decision in method.decisions]
                keep = [int(c[np.abs(c - density * c[-1]).argmin()]) for c in choices]
                scores[f"{ranking}, {'compensated' if reconstruct else 'masked'}"] = scorer(keep)
        rows.append({"method": name, "density": density, "scores": scores})
        print(rows[-1], flush=True)
    record = {"model": args.model, "images": len(ready.data.search), "dense": evaluator(model), "rows": rows}
    record["environment"] = environment()
    save(RESULT.format(model=args.model), record)
    return record


def section(record: Record) -> str:
    ways = list(record["rows"][0]["scores"])
    rows = [[row["method"], f"{row['density']:.0%}", *map(percent, row["scores"].values())] for row in record["rows"]]
    return (
        f"## What ranking and compensation are worth to masks: {record['model']}\n\n"
        f"`python benchmarks/compensation.py --model {record['model']} --weights W --data cifar10:DATA`: the same "
        f"density in every layer, accuracy on {record['images']} search images without any fine-tuning, batch norms "
        "re-estimated "
        f"(dense {percent(record['dense'])}).\n\n" + table(["method", "density", *ways], rows) + machine(record)
    )


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
