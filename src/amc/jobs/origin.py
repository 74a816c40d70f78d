"""From a run's config.json back to the network, the data and the score it is about."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amc.errors import DataError, EvaluationError, ModelError, RunError
from amc.judging import message_of
from amc.rundir import RunDir
from amc.stored import load_run
from amc.structure.copying import copy_model
from amc.zoo import DataSplits, create_model, load_data, load_weights, model_info
from amc.zoo._import import import_factory
from amc.zoo.preprocessing import Preprocessing, preprocessing_of

BATCH = 256  # images a calibration batch


def config_of(run: RunDir, remedy: str) -> dict[str, Any]:
    """The config.json of a run whose network and data can be built again by name."""
    config = run.config()
    if not config.get("model"):
        raise RunError(f"'{run.path}' was started from Python, with a network that has no name; {remedy}")
    return config


def network_of(origin: Mapping[str, Any], run_path: Path | None = None) -> nn.Module:
    """The trained network a run is about: a zoo name or factory, and its weights; or what another run came to.

    `origin["parent"]` is the path of that other run, from `run_path`.
    """
    if origin.get("parent"):
        return load_run(os.path.normpath((run_path or Path()) / str(origin["parent"])))  # run_path may not exist yet
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
    given = {name: origin[name] for name in ("search_images", "image_size") if origin.get(name) is not None}
    prepared = origin.get("preprocessing")
    return load_data(str(spec), **given, preprocessing=Preprocessing.from_json(prepared) if prepared else None)


def prepare_images_(origin: dict[str, Any], model: nn.Module) -> None:
    """Write into `origin` how the network wants an imagefolder's images, if it says so and nothing else is written.

    It is kept in the run's config.json: fine-tuning and resuming must prepare the images in the same way.
    """
    if origin.get("preprocessing") is None and str(origin.get("data")).startswith("imagefolder:"):
        found = preprocessing_of(model)
        if found is not None:
            origin["preprocessing"] = found.to_json()


def misfit(model: nn.Module, input_shape: Sequence[int]) -> str | None:
    """Why the network cannot take one example of this shape, in one line; None where it can: one forward pass tells."""
    try:
        with torch.inference_mode():
            copy_model(model)(torch.zeros(1, *input_shape))
    except Exception as error:  # whatever the user's forward raises
        return message_of(error)
    return None


def evaluate_of(origin: Mapping[str, Any], data: DataSplits) -> Any:
    """The user's own function, or the search split for top-1 accuracy."""
    spec = origin.get("evaluate")
    return import_factory(str(spec), EvaluationError) if spec else data.search
