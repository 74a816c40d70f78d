"""Where figures come from: the version of amc, the machine, the date."""

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


def amc_version() -> str:
    """The installed version."""
    try:
        return version("amc-compress")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"


def environment() -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "machine": platform.machine(),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def execution() -> dict[str, Any]:
    """What decides the last digits of a result besides the seed: versions, threads, and instruction set."""
    return {
        "amc": amc_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "instructions": instructions(),
    }


def difference(place: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """In what an earlier `execution` differs from this one, in words; None where it does not."""
    names = {"amc": "amc", "torch": "torch", "threads": "threads", "instructions": "instruction set"}
    other = [key for key in names if place.get(key) != here[key]]
    return "; ".join(f"{names[key]} {place.get(key)}, now {here[key]}" for key in other) or None


def instructions(proc: Path = Path("/proc")) -> str:
    """The instruction sets that kernels choose by: torch's own, those of the processor, and a limit on oneDNN's."""
    flags = set(_cpuinfo(proc).get("flags", _cpuinfo(proc).get("Features", "")).split())
    parts = [torch.backends.cpu.get_cpu_capability(), *(name for name in _DISPATCHED if name in flags)]
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
    return " ".join([*parts, *([f"oneDNN<={limit}"] if limit else [])])


# What oneDNN looks for, as Linux names it, on x86 and on Arm.
_DISPATCHED = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "sve", "bf16")


def data_fingerprint(data: Any) -> str:
    """SHA-256 of all tensors inside lists, tuples, mappings and dataclasses, in order, with their shapes and types.

    What they are inside of does not count, so that the digest of the same images outlives how they are passed around.
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
    """Name of the processor; on Arm boards, whose kernel does not say, the name of the board."""
    fields = _cpuinfo(proc)
    if fields.get("model name"):
        return fields["model name"]
    try:
        board = (proc / "device-tree" / "model").read_text(errors="replace").strip("\0 \n")
    except OSError:
        board = ""
    return board or fields.get("Hardware") or platform.processor() or platform.machine()


def _cpuinfo(proc: Path) -> dict[str, str]:
    """What Linux says of the first processor; empty elsewhere."""
    try:
        lines = (proc / "cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
