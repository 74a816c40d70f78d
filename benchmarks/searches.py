"""What the benchmarks of whole searches share: runs that are resumed, fine-tuned and recounted from their files."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import common
from amc import jobs, rundir
from amc.config import SearchConfig
from amc.progress import ProgressBar
from amc.recovery import FineTuneConfig
from amc.rundir import RunDir
from amc.storage import unpack
from common import source_of


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that all of them have."""
    made = common.parser(doc)
    made.add_argument("--runs", type=Path, required=True, help="where the run directories go")
    made.add_argument("--episodes", type=int, default=100)
    made.add_argument("--epochs", type=int, default=2, help="of fine-tuning; 0: none")
    return made


def searched(args: argparse.Namespace, name: str, *, test: bool = True, **settings: Any) -> RunDir:
    """The finished search in RUNS/MODEL-NAME: resumed if it was begun, left alone if it is finished.

    `test`: whether dense and slim are evaluated on the test split at the end.
    """
    path, progress = args.runs / f"{args.model}-{name}", ProgressBar(Console(stderr=True))
    if not path.exists():
        config = SearchConfig(**{"episodes": args.episodes, "bf16": True} | settings)
        jobs.search(path, source_of(args, test=test), config, progress=progress)
    elif not RunDir.open(path).has(rundir.SUMMARY):
        jobs.resume(path, progress=progress)
    return RunDir.open(path)


def finetuned(args: argparse.Namespace, run: RunDir) -> RunDir:
    """The same run, fine-tuned if `--epochs` asks for it and it has not been yet."""
    if args.epochs and not run.has(rundir.MODEL_FINETUNED):
        config = FineTuneConfig(epochs=args.epochs, precision="bfloat16")
        jobs.finetune(run.path, config, progress=ProgressBar(Console(stderr=True)))
    return run


def on_disk(run: RunDir, name: str = rundir.MODEL) -> dict[str, int]:
    """Counted on a stored file: its bytes, and the parameters in it that are not zero."""
    data = run.file(name).read_bytes()
    state = unpack(data)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    kept = [value for key, value in state.items() if not key.endswith(buffers)]
    return {"bytes": len(data), "nonzero": sum(int(torch.count_nonzero(value)) for value in kept)}


def public(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary without the paths of the machine that measured."""
    return {key: value for key, value in summary.items() if key not in ("locked", "data", "groups")}
