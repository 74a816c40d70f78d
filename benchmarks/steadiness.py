"""How much a policy's score depends on what calibration samples, and on which of its parts.

    python benchmarks/steadiness.py --model resnet20 --weights W.safetensors --data cifar10:ROOT --search-images 2000

Each seed takes other training images and other positions. A case renews all of the calibration or only a part of it:
the ranking of the channels, the refitted weights, or the batch norms. The results go to
benchmarks/results/steadiness-MODEL.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from amc.cli.jobs.origin import BATCH, data_of, network_of
from amc.compression.scoring.batchnorm import statistics_on
from amc.compression.scoring.evaluator import Evaluator
from amc.compression.scoring.policy import PolicyScorer
from amc.compression.settings import BN_IMAGES, BatchNormRule
from amc.pruning import Calibration, Pruner, calibrate
from amc.pruning.calibration import POSITIONS
from amc.pruning.methods import MethodOptions, create_method, problem_of
from amc.run.provenance import environment
from amc.search import Bounds, SearchTask, create_agent, parse_budgets, roll_out
from amc.structure import inspect
from amc.zoo.images import FolderSet
from amc.zoo.splits import balanced_order
from common import Record, load, machine, network_parser, percent, save, source_of, table

RESULT = "steadiness-{model}.json"

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """What a seed renews, and how the network is made. The rest is as with seed 0."""

    label: str
    ranking: bool = True
    fit: bool = True
    norms: bool = True
    images: bool = True  # False: only the positions are others
    rule: BatchNormRule | None = "difference"  # None: the statistics of training
    bn_images: int = BN_IMAGES
    positions: int = POSITIONS


NOTHING = Case("nothing", ranking=False, fit=False, norms=False)
CASES = (
    Case("everything; new statistics", rule="replace"),
    Case("everything; statistics of training", rule=None),
    Case("everything"),
    *(Case(f"everything; {count} batch-norm images", bn_images=count) for count in (BN_IMAGES // 4, 2 * BN_IMAGES)),
    Case(f"everything; {4 * POSITIONS} positions an image", positions=4 * POSITIONS),
    Case("positions, of the same images", images=False),
    replace(NOTHING, label="the ranking", ranking=True),
    replace(NOTHING, label="the refitted weights", fit=True),
    replace(NOTHING, label="the batch norms", norms=True),
    replace(NOTHING, label="the batch norms; new statistics", norms=True, rule="replace"),
)


def options() -> argparse.ArgumentParser:
    parser = network_parser(__doc__)
    parser.add_argument("--budgets", nargs="+", default=["macs<=90%", "macs<=50%", "macs<=30%"])
    parser.add_argument("--randoms", type=int, default=1, help="random policies a budget, beside the uniform one")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--calibration-images", type=int, default=2048, help="of each seed")
    return parser


class Bench:
    """The network, its policies and its images; calibrations are made once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, source = args, source_of(args)
        self.model, self.data = network_of(source), data_of(source)
        self.evaluator = Evaluator(self.data.search)
        self.structure = inspect(self.model, torch.zeros(1, *self.data.input_shape))
        self.known: dict[tuple[int, int, int], tuple[Calibration, float]] = {}

    @cached_property
    def images(self) -> Sequence[Tensor]:
        """The calibration images of every seed: parts of the training split that do not overlap."""
        count, seeds = self.args.calibration_images, self.args.seeds
        train = self.data.train
        chosen = train.subset(torch.from_numpy(balanced_order(train.labels.numpy())[: count * seeds]))
        held = chosen.load() if isinstance(chosen, FolderSet) else chosen
        return torch.split(torch.cat([images for images, _ in held.batches(BATCH)]), count)

    def policies(self, budget: str) -> list[tuple[int, ...]]:
        problem = problem_of(
            create_method("channel", self.model, self.structure, MethodOptions()), parse_budgets(budget)
        )
        found = []
        for name, count in (("uniform", 1), ("random", self.args.randoms)):
            agent = create_agent(name, SearchTask(problem, episodes=count, seed=0))
            for episode in range(count):
                agent.begin_episode(episode, episode)
                found.append(tuple(map(int, roll_out(problem, Bounds(problem), agent.act).keep_counts)))
        return found

    def calibration(self, part: int, seed: int, positions: int) -> tuple[Calibration, float]:
        """From these images and positions, and the CPU seconds that it took."""
        key = (part, seed, positions)
        if key not in self.known:
            batches = torch.split(self.images[part], BATCH)
            self.known[key] = timed(calibrate, self.model, self.structure, batches, positions=positions, seed=seed)
        return self.known[key]

    def scorer(self, case: Case, seed: int) -> tuple[PolicyScorer, float]:
        """The scorer of a case with this seed, and the CPU seconds of its set-up."""
        part = seed if case.images else 0
        base, _ = self.calibration(0, 0, case.positions)
        renewed, calibrating = self.calibration(part, seed, case.positions)
        began = time.process_time()
        orders = Pruner(self.model, self.structure, renewed if case.ranking else base, reconstruct=False).orders
        pruner = Pruner(self.model, self.structure, renewed if case.fit else base, orders=orders)
        images = self.images[part if case.norms else 0][: case.bn_images]
        batches = torch.split(images, BATCH) if case.rule else ()
        norms = statistics_on(self.model, batches) if case.rule == "difference" else None
        seconds = calibrating + time.process_time() - began
        return PolicyScorer(pruner, self.no_score, batches, norms=norms), seconds

    @staticmethod
    def no_score(network: nn.Module) -> float:
        """Scores are measured by `measure`, which times them apart."""
        raise AssertionError(network)


