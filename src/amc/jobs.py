"""What the commands do: names and paths to networks and data, then the library. Prints nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.torch
import torch
from torch import nn

from amc import rundir
from amc.compress import compress
from amc.config import SearchConfig
from amc.errors import AmcError, DataError, EvaluationError, ModelError, RunError
from amc.evaluation import Evaluator, as_evaluator
from amc.job import Observer
from amc.problem import MAX_SPARSITY, keep_choices
from amc.pruning import reconstructible
from amc.recovery import EpochRecord, FineTuneConfig, StepRecord
from amc.recovery import finetune as recover
from amc.report import render_report
from amc.rundir import RunDir
from amc.search import EpisodeRecord, EpisodeTiming
from amc.stored import load_run, state_of
from amc.structure import Certificate, Structure, certify, count_macs, count_params, restrict
from amc.structure import inspect as inspect_structure
from amc.zoo import DataSplits, create_model, load_data, load_weights, model_info
from amc.zoo._import import import_factory

BATCH = 256  # images a calibration batch


class Progress(Protocol):
    """What a job tells while it runs."""

    def stage(self, name: str) -> None: ...
    def structure(self, structure: Structure, certificate: Certificate | None) -> None: ...
    def dense(self, score: float) -> None: ...
    def plan(self, episodes: Mapping[str, int]) -> None: ...
    def episode(self, agent: str, record: EpisodeRecord, timing: EpisodeTiming) -> None: ...
    def training(self, step: StepRecord) -> None: ...
    def epoch(self, epoch: EpochRecord, score: float) -> None: ...
    def close(self) -> None: ...


def search(out: Path, origin: Mapping[str, Any], settings: Mapping[str, Any], *, progress: Progress) -> Path:
    """A new run in `out`; returns its path."""
    RunDir.refuse_occupied(out)
    SearchConfig(**settings)  # wrong settings are found before anything is loaded
    return _run(out, dict(origin), settings, progress, resuming=False)


def resume(run_path: Path, *, progress: Progress) -> Path:
    """Go on with the run in `run_path`."""
    run = RunDir.open(run_path)
    config = _config_of(run, "call amc.compress(..., run_dir=..., resume=True) again")
    if run.has(rundir.SUMMARY):  # finished; what was fine-tuned since must stay
        with run.lock():
            render_report(run)
        return run_path
    settings = SearchConfig.from_json(config).to_json()
    return _run(run_path, config, settings, progress, resuming=True)


def _config_of(run: RunDir, remedy: str) -> dict[str, Any]:
    """The config.json of a run whose network and data can be built again by name."""
    config = run.config()
    if not config.get("model"):
        raise RunError(f"'{run.path}' was started from Python, with a network that has no name; {remedy}")
    return config


def _run(out: Path, origin: dict[str, Any], settings: Mapping[str, Any], progress: Progress, *, resuming: bool) -> Path:
    progress.stage("network and data")
    model, data = network_of(origin), data_of(origin)
    origin["input_shape"] = list(data.input_shape)
    example = torch.zeros(1, *data.input_shape)
    _check_fit(model, data, str(origin["model"]))
    agents = (*settings["baselines"], settings["agent"])
    progress.plan({name: int(settings["episodes"]) if name in ("ddpg", "random") else 1 for name in agents})
    try:
        compress(
            model,
            example,
            calibration=data.calibration.batches(BATCH),
            evaluate=_evaluate_of(origin, data),
            test=data.test if origin.get("test", True) else None,
            run_dir=out,
            resume=resuming,
            origin=origin,
            observer=Observer(progress.stage, progress.structure, progress.dense, progress.episode),
            **settings,
        )
    finally:
        progress.close()
    return out


def _evaluate_of(origin: Mapping[str, Any], data: DataSplits) -> Any:
    """The user's own function, or the search split for top-1 accuracy."""
    spec = origin.get("evaluate")
    return import_factory(str(spec), EvaluationError) if spec else data.search


def network_of(origin: Mapping[str, Any]) -> nn.Module:
    """The trained network a run is about: a zoo name or factory, and its weights."""
    spec = str(origin["model"])
    model = create_model(spec)
    info = model_info(spec)
    weights = origin.get("weights") or (info.weights if info else None)
    if weights:
        load_weights(model, Path(weights))
    elif info is not None:
        raise ModelError(f"'{spec}' has no built-in weights; give those of a trained network with --weights FILE")
    return model.eval()


def data_of(origin: Mapping[str, Any]) -> DataSplits:
    """The data set a run is about; a zoo network with its own data set needs none given."""
    info = model_info(str(origin["model"]))
    spec = origin.get("data") or (info.data if info else None)
    if not spec:
        raise DataError("no data set given; write --data cifar10:ROOT, imagefolder:ROOT or package.module:factory")
    return load_data(
        str(spec), search_images=origin.get("search_images"), image_size=int(origin.get("image_size") or 224)
    )


