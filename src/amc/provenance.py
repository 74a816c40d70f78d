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
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
