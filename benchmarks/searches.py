"""What the benchmarks of whole searches share: runs that are resumed, fine-tuned and recounted from their files."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from amc.cli.jobs.finetune import run_finetune
from amc.cli.jobs.resume import run_resume
from amc.cli.jobs.schedule import Rounds, run_schedule
from amc.cli.jobs.search import run_search
from amc.compression.progress import ProgressBar
from amc.compression.settings import SearchConfig
from amc.recovery import FineTuneConfig
from amc.run import files
from amc.run.directory import RunDir
from amc.run.weights import unpack
from common import network_parser, source_of


def search_parser(doc: str | None) -> argparse.ArgumentParser:
    """The options of a benchmark that searches."""
    options = network_parser(doc)
    options.add_argument("--runs", type=Path, required=True, help="where the run directories go")
    options.add_argument("--episodes", type=int, default=100)
    options.add_argument("--epochs", type=int, default=2, help="of fine-tuning; 0: none")
    return options


def config_of(args: argparse.Namespace, **settings: Any) -> SearchConfig:
    """The settings of a search whose figure is the search alone: all images score, and nothing is recovered."""
    return SearchConfig(**{"episodes": args.episodes, "bf16": True, "recover": "none", "finalists": 0} | settings)


def run_path(args: argparse.Namespace, name: str) -> Path:
    """Where the run of this name lies."""
    path: Path = args.runs / f"{args.model}-{name}"
    return path


def searched(args: argparse.Namespace, name: str, *, test: bool = True, **settings: Any) -> RunDir:
    """Search in RUNS/MODEL-NAME and return the finished run.

    A search that was begun is resumed; a finished one stays as it is. `test` says whether the dense and the slim
    network are evaluated on the test split at the end.
    """
    path = run_path(args, name)
    if not path.exists():
        run_search(path, source_of(args, test=test), config_of(args, **settings), progress=progress())
    elif not RunDir.open(path).has(files.SUMMARY):
        run_resume(path, progress=progress())
    return RunDir.open(path)


def searched_in_rounds(args: argparse.Namespace, name: str, fractions: tuple[float, ...], **settings: Any) -> RunDir:
    """Prune and fine-tune in rounds, in RUNS/MODEL-NAME; a schedule that was begun is resumed."""
    path = run_path(args, name)
    if path.exists():
        run_resume(path, progress=progress())
    else:
        rounds = Rounds(fractions, tuning(args), budget="params")
        run_schedule(path, source_of(args), config_of(args, **settings), rounds, progress=progress())
    return RunDir.open(path)


def finetuned(args: argparse.Namespace, run: RunDir) -> RunDir:
    """Fine-tune the run for `--epochs`, unless it is fine-tuned already."""
    if args.epochs and not run.has(files.MODEL_FINETUNED):
        run_finetune(run.path, tuning(args), progress=progress())
    return run


def tuning(args: argparse.Namespace) -> FineTuneConfig:
    """The settings of fine-tuning."""
    return FineTuneConfig(epochs=args.epochs, precision="bfloat16")


def progress() -> ProgressBar:
    """A bar on the standard error stream."""
    return ProgressBar(Console(stderr=True))


def on_disk(run: RunDir, name: str = files.MODEL) -> dict[str, int]:
    """Count in a stored file: its bytes, and the parameters that are not zero."""
    data = run.file(name).read_bytes()
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    parameters = [value for key, value in unpack(data).items() if not key.endswith(buffers)]
    return {"bytes": len(data), "nonzero": sum(int(torch.count_nonzero(value)) for value in parameters)}


def public(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary without the paths of the machine that measured."""
    return {key: value for key, value in summary.items() if key not in ("locked", "data", "groups")}
