"""`amc search`, `amc resume` and `amc demo`."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path

import torch
import torch._dynamo  # every search needs it, by torch.export; here `amc.cli.common.loading` makes the import faster

from amc.cli.jobs.origin import (
    BATCH,
    data_of,
    evaluate_of,
    fitting,
    misfit,
    placed_network,
    source_of,
    with_preprocessing,
)
from amc.compression.inputs import Inputs
from amc.compression.load import settings_of
from amc.compression.observer import Observer
from amc.compression.pipeline import check_agent, compress_in
from amc.compression.settings import SearchConfig
from amc.errors import DataError, RunError
from amc.report import render_report
from amc.run import files
from amc.run.directory import RunDir
from amc.run.settings import FineTuneConfig, Source
from amc.search import get_reward
from amc.structure.modes import device_of


def run_search(out: Path, source: Source, config: SearchConfig, *, progress: Observer) -> Path:
    """Search in a new run directory `out`; returns its path."""
    get_reward(config.reward)  # wrong names are refused before anything is loaded
    check_agent(config)
    with RunDir.claim(out) as run:
        _run(run, with_parent(source, out), config, progress, resuming=False)
    return out


def with_parent(source: Source, out: Path) -> Source:
    """If MODEL is a run directory: the source of that run's result, on the same data unless other data is given."""
    path = Path(source.model)
    if not (path / files.CONFIG).exists():
        return source
    before = source_of(RunDir.open(path), "load it with amc.load_run")
    names = ("data", "evaluate", "search_images", "image_size", "preprocessing")
    inherited = {name: getattr(before, name) for name in names if getattr(source, name) is None}
    parent = os.path.relpath(path.resolve(), out.resolve())
    return replace(source, model=before.model, weights=None, parent=parent, **inherited)


def resume_search(run_path: Path, *, progress: Observer) -> Path:
    """Resume the search in `run_path`."""
    run = RunDir.open(run_path)
    source = source_of(run, "call amc.compress(..., run_dir=..., resume=True) again")
    if run.has(files.SUMMARY):  # finished: a later fine-tuning must stay
        with run.lock():
            render_report(run)
        return run_path
    if run.has(files.MODEL_FINETUNED):
        raise RunError(
            f"'{run.path}' was fine-tuned, and its {files.SUMMARY} is missing; restore it from a copy, or remove "
            f"{files.MODEL_FINETUNED} to go back to the result of the search"
        )
    with run.lock():
        _run(run, source, settings_of(run), progress, resuming=True)
    return run_path


def _run(run: RunDir, source: Source, config: SearchConfig, progress: Observer, *, resuming: bool) -> None:
    """Search in a directory that is claimed or locked."""
    inputs, source = inputs_of(run, source, progress, resuming=resuming)
    try:
        compress_in(run, inputs, config, progress, resume=resuming, origin=source.to_json())
    finally:
        progress.close()


def inputs_of(run: RunDir, source: Source, progress: Observer, *, resuming: bool) -> tuple[Inputs, Source]:
    """The network and the data that the source names, and the source with what they decide."""
    progress.stage("network and data")
    model = placed_network(source, run.path)
    if not resuming:
        source = with_preprocessing(source, model)
    data = data_of(source)
    for warning in data.warnings:
        progress.warning(warning)
    device = device_of(model)
    example = torch.zeros(1, *data.input_shape, device=device)
    reason = misfit(model, data.input_shape)
    if reason is not None:
        shape = "x".join(map(str, data.input_shape))
        raise DataError(f"'{source.model}' cannot take {shape} images of '{data.name}': {reason}; choose fitting data")
    data = fitting(data, model)
    inputs = Inputs(
        model,
        example,
        calibration=data.calibration.batches(BATCH),
        evaluate=evaluate_of(source, data),
        test=data.test if source.test else None,
    )
    return inputs, replace(source, input_shape=tuple(data.input_shape), device=str(device))


def run_demo(out: Path, *, episodes: int, seed: int, progress: Observer) -> Path:
    """Search and fine-tune the built-in network in `out`, a new directory; returns its path."""
    from amc.cli.jobs.finetune import run_finetune  # here: a search alone trains nothing

    torch.set_num_threads(1)  # a second thread makes networks this small slower
    config = SearchConfig(episodes=episodes, seed=seed, random_share=1.0)
    repeat = f"amc demo --episodes {episodes} --seed {seed}"
    source = Source("digits_cnn", data="digits", command="demo", repeat=repeat)
    run_search(out, source, config, progress=progress)
    return run_finetune(out, FineTuneConfig(epochs=10, seed=seed), progress=progress)


def free_place(path: Path) -> Path:
    """`path`, or the first of `path-2`, `path-3` … that is empty: a run is never replaced."""
    for number in itertools.count(1):
        place = path if number == 1 else path.with_name(f"{path.name}-{number}")
        if not place.exists() or (place.is_dir() and not any(file.name != files.LOCK for file in place.iterdir())):
            return place
    raise AssertionError  # numbers do not end
