"""How good a search is: DDPG beside uniform and random with as many scored policies, over several seeds.

    python benchmarks/search_quality.py --model resnet20 --weights W.safetensors --data cifar10:ROOT --runs DIR

Every search is an ordinary run directory under --runs, so an interrupted benchmark goes on where it stopped. The
outcome goes to benchmarks/results/search-MODEL.json, from which benchmarks/render.py makes docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from amc import jobs, rundir
from amc.config import SearchConfig
from amc.evaluation import Evaluator
from amc.job import prepare
from amc.provenance import environment
from amc.recovery import FineTuneConfig, finetune
from amc.rundir import RunDir, atomic_write_bytes
from amc.search import BASELINES
from amc.terminal import Progress

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    for seed in args.seeds:
        one_search(args, seed)
        save(args)
    if args.epochs:
        fine_tuned(args)
        save(args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", required=True, help="cifar10:ROOT")
    parser.add_argument("--runs", type=Path, required=True, help="where the run directories go")
    parser.add_argument("--budget", default="macs<=50%")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--search-images", type=int)
    parser.add_argument("--epochs", type=int, default=5, help="of fine-tuning, for the first seed; 0: none")
    parser.add_argument("--tune", nargs="*", default=["uniform", "random"], help="baselines to fine-tune too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fp32", action="store_true", help="score in float32 instead of bfloat16")
    return parser.parse_args()


def run_path(args: argparse.Namespace, seed: int) -> Path:
    path: Path = args.runs / f"{args.model}-seed{seed}"
    return path


def one_search(args: argparse.Namespace, seed: int) -> None:
    """A search with both baselines; resumed if it was begun, left alone if it is finished."""
    path, progress = run_path(args, seed), Progress(Console(stderr=True))
    if path.exists():
        if not RunDir.open(path).has(rundir.SUMMARY):
            jobs.resume(path, progress=progress)
        return
    origin = {
        "command": "search", "model": args.model, "weights": str(args.weights.resolve()), "data": args.data,
        "search_images": args.search_images, "test": True,
    }  # fmt: skip
    config = SearchConfig(
        budget=args.budget,
        episodes=args.episodes,
        seed=seed,
        baselines=BASELINES,
        bf16=not args.fp32,
    )
    jobs.search(path, origin, config.to_json(), progress=progress)


def fine_tuned(args: argparse.Namespace) -> None:
    """Test accuracy of the best policies and of the dense network, before and after the same fine-tuning."""
    done = load(args).get("finetuned", {})
    run = RunDir.open(run_path(args, args.seeds[0]))
    data, dense = jobs.data_of(run.config()), jobs.network_of(run.config())
    test = Evaluator(data.test)
    config = FineTuneConfig(epochs=args.epochs, precision="float32" if args.fp32 else "bfloat16")
    job = prepare(
        dense,
        torch.zeros(1, *data.input_shape),
        data.calibration.batches(jobs.BATCH),
        data.search,
        SearchConfig.from_json(run.config()),
    )
    for name in ("ddpg", *args.tune, "dense"):
        if name in done:
            continue
        model = jobs.network_of(run.config()) if name == "dense" else job.scorer.build(best_keep(run, name))
        before = test(model)
        finetune(model, data.train, config)
        done[name] = {"test_before": before, "test_after": test(model), "epochs": args.epochs}
        save(args, done)


def best_keep(run: RunDir, agent: str) -> tuple[int, ...]:
    """Keep counts of the agent's best policy, from its journal."""
    name = rundir.JOURNAL if agent == "ddpg" else rundir.baseline_journal(agent)
    scored = [line for line in run.read_jsonl(name) if line.get("score") is not None]
    return tuple(max(scored, key=lambda line: (line["score"], -line["episode"]))["keep"])


def result_path(args: argparse.Namespace) -> Path:
    return RESULTS / f"search-{args.model}.json"


def load(args: argparse.Namespace) -> dict[str, Any]:
    path = result_path(args)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def save(args: argparse.Namespace, finetuned: dict[str, Any] | None = None) -> None:
    """Collect what the finished runs say."""
    record: dict[str, Any] = {"model": args.model, "budget": args.budget, "episodes": args.episodes}
    record |= {"scoring": "float32" if args.fp32 else "bfloat16", "search_images": args.search_images}
    record["seeds"] = {}
    for seed in args.seeds:
        path = run_path(args, seed)
        if not (path / rundir.SUMMARY).exists():
            continue
        summary = RunDir.open(path).read_json(rundir.SUMMARY)
        for name in ("locked", "data"):  # paths of the machine that measured
            summary.pop(name, None)
        record["seeds"][str(seed)] = summary
    record["finetuned"] = load(args).get("finetuned", {}) if finetuned is None else finetuned
    record["environment"] = environment()
    atomic_write_bytes(result_path(args), (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
