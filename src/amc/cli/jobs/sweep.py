"""`amc sweep`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from amc.cli.jobs.origin import source_of
from amc.cli.jobs.search import inputs_of, with_parent
from amc.compression.load import settings_of
from amc.compression.observer import Observer
from amc.compression.pipeline import check_agent
from amc.compression.settings import SearchConfig
from amc.compression.sweep import at_smallest, sweep_in
from amc.compression.sweep_settings import SweepConfig, sweep_of
from amc.errors import AmcError, RunError
from amc.report import render_report
from amc.run import files
from amc.run.directory import RunDir
from amc.run.settings import Source


def run_sweep(out: Path, source: Source, config: SearchConfig, plan: SweepConfig, *, progress: Observer) -> Path:
    """Sweep in a new run directory `out`; returns its path."""
    at_smallest(config, plan)  # wrong settings are refused before anything is loaded
    check_agent(config)
    with RunDir.claim(out) as run:
        _run(run, replace(with_parent(source, out), command="sweep"), config, plan, progress, resuming=False)
    return out


def resume_sweep(run_path: Path, *, progress: Observer) -> Path:
    """Resume the sweep in `run_path`; finished points are not repeated."""
    run = RunDir.open(run_path)
    source = source_of(run, "call amc.sweep(..., run_dir=..., resume=True) again")
    with run.lock():
        plan = _plan_of(run)
        if _finished(run, plan):
            render_report(run)
        else:
            _run(run, source, settings_of(run), plan, progress, resuming=True)
    return run_path


def _plan_of(run: RunDir) -> SweepConfig:
    try:
        return sweep_of(run.config())
    except AmcError as error:
        raise RunError(f"'{run.file(files.CONFIG)}': {error}; restore the file from a copy") from None


def _finished(run: RunDir, plan: SweepConfig) -> bool:
    return run.has(files.SUMMARY) and len(run.read_json(files.SUMMARY).get("points", ())) == plan.points


def _run(
    run: RunDir, source: Source, config: SearchConfig, plan: SweepConfig, progress: Observer, *, resuming: bool
) -> None:
    """Sweep in a directory that is claimed or locked."""
    inputs, source = inputs_of(run, source, progress, resuming=resuming)
    try:
        sweep_in(run, inputs, config, plan, progress, resume=resuming, origin=source.to_json())
    finally:
        progress.close()
