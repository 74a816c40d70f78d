"""Where figures come from: the version of amc, the machine, the date."""

from __future__ import annotations

import datetime
import os
import platform
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


def processor(proc: Path = Path("/proc")) -> str:
    """Name of the processor; on Arm boards, whose kernel does not say, the name of the board."""
    try:
        lines = (proc / "cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    fields = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    if fields.get("model name"):
        return fields["model name"]
    try:
        board = (proc / "device-tree" / "model").read_text(errors="replace").strip("\0 \n")
    except OSError:
        board = ""
    return board or fields.get("Hardware") or platform.processor() or platform.machine()
