"""`amc latency`: how long a network, or both networks of a run, take on a runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from amc.cli.jobs.inspect import example_shape
from amc.cli.jobs.kept import keep
from amc.cli.jobs.origin import data_of, deployed, misfit, network_of, source_of
from amc.compression.load import load_run
from amc.deploy.measure import MeasureSettings
from amc.deploy.tensors import inputs_of
from amc.deploy.timing import latency_record
from amc.errors import ModelError, RunError
from amc.run import files
from amc.run.directory import RunDir
from amc.run.settings import TimingConfig
from amc.structure import count_macs, count_params
from amc.zoo import create_model, load_weights


def run_latency(
    target: str,
    *,
    config: TimingConfig | None = None,
    weights: Path | None = None,
    input_shape: str | None = None,
    finetuned: bool = True,
) -> dict[str, Any]:
    """Time `target`: a run's dense and slim network in alternation, or one network by name.

    The record is that of `amc.deploy.timing` with `target`, and macs and params of every network. A run keeps it in its
    latency.json, for its report. With `config.device_url` (see `amc.deploy.device.remote.open_device`) another machine
    measures.
    """
    config = config or TimingConfig()
    measuring = MeasureSettings(rounds=config.rounds, precision=config.precision, max_seconds=config.max_seconds)
    networks, example, part = _networks(target, weights, input_shape, finetuned)
    options: dict[str, Any] = {
        "runtime": config.runtime, "threads": config.threads, "batch": config.batch, "half": config.half,
        "settings": measuring,
    }  # fmt: skip
    if config.device_url is None:
        record = latency_record(networks, example, **options)
    else:
        from amc.deploy.device.remote import latency_on, open_device

        token_file = None if config.token_file is None else Path(config.token_file)
        record = latency_on(open_device(config.device_url, token_file=token_file), networks, example, **options)
    for name, model in networks.items():
        costs = {"macs": count_macs(model, example), "params": count_params(model)}
        record["networks"][name] = costs | record["networks"][name]
    record = {"target": target, "input": list(inputs_of(example)[0].shape[1:])} | record
    if part is not None:
        record["part"] = part
    if "slim" in networks:
        place = config.device_url or "here"
        key = f"{config.runtime}, {config.threads} threads, batch {config.batch}, {record['precision']}, {place}"
        keep(RunDir.open(Path(target)), files.LATENCY, key, record, finetuned=finetuned)
    return record


def _networks(
    target: str, weights: Path | None, input_shape: str | None, finetuned: bool
) -> tuple[dict[str, nn.Module], Any, str | None]:
    """The networks to time, the dense one first, an example for them, and the name of the part that they are."""
    path = Path(target)
    if path.is_dir():
        run = RunDir.open(path)
        if weights is not None or input_shape is not None:
            raise RunError("a run has its own weights and input; leave --weights and --input out")
        source = source_of(run, "time result.model with amc.latency")
        size = source.input_shape or data_of(source).input_shape
        dense, slim = network_of(source, path), load_run(path, finetuned=finetuned)
        example: Any = torch.zeros(1, *size)
        slim, _, _ = deployed(run, slim, example)
        dense, example, part = deployed(run, dense, example)
        return {"dense": dense, "slim": slim}, example, part
    if path.is_absolute() or "/" in target.partition(":")[0]:
        raise RunError(f"no run directory '{target}'; give the directory of a run, or the name of a network")
    try:
        model = create_model(target)
    except ModelError as error:
        if ":" in target:
            raise
        raise ModelError(f"'{target}' is neither the directory of a run nor a network: {error}") from error
    if weights is not None:  # latency does not depend on them
        load_weights(model, weights)
    shape = example_shape(target, input_shape)
    example = torch.zeros(1, *shape)
    reason = misfit(model.eval(), shape)
    if reason is not None:  # refused before an exporter runs
        one = "x".join(map(str, shape))
        raise ModelError(f"'{target}' cannot take one input of {one}: {reason}; change --input")
    return {"dense": model}, example, None
