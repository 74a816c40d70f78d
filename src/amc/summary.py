"""The record of a finished search: what summary.json holds."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from amc import rundir
from amc.job import Job, score_of
from amc.rundir import RunDir
from amc.search import EpisodeRecord, SearchResult
from amc.structure import Certificate, count_macs, count_params


def summarise(
    job: Job,
    slim: nn.Module,
    best: EpisodeRecord,
    found: Mapping[str, SearchResult],
    run: RunDir | None,
    test: Any,
) -> dict[str, Any]:
    """The record of a finished search, as in summary.json; `found` has the result of every agent by name."""
    config = job.config
    origin = run.config() if run else {}
    dense = {"macs": count_macs(job.model, job.example_input), "params": count_params(job.model)}
    small = {"macs": count_macs(slim, job.example_input), "params": count_params(slim)}
    result: dict[str, Any] = {
        "amc_version": amc_version(),
        "model": origin.get("model", type(job.model).__name__),
        "data": origin.get("data"),
        "budget": config.budget,
        "method": config.method,
        "agent": config.agent,
        "episodes": len(found[config.agent].episodes),
        "failed_episodes": found[config.agent].failed,
        "seed": config.seed,
        "seconds": round(_seconds(run, config.agent), 1) if run else None,
        "dense": {**dense, "score": job.dense_score},
        "slim": {**small, "score": best.score},
        "baselines": _baselines(found, config.agent),
        "groups": [
            {"name": group.name, "size": group.size, "kept": count}
            for group, count in zip(job.structure.groups, best.keep, strict=True)
        ],
        "locked": [{"name": item.name, "size": item.size, "reason": str(item.lock)} for item in job.structure.locked],
        "certificate": _certificate(job.certificate),
        "environment": environment(),
    }
    if test is not None:
        result["dense"]["test"] = score_of(test, job.model, "dense")
        result["slim"]["test"] = score_of(test, slim, "slim")
    return result


def _baselines(found: Mapping[str, SearchResult], main: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, result in found.items():
        if name != main:
            scores = [record.score for record in result.episodes if record.score is not None]
            out[name] = {
                "score": result.best.score,
                "macs": result.best.cost.get("macs"),
                "median": float(np.median(scores)),
                "episodes": len(result.episodes),
            }
    return out


def _certificate(certificate: Certificate | None) -> dict[str, Any] | None:
    if certificate is None:
        return None
    return {
        "keep_sets": certificate.keep_sets,
        "worst_error": certificate.worst_error,
        "locked": [name for name, _ in certificate.failed],
    }


def _seconds(run: RunDir, agent: str) -> float:
    """Scoring and agent time of the main search, over all its sessions."""
    lines = run.read_jsonl(rundir.TIMINGS)
    return sum(sum(line["seconds"].values()) for line in lines if line["agent"] == agent)


def amc_version() -> str:
    """The installed version."""
    try:
        return version("amc-compress")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"


def environment() -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
