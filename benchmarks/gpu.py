"""How many policies a minute a GPU scores: in float32 and bfloat16, several at once; and what bfloat16 changes.

    python benchmarks/gpu.py                                    # MobileNet-V1 at 224 x 224, random weights and images
    python benchmarks/gpu.py --model resnet56 --weights W.safetensors --data cifar10:ROOT --search-images 2000

The same random policies at half the MACs are scored in this process, then by pools of workers, which share the GPU.
Random images have the classes that the dense network names. With trained weights, the scores of the first policies are
compared with those of the processor. The results go to benchmarks/results/gpu-MODEL.json after each way.

With --runs DIR, a whole job is timed instead: a search of 400 policies, its recovery, and ten epochs of fine-tuning.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc.cli.jobs.devices import device_named
from amc.cli.jobs.finetune import run_finetune
from amc.cli.jobs.origin import BATCH, data_of, network_of
from amc.cli.jobs.search import run_search
from amc.compression.inputs import Inputs
from amc.compression.job import Job
from amc.compression.observer import Observer
from amc.compression.prepare import prepare
from amc.compression.scoring.evaluator import BATCH_GPU
from amc.compression.scoring.policy import PolicyScorer
from amc.compression.settings import SearchConfig
from amc.recovery import FineTuneConfig
from amc.run import files
from amc.run.directory import RunDir
from amc.run.provenance import environment
from amc.structure.batches import limited
from amc.structure.copying import copy_model
from amc.zoo import create_model
from common import Record, load, machine, percent, plain_parser, save, source_of, table
from score_correlation import random_policies
from workers import forgetful, pooled

RESULT = "gpu-{model}.json"
PRECISIONS = {"float32": False, "bfloat16": True}
EPISODES = 400  # of the paper's search
HERE = "in this process"
PASSES = 7


def options() -> argparse.ArgumentParser:
    parser = plain_parser(__doc__)
    parser.add_argument("--model", default="mobilenet_v1")
    parser.add_argument("--weights", type=Path, help="of the trained network; default: random weights and images")
    parser.add_argument("--data", help="cifar10:ROOT")
    parser.add_argument("--search-images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=224, help="of random images, pixels")
    parser.add_argument("--policies", type=int, default=48, help="scored in each way")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--compared", type=int, default=8, help="policies whose scores the processor computes, too")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--runs", type=Path, help="time a whole job in DIR/MODEL")
    parser.add_argument("--epochs", type=int, default=10, help="of its fine-tuning")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="of its search")
    return parser


def whole(args: argparse.Namespace) -> Record:
    """A search, its recovery and its fine-tuning, by their commands; with the rest of the record, if there is one."""
    record, place = {"model": args.model, "ways": {}} | load(RESULT.format(model=args.model)), args.runs / args.model
    began = time.perf_counter()
    source = replace(source_of(args), device=args.device)
    run_search(place, source, SearchConfig("macs<=50%", episodes=args.episodes), progress=Observer())
    searched = time.perf_counter() - began
    run_finetune(place, FineTuneConfig(epochs=args.epochs, precision="bfloat16"), progress=Observer())
    summary = RunDir.open(place).read_json(files.SUMMARY)
    record["whole"] = {
        "episodes": args.episodes, "epochs": args.epochs, "search_seconds": searched,
        "finetune_seconds": time.perf_counter() - began - searched, "dense": summary["dense"], "slim": summary["slim"],
        "search_images": args.search_images, "environment": environment(device_named(args.device)),
    }  # fmt: skip
    save(RESULT.format(model=args.model), record)
    return record


def measure(args: argparse.Namespace) -> Record:
    device = device_named(args.device)
    model, calibration, images = trained(args) if args.weights else random(args)
    size = sum(len(labels) for _, labels in images)
    before = load(RESULT.format(model=args.model))
    record: Record = {"model": args.model, "trained": args.weights is not None, "images": size}
    record |= {name: before[name] for name in ("whole",) if name in before}
    record["environment"] = environment(device)
    record |= {"input": list(images[0][0].shape[1:]), "policies": args.policies, "ways": {}, "scores": {}, "passes": {}}
    for name, bf16 in PRECISIONS.items():
        job = prepared(copy_model(model).to(device), calibration, images, bf16=bf16)
        policies = list(random_policies(job.problem, args.policies + 2, 0))
        job.scorer(policies.pop())  # cuDNN and the caches
        record["passes"][name] = forward_passes(job.model, images[0][0], device, bf16=bf16)
        print(name, record["passes"][name], flush=True)
        record["ways"][name] = {HERE: here(job.scorer, policies)}
        for count in args.workers:
            record["ways"][name][f"{count} worker{'s' * (count > 1)}"] = pooled(job.scorer, count, policies, device)
            save(RESULT.format(model=args.model), record)
            print(name, record["ways"][name], flush=True)
        record["scores"][name] = [float(job.scorer(keep)) for keep in policies[: args.compared]]
    if args.weights:
        job = prepared(model, calibration, images, bf16=False)
        record["scores"]["processor"] = [float(job.scorer(keep)) for keep in policies[: args.compared]]
    save(RESULT.format(model=args.model), record)
    return record


def trained(args: argparse.Namespace) -> tuple[nn.Module, Any, list[tuple[Tensor, Tensor]]]:
    """The network, its calibration images and those that are scored."""
    data = data_of(source_of(args))
    calibration = limited(data.calibration.batches(BATCH), SearchConfig().calibration_images)
    return network_of(source_of(args)), calibration, list(data.search.batches(BATCH_GPU))


def random(args: argparse.Namespace) -> tuple[nn.Module, Any, list[tuple[Tensor, Tensor]]]:
    """The same with random weights and images; the labels are the network's own answers."""
    torch.manual_seed(0)
    model, shape = create_model(args.model).eval(), (3, args.size, args.size)
    whole = copy_model(model).to(args.device)
    starts = range(0, args.search_images, BATCH_GPU)
    batches = [torch.randn(min(BATCH_GPU, args.search_images - at), *shape) for at in starts]
    with torch.inference_mode():
        images = [(batch, whole(batch.to(args.device)).argmax(1).cpu()) for batch in batches]
    return model, [torch.randn(BATCH, *shape) for _ in range(2)], images


