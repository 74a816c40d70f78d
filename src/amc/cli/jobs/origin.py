"""From the names in a `Source` to the network, the data and the score."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amc.cli.jobs.devices import placed
from amc.compression.load import load_run, settings_of
from amc.errors import DataError, EvaluationError, ModelError, RunError, message_of
from amc.run.directory import RunDir
from amc.run.settings import Source
from amc.structure.batches import layout_for
from amc.structure.copying import copy_model
from amc.structure.modes import device_of
from amc.structure.part import Part
from amc.structure.trace import Example
from amc.zoo import DataSplits, create_model, load_data, load_weights, model_info
from amc.zoo._import import import_factory
from amc.zoo.preprocessing import Preprocessing, preprocessing_of

BATCH = 256  # images a calibration batch


def source_of(run: RunDir, remedy: str) -> Source:
    """The network and the data of a run, by name. Raises RunError, with `remedy`, if the network has no name."""
    config = run.config()
    if not config.get("model"):
        raise RunError(f"'{run.path}' was started from Python, with a network that has no name; {remedy}")
    return Source.from_json(config)


def network_of(source: Source, run_path: Path | None = None) -> nn.Module:
    """The trained network that the source names: a zoo network, a factory's, or the result of the run `source.parent`.

    The path of that run is relative to `run_path`.
    """
    if source.parent:
        return load_run(os.path.normpath((run_path or Path()) / source.parent))  # run_path may not exist yet
    if source.pretrained and source.weights:
        raise ModelError("pretrained and weights name two sets of weights; leave one out")
    model = create_model(source.model, pretrained=source.pretrained)
    info = None if source.pretrained else model_info(source.model)
    weights = source.weights or (info.weights if info else None)
    if weights:
        load_weights(model, Path(weights))
    elif info is not None:
        raise ModelError(
            f"'{source.model}' has no built-in weights; give those of a trained network with --weights FILE"
            + " or --pretrained" * (":" in source.model)
        )
    return model.eval()


def placed_network(source: Source, run_path: Path | None = None) -> nn.Module:
    """The network of `network_of`, on the device that the source asks for."""
    return placed(network_of(source, run_path), source.device, own_score=source.evaluate is not None)


def deployed(run: RunDir, network: nn.Module, example: Any) -> tuple[nn.Module, Any, str | None]:
    """What a file or a runtime gets of a run's network, an example for it, and the name of the part that it is.

    Only the part of a network that was pruned alone: the rest of such a network can often not be exported.
    """
    name = settings_of(run).part
    if name is None:
        return network, example, None
    part = Part.of(network, example, name)
    return part.module, part.example, name


def data_of(source: Source) -> DataSplits:
    """The data set of the source; by default that of its zoo network."""
    info = model_info(source.model)
    spec = source.data or (info.data if info else None)
    if not spec:
        raise DataError("no data set given; write --data cifar10:ROOT, imagefolder:ROOT or package.module:factory")
    given = {"search_images": source.search_images, "image_size": source.image_size}
    prepared = source.preprocessing
    return load_data(
        spec,
        **{name: count for name, count in given.items() if count is not None},
        preprocessing=Preprocessing.from_json(prepared) if prepared else None,
    )


def with_preprocessing(source: Source, model: nn.Module) -> Source:
    """The source with the preprocessing that the network needs, if an imagefolder has no other one yet.

    The run's config.json keeps it: fine-tuning and resuming must prepare the images in the same way.
    """
    if source.preprocessing is not None or not str(source.data).startswith("imagefolder:"):
        return source
    wanted = preprocessing_of(model)
    return source if wanted is None else replace(source, preprocessing=wanted.to_json())


def misfit(model: nn.Module, input_shape: Sequence[int]) -> str | None:
    """The reason, in one line, why a forward pass on one example of this shape fails; None if it runs."""
    try:
        with torch.inference_mode():
            copy_model(model)(torch.zeros(1, *input_shape, device=device_of(model)))
    except Exception as error:  # whatever the user's forward raises
        return message_of(error)
    return None


def fitting(data: DataSplits, model: nn.Module) -> DataSplits:
    """The data in the memory format that the network takes. Channels-last, in which it comes, is faster."""
    network = copy_model(model).eval()
    example = Example.of(torch.zeros(2, *data.input_shape, device=device_of(network)))
    layout = layout_for(network, lambda inputs: network(*inputs.args), example)
    return data if layout == torch.channels_last else data.contiguous()


def evaluate_of(source: Source, data: DataSplits) -> Any:
    """The user's own function, or the search split for top-1 accuracy."""
    return import_factory(source.evaluate, EvaluationError) if source.evaluate else data.search