def timed(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
    """What the call returns, and its CPU seconds."""
    began = time.process_time()
    return call(*args, **kwargs), time.process_time() - began


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(args.threads)
    name, bench = RESULT.format(model=args.model), Bench(args)
    policies = {budget: bench.policies(budget) for budget in args.budgets}
    record: Record = {
        "model": args.model, "threads": args.threads, "search_images": len(bench.data.search), "seeds": args.seeds,
        "calibration_images": args.calibration_images, "dense": bench.evaluator(bench.model), "rows": [],
        "policies": policies, "bn_images": BN_IMAGES,
        "environment": environment(),
    }  # fmt: skip
    for case in CASES:
        scores = {budget: np.zeros((len(keeps), args.seeds)) for budget, keeps in policies.items()}
        setup, building, scoring = [], [], []
        for seed in range(args.seeds):
            scorer, seconds = bench.scorer(case, seed)
            setup.append(seconds)
            for budget, keeps in policies.items():
                for place, keep in enumerate(keeps):
                    slim, built = timed(scorer.build, keep)
                    scores[budget][place, seed], scored = timed(bench.evaluator, slim)
                    building.append(built)
                    scoring.append(scored)
        record["rows"].append(
            {"case": case.label, "scores": {budget: values.tolist() for budget, values in scores.items()},
             "cpu_setup": float(np.mean(setup)), "cpu_build": float(np.mean(building)),
             "cpu_score": float(np.mean(scoring))}
        )  # fmt: skip
        save(name, record)
        print(case.label, figures(scores), flush=True)
    return load(name)


def figures(scores: Mapping[str, npt.ArrayLike]) -> dict[str, tuple[float, float]]:
    """For each budget the mean score, and the standard deviation over seeds: root mean square over the policies."""
    found = {}
    for budget, values in scores.items():
        rows = np.asarray(values)
        found[budget] = float(rows.mean()), float(np.sqrt(rows.var(axis=1, ddof=1).mean()))
    return found


def section(record: Record) -> str:
    budgets = list(record["policies"])
    rows = []
    for row in record["rows"]:
        cells = [f"{percent(mean)} ± {100 * sd:.2f}" for mean, sd in figures(row["scores"]).values()]
        cpu = row["cpu_build"] + row["cpu_score"]
        rows.append([row["case"], *cells, f"{row['cpu_setup']:.1f} s", f"{cpu:.2f} s"])
    count = len(record["policies"][budgets[0]])
    header = ["sampled anew by each seed", *budgets, "CPU, set-up", "a policy"]
    return (
        f"## How steady a score is: {record['model']}\n\n"
        f"`python benchmarks/steadiness.py --model {record['model']} --weights W --data cifar10:DATA --search-images "
        f"{record['search_images']}`: mean accuracy of {count} policies a budget, the uniform one and random ones, "
        f"± the standard deviation of a policy's score over {record['seeds']} seeds, in points. A seed takes other "
        f"{record['calibration_images']:,} calibration images and other positions; {POSITIONS} positions an image, and "
        f"batch norms corrected on {record['bn_images']} images, unless the first column says otherwise. "
        f"{record['threads']} thread(s). Dense: {percent(record['dense'])}.\n\n" + table(header, rows) + machine(record)
    )


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
