"""The origin of figures: the version of amc, the machine, the date; and fingerprints of data."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import os
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from amc.run.cores import usable_cores

CPU = torch.device("cpu")


def amc_version() -> str:
    """The installed version."""
    try:
        return version("amc-compress")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"


def environment(device: torch.device = CPU) -> dict[str, Any]:
    """The machine, the versions and the date, for reports. `device`: where the networks ran."""
    return {
        "machine": platform.machine(),
        "cpu": processor(),
        "cores": usable_cores(),
        **gpu(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def gpu(device: torch.device) -> dict[str, str]:
    """The name of a GPU, as an entry of the records here; empty for the CPU."""
    return {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}


def execution(device: torch.device = CPU) -> dict[str, Any]:
    """The versions, threads, instruction set and GPU: besides the seed, they decide the last digits of a result."""
    return {
        "amc": amc_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "instructions": instructions(),
        **gpu(device),
    }


def difference(place: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """The differences between an earlier `execution` and this one, in words; None if they are equal."""
    names = {key: key for key in ("amc", "torch", "threads", "engine")}
    names |= {"instructions": "instruction set", "gpu": "GPU"}
    place, here = ({"engine": "torch", "gpu": "none", **each} for each in (place, here))
    other = [key for key in names if place.get(key) != here[key]]
    return "; ".join(f"{names[key]} {place.get(key)}, now {here[key]}" for key in other) or None


def instructions(proc: Path = Path("/proc")) -> str:
    """The instruction sets that decide the choice of kernels: torch's, the processor's, and oneDNN's limit."""
    flags = set(_cpuinfo(proc).get("flags", _cpuinfo(proc).get("Features", "")).split())
    parts = [torch.backends.cpu.get_cpu_capability(), *(name for name in _DISPATCHED if name in flags)]
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
    return " ".join([*parts, *([f"oneDNN<={limit}"] if limit else [])])


# The instruction sets that oneDNN checks for on x86 and Arm, by their names in Linux.
_DISPATCHED = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "sve", "bf16")


def data_fingerprint(data: Any) -> str:
    """SHA-256 of all tensors inside lists, tuples, mappings and dataclasses, in order, with their shapes and types.

    The containers do not change the digest: the same images in a list or in a tuple have the same digest.
    """
    digest = hashlib.sha256()
    for tensor in _tensors(data):
        digest.update(f"{tensor.dtype} {list(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensors(data: Any) -> Iterator[torch.Tensor]:
    if isinstance(data, torch.Tensor):
        yield data
    elif isinstance(data, Mapping):
        for key in sorted(data, key=str):
            yield from _tensors(data[key])
    elif isinstance(data, list | tuple):
        for value in data:
            yield from _tensors(value)
    elif dataclasses.is_dataclass(data):
        for field in dataclasses.fields(data):
            yield from _tensors(getattr(data, field.name))


def processor(proc: Path = Path("/proc")) -> str:
    """The name of the processor or, on Arm boards whose kernel does not report it, of the board."""
    fields = _cpuinfo(proc)
    if fields.get("model name"):
        return fields["model name"]
    try:
        board = (proc / "device-tree" / "model").read_text(errors="replace").strip("\0 \n")
    except OSError:
        board = ""
    return board or fields.get("Hardware") or platform.processor() or platform.machine()


def _cpuinfo(proc: Path) -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo; empty on other systems than Linux."""
    try:
        lines = (proc / "cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
