"""How good a search is: DDPG beside uniform and random with as many scored policies, over several seeds.

    python benchmarks/search_quality.py --model resnet20 --weights W.safetensors --data cifar10:ROOT --runs DIR

Every search is an ordinary run directory under --runs, so an interrupted benchmark goes on where it stopped. The
outcome goes to benchmarks/results/search-MODEL.json, from which benchmarks/render.py makes docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from amc import jobs, rundir
from amc.config import SearchConfig
from amc.evaluation import Evaluator
from amc.job import Inputs, prepare
from amc.provenance import environment
from amc.recovery import FineTuneConfig, finetune
from amc.rundir import RunDir
from amc.search import BASELINES
from amc.settings import Source
from common import load, save
from searches import parser, public, searched


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    for seed in args.seeds:
        searched(args, f"seed{seed}", budget=args.budget, seed=seed, baselines=BASELINES, bf16=not args.fp32)
        collect(args)
    if args.epochs:
        fine_tuned(args)
        collect(args)


def arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.set_defaults(epochs=5, threads=2)
    options.add_argument("--budget", default="macs<=50%")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the first one is fine-tuned")
    options.add_argument("--tune", nargs="*", default=["uniform", "random"], help="baselines to fine-tune too")
    options.add_argument("--fp32", action="store_true", help="score in float32 instead of bfloat16")
    return options.parse_args()


def run_path(args: argparse.Namespace, seed: int) -> Path:
    path: Path = args.runs / f"{args.model}-seed{seed}"
    return path


def fine_tuned(args: argparse.Namespace) -> None:
    """Test accuracy of the best policies and of the dense network, before and after the same fine-tuning."""
    done = load(file_of(args)).get("finetuned", {})
    run = RunDir.open(run_path(args, args.seeds[0]))
    source = Source.from_json(run.config())
    data, dense = jobs.data_of(source), jobs.network_of(source)
    test = Evaluator(data.test)
    config = FineTuneConfig(epochs=args.epochs, precision="float32" if args.fp32 else "bfloat16")
    example, calibration = torch.zeros(1, *data.input_shape), data.calibration.batches(jobs.BATCH)
    job = prepare(Inputs(dense, example, calibration, data.search), SearchConfig.from_json(run.config()))
    for name in ("ddpg", *args.tune, "dense"):
        if name in done:
            continue
        model = jobs.network_of(source) if name == "dense" else job.scorer.build(best_keep(run, name))
        before = test(model)
        finetune(model, data.train, config)
        done[name] = {"test_before": before, "test_after": test(model), "epochs": args.epochs}
        collect(args, done)


def best_keep(run: RunDir, agent: str) -> tuple[int, ...]:
    """Keep counts of the agent's best policy, from its journal."""
    name = rundir.JOURNAL if agent == "ddpg" else rundir.baseline_journal(agent)
    scored = [line for line in run.read_jsonl(name) if line.get("score") is not None]
    return tuple(max(scored, key=lambda line: (line["score"], -line["episode"]))["keep"])


def file_of(args: argparse.Namespace) -> str:
    return f"search-{args.model}.json"


def collect(args: argparse.Namespace, finetuned: dict[str, Any] | None = None) -> None:
    """Collect what the finished runs say."""
    record: dict[str, Any] = {"model": args.model, "budget": args.budget, "episodes": args.episodes}
    record |= {"scoring": "float32" if args.fp32 else "bfloat16", "search_images": args.search_images}
    record["seeds"] = {}
    for seed in args.seeds:
        path = run_path(args, seed)
        if not (path / rundir.SUMMARY).exists():
            continue
        record["seeds"][str(seed)] = public(RunDir.open(path).read_json(rundir.SUMMARY))
    record["finetuned"] = load(file_of(args)).get("finetuned", {}) if finetuned is None else finetuned
    save(file_of(args), record | {"environment": environment()})


if __name__ == "__main__":
    main()
