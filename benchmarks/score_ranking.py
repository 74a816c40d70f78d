"""Which cheap score of a pruned network predicts best how good it becomes: in rank correlation and CPU seconds.

    python benchmarks/score_ranking.py --model resnet20 --weights W.safetensors --data cifar10:ROOT --search-images 2000

Random policies on the surface of the budget are scored by accuracy, by cross-entropy and by the KL divergence to the
dense network's outputs, each as pruned and after 8 and 32 steps of the recovery without labels, of all weights or of
norms and biases alone; as pruned also with fewer and more images for the batch norms. Then each is recovered fully,
and fine-tuned for `--epochs` from there. The results go to benchmarks/results/ranking-MODEL-BUDGET.json after each
policy, so an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from amc.cli.jobs.devices import device_named
from amc.cli.jobs.origin import BATCH, data_of, network_of
from amc.compression.inputs import Inputs
from amc.compression.job import Job
from amc.compression.prepare import prepare
from amc.compression.scoring.evaluator import Evaluator, as_evaluator
from amc.compression.settings import BN_IMAGES, SearchConfig
from amc.recovery import FineTuneConfig, finetune
from amc.recovery.distillation import Plan, distill_
from amc.recovery.records import StepRecord
from amc.run.provenance import environment
from amc.structure.batches import limited
from amc.structure.copying import copy_model
from amc.structure.modes import evaluating
from common import RESULTS, Record, load, machine, network_parser, percent, save, source_of, table
from score_correlation import random_policies

RESULT = "ranking-{model}-{share}.json"
STEPS = (8, 32)
NORM_IMAGES = (BN_IMAGES // 4, 2 * BN_IMAGES)  # beside BN_IMAGES
TRAINED = {"all weights": True, "norms and biases": False}
SCORES = ("top-1", "cross-entropy", "KL to dense")


def options() -> argparse.ArgumentParser:
    parser = network_parser(__doc__)
    parser.add_argument("--share", type=int, default=50, help="of the MACs, percent")
    parser.add_argument("--policies", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=2, help="of fine-tuning on the training split; 0: none")
    parser.add_argument("--seed", type=int, default=0, help="of the policies")
    parser.add_argument("--device", default="cpu", help="cuda: faster, and then the times are the GPU's")
    parser.add_argument(
        "--part", default="1/1", help="2/6: every sixth policy from the second on, in a file of its own, for several "
        "processes; the whole benchmark then goes on from all parts",
    )  # fmt: skip
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(args.threads)
    device, (part, parts) = device_named(args.device), map(int, args.part.split("/"))
    whole = RESULT.format(model=args.model, share=args.share)
    name = whole if parts == 1 else f"part-{part}-{whole}"
    model, data = network_of(source_of(args)).to(device), data_of(source_of(args))
    calibration = limited(data.calibration.batches(BATCH), SearchConfig().calibration_images)
    inputs = Inputs(model, torch.zeros(1, *data.input_shape, device=device), calibration, Evaluator(data.search))
    jobs = {
        count: prepare(inputs, SearchConfig(f"macs<={args.share}%", recover="none", finalists=0, bn_images=count))
        for count in (BN_IMAGES, *NORM_IMAGES)
    }
    job = jobs[BN_IMAGES]
    batches = [(images.to(device), labels.to(device)) for images, labels in data.search.batches(256)]
    test = as_evaluator(data.test, device=device)
    targets = [outputs(model, images) for images, _ in batches]
    earlier = [load(path.name) for path in (*RESULTS.glob(f"part-*-{whole}"), RESULTS / name)]
    done = {tuple(row["keep"]): row for each in earlier for row in each.get("policies", ())}
    record: Record = {"policies": [], **{key: each[key] for each in earlier for key in each if key == "environment"}}
    record |= {"model": args.model, "share": args.share, "epochs": args.epochs, "search_images": len(data.search)}
    record |= {"calibration_images": SearchConfig().calibration_images, "threads": args.threads}
    record |= {"bn_images": BN_IMAGES}
    policies = list(random_policies(job.problem, args.policies, args.seed))[part - 1 :: parts]
    for number, keep in enumerate(policies):
        if keep in done:
            record["policies"].append(done[keep])
            continue
        row: Record = {"keep": list(keep), "scores": {}, "seconds": {}}
        for way, network, seconds in (*with_norms(jobs, keep), *ways(job, keep)):
            began = time.process_time()
            row["scores"][way] = scores_of(network, batches, targets)
            row["seconds"][way] = seconds + time.process_time() - began
        slim, began = job.scorer.build(keep), time.process_time()
        distill_(slim, copy_model(model), job.calibration, classes=True)
        row["recovered"], row["recovery_seconds"] = test(slim), time.process_time() - began
        if args.epochs:
            finetune(slim, data.train, FineTuneConfig(epochs=args.epochs))
            row["fine-tuned"] = test(slim)
        record["policies"].append(row)
        record["environment"] = environment(device)
        save(name, record)
        print(number, row["recovered"], row.get("fine-tuned"), flush=True)
    save(name, record)  # of the parts, where nothing was left to do
    return record


def with_norms(jobs: Mapping[int, Job], keep: tuple[int, ...]) -> Iterator[tuple[str, nn.Module, float]]:
    """A policy's network as pruned, its batch norms corrected on other numbers of images."""
    for count in NORM_IMAGES:
        began = time.process_time()
        yield f"as pruned, {count} images for batch norms", jobs[count].scorer.build(keep), time.process_time() - began


