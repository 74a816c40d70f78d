"""How good a search is: DDPG beside uniform and random with as many scored policies, over several seeds.

    python benchmarks/search_quality.py --model resnet20 --weights W.safetensors --data cifar10:ROOT --runs DIR

Every search is an ordinary run directory under --runs, so an interrupted benchmark can be resumed. The results go to
benchmarks/results/search-MODEL.json.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from amc.cli.jobs.origin import BATCH, data_of, network_of
from amc.compression.inputs import Inputs
from amc.compression.prepare import prepare
from amc.compression.scoring.evaluator import Evaluator
from amc.compression.settings import SearchConfig
from amc.recovery import FineTuneConfig, finetune
from amc.run import files
from amc.run.directory import RunDir
from amc.run.provenance import environment
from amc.run.settings import Source
from common import Record, load, machine, percent, save, table
from searches import public, run_path, search_parser, searched

RESULT = "search-{model}.json"
BASELINES = ("random", "uniform", "shallow", "deep")


def options() -> argparse.ArgumentParser:
    parser = search_parser(__doc__)
    parser.set_defaults(epochs=5, threads=2)
    parser.add_argument("--budget", default="macs<=50%")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the first one is fine-tuned")
    parser.add_argument("--tune", nargs="*", default=["uniform", "random"], help="baselines to fine-tune too")
    parser.add_argument("--fp32", action="store_true", help="score in float32 instead of bfloat16")
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(args.threads)
    for seed in args.seeds:
        searched(
            args, f"seed{seed}", budget=args.budget, seed=seed, agent="ddpg", baselines=BASELINES, bf16=not args.fp32
        )  # fmt: skip
        collect(args)
    if args.epochs:
        fine_tuned(args)
    return collect(args)


def fine_tuned(args: argparse.Namespace) -> None:
    """Test accuracy of the best policies and of the dense network, before and after the same fine-tuning."""
    done = load(RESULT.format(model=args.model)).get("finetuned", {})
    run = RunDir.open(run_path(args, f"seed{args.seeds[0]}"))
    source = Source.from_json(run.config())
    data, dense = data_of(source), network_of(source)
    test = Evaluator(data.test)
    config = FineTuneConfig(epochs=args.epochs, precision="float32" if args.fp32 else "bfloat16")
    example, calibration = torch.zeros(1, *data.input_shape), data.calibration.batches(BATCH)
    job = prepare(Inputs(dense, example, calibration, data.search), SearchConfig.from_json(run.config()))
    for name in ("ddpg", *args.tune, "dense"):
        if name in done:
            continue
        model = network_of(source) if name == "dense" else job.scorer.build(best_keep(run, name))
        before = test(model)
        finetune(model, data.train, config)
        done[name] = {"test_before": before, "test_after": test(model), "epochs": args.epochs}
        collect(args, done)


def best_keep(run: RunDir, agent: str) -> tuple[int, ...]:
    """Keep counts of the agent's best policy, from its journal."""
    name = files.JOURNAL if agent == "ddpg" else files.baseline_journal(agent)
    scored = [line for line in run.read_jsonl(name) if line.get("score") is not None]
    return tuple(max(scored, key=lambda line: (line["score"], -line["episode"]))["keep"])


def collect(args: argparse.Namespace, finetuned: Mapping[str, Any] | None = None) -> Record:
    """Save the summaries of all finished runs."""
    name = RESULT.format(model=args.model)
    record: Record = {"model": args.model, "budget": args.budget, "episodes": args.episodes}
    record |= {"scoring": "float32" if args.fp32 else "bfloat16", "search_images": args.search_images}
    record["seeds"] = {}
    for seed in args.seeds:
        path = run_path(args, f"seed{seed}")
        if (path / files.SUMMARY).exists():
            record["seeds"][str(seed)] = public(RunDir.open(path).read_json(files.SUMMARY))
    record["finetuned"] = load(name).get("finetuned", {}) if finetuned is None else finetuned
    record["environment"] = environment()
    save(name, record)
    return record


def section(record: Record) -> str:
    runs = list(record["seeds"].values())
    if not runs:
        return ""
    name, episodes, dense = record["model"], record["episodes"], runs[0]["dense"]
    text = (
        f"## Search on {name}, {record['budget']}, {episodes} episodes\n\n"
        f"`python benchmarks/search_quality.py --model {name} --weights W --data cifar10:DATA --runs DIR`, "
        f"{len(runs)} seed(s), scores before fine-tuning on {record.get('search_images') or 'all'} search images in "
        f"{record['scoring']}. Dense: {percent(dense['score'])} search"
        f"{', ' + percent(dense['test']) + ' test' if 'test' in dense else ''}, "
        f"{dense['macs'] / 1e6:.2f} M MACs.\n\n"
    )
    rows = [[agent, *_scores(runs, agent)] for agent in ("ddpg", *runs[0]["baselines"])]
    text += table(["policy", "search, median (least to most)", "MACs, % of dense", "policies scored"], rows)
    text += (
        f"\nDDPG beats the best random policy by {_gains(runs, 'random')} points (seed by seed) and the uniform one by "
        f'{_gains(runs, "uniform")}. "Uniform" keeps one share of every group, residual streams included.\n'
    )
    if record.get("finetuned"):
        text += "\n" + _finetuned_table(record["finetuned"])
    return text + machine(record)


def _gains(runs: Sequence[Record], baseline: str) -> str:
    """By how many points DDPG beats the baseline, seed by seed."""
    return ", ".join(f"{100 * (run['slim']['score'] - run['baselines'][baseline]['score']):+.2f}" for run in runs)


def _scores(runs: Sequence[Record], agent: str) -> list[str]:
    parts = [run["slim"] if agent == "ddpg" else run["baselines"][agent] for run in runs]
    values = [part["score"] for part in parts]
    macs = [100 * part["macs"] / run["dense"]["macs"] for part, run in zip(parts, runs, strict=True)]
    counts = {run["episodes"] if agent == "ddpg" else run["baselines"][agent]["episodes"] for run in runs}
    spread = f"{percent(statistics.median(values))} ({percent(min(values))} to {percent(max(values))})"
    return [spread, f"{min(macs):.2f} to {max(macs):.2f}", "/".join(map(str, sorted(counts)))]


def _finetuned_table(finetuned: Mapping[str, Record]) -> str:
    rows = [
        [name, percent(entry["test_before"]), percent(entry["test_after"]), str(entry["epochs"])]
        for name, entry in finetuned.items()
    ]
    return "Fine-tuned (first seed, last epoch, the same settings for all):\n\n" + table(
        ["policy", "test before", "test after", "epochs"], rows
    )


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