def _check_fit(model: nn.Module, data: DataSplits, name: str) -> None:
    """One forward pass on an example: a network for other images is found here."""
    try:
        with torch.inference_mode():
            model(torch.zeros(1, *data.input_shape))
    except Exception as error:  # whatever the user's forward raises
        shape = "x".join(map(str, data.input_shape))
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"'{name}' cannot take {shape} images of '{data.name}': {reason}; choose fitting data"
        ) from None


def inspect(
    spec: str,
    *,
    weights: Path | None,
    input_shape: str | None,
    keep_sets: int,
    lock: tuple[str, ...],
    only: tuple[str, ...],
) -> dict[str, Any]:
    """The structure of a network as a record: costs, groups, locks, certificate, reachable budgets."""
    model = create_model(spec)
    if weights:
        load_weights(model, weights)
    info = model_info(spec)
    shape = parse_shape(input_shape) if input_shape else (info.input_shape if info else None)
    if shape is None:
        raise ModelError(f"'{spec}' is your own network: give the shape of one example, such as --input 3x224x224")
    example = torch.zeros(1, *shape)
    structure = inspect_structure(model, example)
    if lock or only:
        structure = restrict(structure, lock=lock, only=only)
    certificate = None
    if keep_sets and structure.groups:
        structure, certificate = certify(model, structure, example, keep_sets=keep_sets)
    return structure_record(spec, shape, structure, certificate) | refitting_record(structure)


def parse_shape(text: str) -> tuple[int, ...]:
    """`3x224x224` -> (3, 224, 224)."""
    try:
        shape = tuple(int(part) for part in text.lower().replace(",", "x").split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise AmcError(f"input shape {text!r} is malformed; write 3x224x224")
    return shape


def structure_record(
    spec: str, shape: tuple[int, ...], structure: Structure, certificate: Certificate | None
) -> dict[str, Any]:
    least = np.array([keep_choices(group.size, None, MAX_SPARSITY)[0] for group in structure.groups], dtype=np.int64)
    return {
        "model": spec,
        "input": list(shape),
        "macs": structure.macs,
        "params": structure.params,
        "prunable_macs": structure.prunable_macs(),
        "least": {"macs": structure.cost.macs(least), "params": structure.cost.params(least)},
        "groups": [
            {
                "name": group.name,
                "size": group.size,
                "producers": [structure.layers[index].name for index in group.producers],
                "consumers": [structure.layers[index].name for index in group.consumers],
                "macs": sum(structure.layers[i].macs for i in {*group.producers, *group.consumers}),
            }
            for group in structure.groups
        ],
        "locked": [
            {"name": item.name, "size": item.size, "reason": str(item.lock), "source": item.lock.source}
            for item in structure.locked
        ],
        "certificate": None
        if certificate is None
        else {
            "keep_sets": certificate.keep_sets,
            "worst_error": certificate.worst_error,
            "passed": certificate.passed,
        },
    }


def refitting_record(structure: Structure) -> dict[str, Any]:
    """Which layers are refitted by least squares after a cut, and why the others are only sliced."""
    refitted, sliced = reconstructible(structure)
    return {
        "refitted": list(refitted),
        "only_sliced": [{"name": name, "reason": reason} for name, reason in sliced.items()],
    }


def finetune(run_path: Path, chosen: Mapping[str, Any], *, progress: Progress) -> Path:
    """Train the slim network of a finished search and add the outcome to its summary and report."""
    run = RunDir.open(run_path)
    if not run.has(rundir.SUMMARY):
        raise RunError(f"'{run.path}' has no finished search yet; run `amc resume {run.path}` first")
    config = _config_of(run, "train result.model with amc.recovery.finetune")
    settings = FineTuneConfig(**chosen)
    progress.stage("network and data")
    data = data_of(config)
    slim = load_run(run_path, finetuned=False)
    teacher = network_of(config) if settings.distill > 0 else None
    score = as_evaluator(_evaluate_of(config, data))
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


def demo(out: Path, *, episodes: int, seed: int, progress: Progress) -> Path:
    """Search and fine-tune the built-in network; an earlier demo in the same place is replaced."""
    torch.set_num_threads(1)  # in networks this small a second thread only gets in the way
    origin = {"command": "demo", "model": "digits_cnn", "weights": None, "data": "digits", "test": True}
    settings = SearchConfig(episodes=episodes, seed=seed, baselines=("uniform", "random"))
    if out.exists() and _is_demo(out):  # after the settings have been found right
        with RunDir.open(out).lock():  # not while another process is at it
            shutil.rmtree(out)
    search(out, origin, settings.to_json(), progress=progress)
    return finetune(out, {"epochs": 10, "seed": seed}, progress=progress)


def _is_demo(out: Path) -> bool:
    """Only what an earlier demo wrote may be removed."""
    try:
        return RunDir.open(out).config().get("command") == "demo"
    except RunError:
        return False