def ways(job: Job, keep: tuple[int, ...]) -> Iterator[tuple[str, nn.Module, float]]:
    """Each network of a policy that is scored: how it was made, and in how many CPU seconds."""
    began = time.process_time()
    pruned = job.scorer.build(keep)
    built = time.process_time() - began
    yield "as pruned", pruned, built
    for what, everything in TRAINED.items():
        for steps in STEPS:
            slim, began = copy_model(pruned), time.process_time()
            frozen = {} if everything else weights_of(slim)
            distill_(
                slim, copy_model(job.model), job.calibration, classes=True, plan=Plan(steps=steps),
                on_step=partial(restore_, slim, frozen),
            )  # fmt: skip
            yield f"{steps} steps, {what}", slim, built + time.process_time() - began


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters that are neither of a batch norm nor biases."""
    norms = {
        id(parameter) for part in network.modules() if isinstance(part, _BatchNorm) for parameter in part.parameters()
    }
    return {
        name: parameter.detach().clone()
        for name, parameter in network.named_parameters()
        if id(parameter) not in norms and parameter.ndim > 1
    }


@torch.no_grad()
def restore_(network: nn.Module, frozen: dict[str, Tensor], _: StepRecord) -> None:
    """Take back what a step changed of the frozen weights."""
    for name, value in frozen.items():
        network.get_parameter(name).copy_(value)


def outputs(network: nn.Module, images: Tensor) -> Tensor:
    with evaluating(network), torch.inference_mode():
        logits: Tensor = network(images)
        return logits


def scores_of(network: nn.Module, batches: list[tuple[Tensor, Tensor]], targets: list[Tensor]) -> dict[str, float]:
    """Every score on the search images; higher is better."""
    right = entropy = divergence = 0.0
    count = sum(len(labels) for _, labels in batches)
    for (images, labels), dense in zip(batches, targets, strict=True):
        logits = outputs(network, images)
        right += float((logits.argmax(1) == labels).sum())
        entropy += float(F.cross_entropy(logits, labels, reduction="sum"))
        divergence += float(F.kl_div(logits.log_softmax(1), dense.log_softmax(1), log_target=True, reduction="sum"))
    return dict(zip(SCORES, (right / count, -entropy / count, -divergence / count), strict=True))


def section(record: Record) -> str:
    policies = record["policies"]
    goals = [goal for goal in ("recovered", "fine-tuned") if all(goal in row for row in policies)]
    reached = {goal: np.array([row[goal] for row in policies]) for goal in goals}
    rows, gpu = [], record["environment"].get("gpu")
    for way in policies[0]["scores"]:
        seconds = float(np.median([row["seconds"][way] for row in policies]))
        for kind in SCORES:
            score = np.array([row["scores"][way][kind] for row in policies])
            cells = [
                cell
                for goal in goals
                for cell in (
                    f"{spearmanr(score, reached[goal]).statistic:+.2f}",
                    percent(reached[goal][score.argmax()]),
                )
            ]
            rows.append([way, kind, *cells, *([] if gpu else [f"{seconds:.1f} s"])])
    header = ["network", "score", *(cell for goal in goals for cell in (f"rank, {goal}", "its best"))]
    header += [] if gpu else ["CPU time"]
    ranges = "; ".join(
        f"{goal}: {percent(values.min())} to {percent(values.max())}, median {percent(float(np.median(values)))}"
        for goal, values in reached.items()
    )
    tuned = f", and with that after {record['epochs']} epochs of fine-tuning" if "fine-tuned" in goals else ""
    return (
        f"## Which score ranks best: {record['model']}, {record['share']}% of the MACs\n\n"
        f"`python benchmarks/score_ranking.py --model {record['model']} --weights W --data cifar10:DATA --share "
        f"{record['share']} --search-images {record['search_images']} --policies {len(policies)} --epochs "
        f"{record['epochs']}`: Spearman's rank correlation of each score ({record['search_images']:,} search images, "
        f"{record['calibration_images']:,} calibration images, {record['threads']} thread(s)) with the test accuracy "
        f'after the full recovery without labels{tuned}, over {len(policies)} random policies; "its best" is that '
        f"accuracy of the policy with the best score. Batch norms are corrected on {record['bn_images']} images, "
        f"unless the line says otherwise. Test accuracies, {ranges}. With {len(policies)} policies a correlation is "
        f"uncertain by about {1 / np.sqrt(len(policies) - 1):.2f}.{f' Measured on a GPU ({gpu}).' if gpu else ''}\n\n"
        + table(header, rows)
        + machine(record)
    )


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
