"""Measures this host's networks on a device: the implementation of `--device-url`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from torch import nn

from amc.deploy.device.adb import Adb, AndroidDevice
from amc.deploy.device.client import DeviceClient
from amc.deploy.device.parts import joined, split
from amc.deploy.device.protocol import DTYPE_BYTES, Device, DeviceError, Model, Request, TensorSpec, check_threads
from amc.deploy.device.token import find_token
from amc.deploy.export import write_checked
from amc.deploy.extras import MissingExtraError
from amc.deploy.formats import Format
from amc.deploy.measure import MeasureSettings
from amc.deploy.runtimes import get_runtime
from amc.deploy.tensors import Tensors, inputs_of, random_like, taking_tensors, with_batch
from amc.deploy.timing import format_for


def open_device(url: str, *, token_file: Path | None = None) -> Device:
    """The device at `http://HOST:PORT`, or the phone at `adb://SERIAL/PATH/OF/PROGRAM` (SERIAL is optional).

    The device server's token is read from the file, or from AMC_DEVICE_TOKEN. `DeviceError` for any other URL.
    """
    if not url.startswith("adb:"):
        return DeviceClient(url, find_token(token_file))
    rule = f"device URL '{url}' must look like adb://SERIAL/data/local/tmp/benchmark_model"
    try:
        parts = urlsplit(url)
    except ValueError:
        raise DeviceError(rule) from None
    program = unquote(parts.path)
    if not program.strip("/"):
        raise DeviceError(rule)
    return AndroidDevice(program, adb=Adb(unquote(parts.netloc) or None))


def latency_on(
    device: Device,
    networks: Mapping[str, nn.Module],
    example_input: Any,
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    batch: int = 1,
    half: bool = False,
    settings: MeasureSettings | None = None,
    version: str | None = None,
) -> dict[str, Any]:
    """Like `amc.deploy.timing`, on the device. `version`: required version of its runtime; None: any.

    If the runtime is installed on this host too, the files are checked against PyTorch before they are sent. The
    record's `checked_with` is then the runtime and its version, else None. Networks that are too large for one request
    are sent in several; each request contains the first network.
    """
    if get_runtime(runtime).trusted_only:
        raise DeviceError(f"runtime '{runtime}' cannot be measured on a device: its files can carry code")
    chosen = format_for(runtime, threads=threads, batch=batch, half=half)
    check_threads(threads)
    inputs = random_like(with_batch(inputs_of(example_input), batch))
    checked_with = _version_here(runtime)
    files = [
        _files(chosen, taking_tensors(module, example_input), inputs, half=half, check=checked_with is not None)
        for module in networks.values()
    ]
    specs = tuple(TensorSpec(tuple(value.shape), _dtype(value.dtype)) for value in inputs)
    models = tuple(
        Model(name, specs, tuple(len(data) for data in parts)) for name, parts in zip(networks, files, strict=True)
    )
    request = Request(runtime, models, version, threads, half, settings or MeasureSettings())
    parts = split(request, files, device.describe().body_bytes, beside_first=True)
    return joined([device.measure(*part) for part in parts]) | {"batch": batch, "checked_with": checked_with}


def _version_here(runtime: str) -> str | None:
    try:
        return f"{runtime} {get_runtime(runtime).version()}"
    except MissingExtraError:
        return None


def _files(chosen: Format, module: nn.Module, inputs: Tensors, *, half: bool, check: bool) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"model{suffix}") for suffix in chosen.suffixes]
        if check:
            write_checked(chosen, module, inputs, paths, {"random": inputs}, half=half, dynamic=False)
        else:
            chosen.write(module, inputs, paths, dynamic=False, half=half)
        return [path.read_bytes() for path in paths]


def _dtype(dtype: object) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPE_BYTES:
        raise DeviceError(f"a device cannot be sent inputs of type {name}; use one of {', '.join(DTYPE_BYTES)}")
    return name
