"""`amc finetune`: train the slim network of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from amc import rundir
from amc.errors import RunError
from amc.evaluation import Evaluator, as_evaluator
from amc.jobs.origin import config_of, data_of, evaluate_of, network_of
from amc.jobs.progress import Progress
from amc.recovery import EpochRecord, FineTuneConfig
from amc.recovery import finetune as recover
from amc.report import render_report
from amc.rundir import RunDir
from amc.stored import load_run, state_of
from amc.structure import count_macs, count_params
from amc.zoo import DataSplits


def finetune(run_path: Path, chosen: Mapping[str, Any], *, progress: Progress) -> Path:
    """Train the slim network of a finished search and add the outcome to its summary and report."""
    run = RunDir.open(run_path)
    if not run.has(rundir.SUMMARY):
        raise RunError(f"'{run.path}' has no finished search yet; run `amc resume {run.path}` first")
    config = config_of(run, "train result.model with amc.recovery.finetune")
    settings = FineTuneConfig(**chosen)
    progress.stage("network and data")
    data = data_of(config)
    slim = load_run(run_path, finetuned=False)
    teacher = network_of(config) if settings.distill > 0 else None
    score = as_evaluator(evaluate_of(config, data))
    lines: list[dict[str, Any]] = []

    def on_epoch(epoch: EpochRecord) -> None:
        value = score(slim)
        lines.append(
            {
                "epoch": epoch.epoch,
                "loss": epoch.loss,
                "lr": epoch.lr,
                "seconds": epoch.seconds,
                "score": value,
            }
        )
        progress.epoch(epoch, value)

    progress.stage("fine-tuning")
    with run.lock():
        try:
            recover(slim, data.train, settings, teacher=teacher, on_step=progress.training, on_epoch=on_epoch)
        finally:
            progress.close()
        _record_finetuning(run, slim, data, lines, bool(config.get("test", True)))
    return run_path


def _record_finetuning(run: RunDir, slim: nn.Module, data: DataSplits, lines: list[dict[str, Any]], test: bool) -> None:
    summary = run.read_json(rundir.SUMMARY)
    example = torch.zeros(1, *data.input_shape)
    summary["slim"] |= {
        "macs": count_macs(slim, example),
        "params": count_params(slim),
        "score_finetuned": lines[-1]["score"],
    }
    if test:
        summary["slim"]["test_finetuned"] = Evaluator(data.test)(slim)
    run.write_bytes(rundir.MODEL_FINETUNED, safetensors.torch.save(state_of(slim)))
    run.write_text(rundir.FINETUNE, "".join(json.dumps(line) + "\n" for line in lines))
    run.write_json(rundir.SUMMARY, summary)
    render_report(run)