def prepared(model: nn.Module, calibration: Any, images: list[tuple[Tensor, Tensor]], *, bf16: bool) -> Job:
    """A search of the network, before its first episode."""
    example = images[0][0][:1].to(next(model.parameters()).device)
    config = SearchConfig("macs<=50%", recover="none", finalists=0, bf16=bf16, keep_sets=0, engine="torch")
    return prepare(Inputs(model, example, calibration, images), config)


def forward_passes(model: nn.Module, images: Tensor, device: torch.device, *, bf16: bool) -> dict[str, float]:
    """Images a second of the dense network in both memory formats, the medians of several passes."""
    found = {}
    for name, layout in (("contiguous", torch.contiguous_format), ("channels-last", torch.channels_last)):
        batch, times = images.to(device).clone(memory_format=layout), []
        for _ in range(PASSES):
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                began = time.perf_counter()
                model(batch).sum().item()  # waits for the device
            times.append(time.perf_counter() - began)
        found[name] = len(images) / statistics.median(times)
    return found


def here(scorer: PolicyScorer, policies: Sequence[tuple[int, ...]]) -> dict[str, float]:
    """Seconds of a policy and of its parts, means."""
    scorer = forgetful(scorer)
    timings = [asdict(scorer.scored(policy).timing) for policy in policies]
    parts = {name: statistics.mean(timing[name] for timing in timings) for name in timings[0]}
    return {"seconds": sum(parts.values()), **parts}


def section(record: Record) -> str:
    rows = []
    for precision, ways in record["ways"].items():
        for way, found in ways.items():
            seconds = found["seconds"]
            parts = [f"{1000 * found[name]:.0f}" for name in ("build", "batch_norm", "evaluate") if name in found]
            rows.append([
                precision, way, f"{1000 * seconds:.0f} ms", " + ".join(parts), f"{60 / seconds:.0f}",
                f"{EPISODES * seconds / 60:.1f} min", f"{found['start']:.1f} s" if "start" in found else "",
            ])  # fmt: skip
    what = "trained" if record["trained"] else "random weights and images"
    options = " --weights W --data cifar10:DATA" if record["trained"] else ""
    return (
        f"## On a GPU: {record['model']}\n\n"
        f"`python benchmarks/gpu.py --model {record['model']}{options}`: {what}, {record['images']:,} images of "
        f"{'x'.join(map(str, record['input']))}, {record['policies']} random policies at half the MACs, the same in "
        "each way; means. The parts are building the network (on the processor), its batch norms, and its score; a GPU "
        f"works beside the processor, so that its time is part of what waits for it.\n\n"
        + table(
            ["precision", "way", "a policy", "parts, ms", "policies a minute", f"{EPISODES} episodes", "start"], rows
        )
        + changed(record["scores"])
        + passes(record["passes"])
        + machine(record)
        + (whole_job(record) if "whole" in record else "")
    )  # fmt: skip


def whole_job(record: Record) -> str:
    """The figures of `whole`, in a paragraph."""
    found = record["whole"]
    dense, slim = found["dense"], found["slim"]
    return (
        f"\n`python benchmarks/gpu.py --model {record['model']} --weights W --data cifar10:DATA --search-images "
        f"{found['search_images']} --runs DIR`, the whole job at half the MACs: {found['episodes']} policies and the "
        f"recovery of the best take {found['search_seconds']:.0f} s, {found['epochs']} epochs of fine-tuning "
        f"{found['finetune_seconds']:.0f} s. Test: dense {percent(dense['test'])}, as pruned {percent(slim['test'])}, "
        f"recovered {percent(slim['test_recovered'])}, fine-tuned {percent(slim['test_finetuned'])}.\n" + machine(found)
    )


def changed(scores: dict[str, list[float]]) -> str:
    """What the precision changes of a score, in a sentence for each pair."""
    lines = []
    for name, other in (("bfloat16", "float32"), ("float32", "processor")):
        if name in scores and other in scores:
            points = [100 * abs(a - b) for a, b in zip(scores[name], scores[other], strict=True)]
            lines.append(
                f"{name} against {other if other != 'processor' else 'float32 on the processor'}: "
                f"{statistics.mean(points):.2f} points in the mean of {len(points)} policies, {max(points):.2f} at most"
            )
    return f"\nScores differ: {'; '.join(lines)}.\n" if lines else ""


def passes(found: dict[str, dict[str, float]]) -> str:
    """What the memory formats do to a forward pass, in a sentence."""
    told = [
        f"{precision} {' and '.join(f'{speed:,.0f} {layout}' for layout, speed in speeds.items())}"
        for precision, speeds in found.items()
    ]
    return f"\nImages a second of the dense network: {'; '.join(told)}.\n"


def main() -> None:
    args = options().parse_args()
    print(whole_job(whole(args)) if args.runs else section(measure(args)))


if __name__ == "__main__":
    main()
