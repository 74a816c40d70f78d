"""`amc search`, `amc resume` and `amc demo`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from amc import rundir
from amc.config import SearchConfig
from amc.errors import DataError, RunError
from amc.job import Inputs
from amc.jobs.finetune import finetune
from amc.jobs.origin import BATCH, config_of, data_of, evaluate_of, misfit, network_of, prepare_images_
from amc.observer import Observer
from amc.pipeline import compress_in
from amc.report import render_report
from amc.rundir import RunDir
from amc.search import get_reward
from amc.stored import settings_of


def search(out: Path, origin: Mapping[str, Any], settings: Mapping[str, Any], *, progress: Observer) -> Path:
    """A new run in `out`; returns its path."""
    config = SearchConfig(**settings)
    get_reward(config.reward)  # wrong settings are found before anything is loaded
    with RunDir.claim(out) as run:
        _run(run, with_parent(origin, out), config, progress, resuming=False)
    return out


def with_parent(origin: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Where MODEL is a run directory: the network that run came to, on the same data unless other data is given."""
    spec = Path(str(origin["model"]))
    if not (spec / rundir.CONFIG).exists():
        return dict(origin)
    before = RunDir.open(spec).config()
    if not before.get("model"):
        raise RunError(f"'{spec}' was started from Python, with a network that has no name; load it with amc.load_run")
    kept = ("data", "evaluate", "search_images", "image_size", "preprocessing")
    inherited = {name: before.get(name) for name in kept if origin.get(name) is None}
    parent = os.path.relpath(spec.resolve(), out.resolve())
    return {**origin, **inherited, "model": before["model"], "weights": None, "parent": parent}


def resume_search(run_path: Path, *, progress: Observer) -> Path:
    """Go on with the search in `run_path`."""
    run = RunDir.open(run_path)
    config = config_of(run, "call amc.compress(..., run_dir=..., resume=True) again")
    if run.has(rundir.SUMMARY):  # finished; what was fine-tuned since must stay
        with run.lock():
            render_report(run)
        return run_path
    if run.has(rundir.MODEL_FINETUNED):
        raise RunError(
            f"'{run.path}' was fine-tuned, and its {rundir.SUMMARY} is missing; restore it from a copy, or remove "
            f"{rundir.MODEL_FINETUNED} to go back to what the search found"
        )
    with run.lock():
        _run(run, config, settings_of(run, config), progress, resuming=True)
    return run_path


def _run(run: RunDir, origin: dict[str, Any], config: SearchConfig, progress: Observer, *, resuming: bool) -> None:
    """Search in a directory that is claimed or locked."""
    progress.stage("network and data")
    model = network_of(origin, run.path)
    if not resuming:
        prepare_images_(origin, model)
    data = data_of(origin)
    for warning in data.warnings:
        progress.warning(warning)
    origin["input_shape"] = list(data.input_shape)
    example = torch.zeros(1, *data.input_shape)
    reason = misfit(model, data.input_shape)
    if reason is not None:
        shape = "x".join(map(str, data.input_shape))
        raise DataError(
            f"'{origin['model']}' cannot take {shape} images of '{data.name}': {reason}; choose fitting data"
        )
    inputs = Inputs(
        model,
        example,
        calibration=data.calibration.batches(BATCH),
        evaluate=evaluate_of(origin, data),
        test=data.test if origin.get("test", True) else None,
    )
    try:
        compress_in(run, inputs, config, progress, resume=resuming, origin=origin)
    finally:
        progress.close()


def demo(out: Path, *, episodes: int, seed: int, progress: Observer) -> Path:
    """Search and fine-tune the built-in network in `out`, a new directory; returns its path."""
    torch.set_num_threads(1)  # in networks this small a second thread only gets in the way
    origin = {"command": "demo", "model": "digits_cnn", "weights": None, "data": "digits", "test": True}
    settings = SearchConfig(episodes=episodes, seed=seed, baselines=("uniform", "random"))
    search(out, origin, settings.to_json(), progress=progress)
    return finetune(out, {"epochs": 10, "seed": seed}, progress=progress)


def free_place(path: Path) -> Path:
    """`path`, or the first of `path-2`, `path-3` … that holds nothing: no run is ever replaced."""
    for number in itertools.count(1):
        place = path if number == 1 else path.with_name(f"{path.name}-{number}")
        if not place.exists() or (place.is_dir() and not any(file.name != rundir.LOCK for file in place.iterdir())):
            return place
    raise AssertionError  # numbers do not end
