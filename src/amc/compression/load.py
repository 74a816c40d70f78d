"""Networks of a run directory: whether they are the run's own, and loading them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amc.compression.settings import SearchConfig
from amc.errors import AmcError, RunError
from amc.pruning import Policy
from amc.pruning.methods import shaped
from amc.run import files
from amc.run.directory import RunDir
from amc.run.records import shown
from amc.run.weights import digest
from amc.zoo import create_model, load_weights

_RULE = "2"  # of the digest of weights; the first left out types and shapes, and has a key of its own


def weights_key(model: nn.Module) -> dict[str, str]:
    """The entry of config.json for a run's first weights: the rule of their digest, and the digest."""
    return {"weights_digest": f"{_RULE}:{digest(model.state_dict())}"}


def check_weights(run: RunDir, model: nn.Module) -> None:
    """Raise RunError unless `model` has the weights that the run began with."""
    config = run.config()
    recorded = config.get("weights_digest")
    if recorded is None:
        same = config.get("weights_sha256") == _first_digest(model)
    elif recorded.partition(":")[0] == _RULE:
        same = recorded == weights_key(model)["weights_digest"]
    else:
        raise RunError(
            f"'{run.file(files.CONFIG)}' has a weights_digest by another rule ({shown(recorded)}), which this version "
            f"cannot check; update amc, or restore the file from a copy"
        )
    if not same:
        raise RunError(f"'{run.path}' was started with other weights; resume it with the weights of its config.json")


def check_builds(run: RunDir) -> None:
    """Raise RunError if the run's networks were built in a way that this version no longer knows."""
    if run.config().get("sequential"):
        raise RunError(
            f"'{run.path}' was started with sequential, which this version no longer has, so that it cannot build the "
            "run's networks again; start a new run"
        )


def _first_digest(model: nn.Module) -> str:
    """SHA-256 of names and values only: the `weights_sha256` of runs without `weights_digest`."""
    sha256 = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        sha256.update(name.encode())
        sha256.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return sha256.hexdigest()


def settings_of(run: RunDir) -> SearchConfig:
    """The settings in a run's config.json. Raises RunError, with the file's name, if one is not valid any more."""
    try:
        return SearchConfig.from_json(run.config())
    except AmcError as error:
        raise RunError(f"'{run.file(files.CONFIG)}': {error}") from None


def set_place(run: RunDir, *, workers: int | None = None, device: str | None = None, ray: str | None = None) -> None:
    """From now on so many workers score the policies of the run, and of the unfinished runs in it, on that device.

    ray: the cluster that the workers are on, or "none". None: as before. Raises AmcError for a number out of range.
    """
    places: dict[str, Any] = {"workers": workers, "device": device, "ray": ray}
    changed = {name: value for name, value in places.items() if value is not None}
    if not changed:
        return
    if workers is not None:
        replace(settings_of(run), workers=workers)
    with run.lock():
        now = {name: None if value == "none" else value for name, value in changed.items()}
        run.write_json(files.CONFIG, {**run.config(), **now})
    for inner in sorted(run.path.glob(f"*/{files.CONFIG}")):
        if not (inner.parent / files.SUMMARY).exists():
            set_place(RunDir.open(inner.parent), workers=workers, device=device, ray=ray)


def load_run(
    run_dir: str | Path, model: nn.Module | None = None, example_input: Any = None, *, finetuned: bool = True
) -> nn.Module:
    """The slim network of a run, ready to use: with `finetuned` the fine-tuned one, if any; of a schedule the last one.

    Without `model`, the dense network is built from the name in the run's config.json (a zoo name, or a factory, whose
    code then runs). A run that began in Python with a network of your own needs `model` (any weights) and
    `example_input`. Raises RunError if a file is damaged or differs from the one that the summary describes.

    >>> slim = amc.load_run("runs/mine", net, x)  # of a network of your own; the run of a zoo network needs no more
    >>> amc.count_macs(slim, x)
    768
    """
    return _load(run_dir, model, example_input, finetuned, ())


def _load(
    run_dir: str | Path, model: nn.Module | None, example_input: Any, finetuned: bool, children: tuple[Path, ...]
) -> nn.Module:
    """`load_run`; `children` are the runs on the way here: each began with the result of the next."""
    run = RunDir.open(run_dir)
    here = run.path.resolve()
    if here in children:
        raise RunError(f"'{children[0]}' leads back to itself through the parent in '{run.file(files.CONFIG)}'")
    _check_single(run)
    if run.config().get("schedule"):
        return _load(last_round(run), model, example_input, finetuned, (*children, here))
    if model is None:
        model, example_input = _original(run, (*children, here))
    policy = Policy.from_json(run.read_json(files.POLICY))
    name = network_file(run, finetuned=finetuned)
    slim = shaped(model, example_input, policy)
    load_weights(slim, run.file(name))
    return slim.eval()


def network_file(run: RunDir, *, finetuned: bool = True) -> str:
    """The file of a run's network, checked, as its policy is. Raises RunError if one is damaged, or for a sweep."""
    _check_single(run)
    name = files.MODEL_FINETUNED if finetuned and _is_finetuned(run) else files.MODEL
    run.verify(files.POLICY, name)
    return name


def _check_single(run: RunDir) -> None:
    if run.config().get("sweep"):
        raise RunError(
            f"'{run.path}' is a sweep, with a network for each budget; name one of its points: {_points(run)}"
        )


def _is_finetuned(run: RunDir) -> bool:
    """Whether the run has or had a fine-tuned network: a lost one is an error, and no other takes its place."""
    if run.has(files.MODEL_FINETUNED):
        return True
    return run.has(files.SUMMARY) and "score_finetuned" in run.read_json(files.SUMMARY).get("slim", {})


def _original(run: RunDir, children: tuple[Path, ...]) -> tuple[nn.Module, Any]:
    """The dense network of config.json, with random weights, and an example for it."""
    config = run.config()
    if not config.get("model"):
        raise RunError(
            f"'{run.path}' was made from a network in Python; load it with load_run(run, model, example_input)"
        )
    if not config.get("input_shape"):
        raise RunError(f"'{run.file(files.CONFIG)}' has no input_shape; restore the file from a copy")
    example = torch.zeros(1, *config["input_shape"])
    if config.get("parent"):
        return _load(os.path.normpath(run.path / config["parent"]), None, None, True, children), example
    return create_model(config["model"], **config.get("model_args", {})), example


def point_path(run: RunDir, number: int) -> Path:
    """The directory of a point of a sweep, counted from 1: the largest budget."""
    return run.path / f"point-{number}"


def _points(run: RunDir) -> str:
    """The finished points with their budgets, for a message."""
    points = run.read_json(files.SUMMARY).get("points", []) if run.has(files.SUMMARY) else []
    named = [f"{run.path / point['run']} ({point['budget']})" for point in points]
    return ", ".join(named) or f"none is finished yet, run `amc resume {run.path}` first"


def round_path(run: RunDir, number: int) -> Path:
    """The directory of a round of a schedule, counted from 1."""
    return run.path / f"round-{number}"


def last_round(run: RunDir) -> Path:
    """The last finished round of a schedule. Raises RunError if no round is finished."""
    rounds = len(run.config()["schedule"])
    for number in range(rounds, 0, -1):
        if (round_path(run, number) / files.SUMMARY).exists():
            return round_path(run, number)
    raise RunError(f"'{run.path}' has no finished round yet; run `amc resume {run.path}` first")
