"""The machine that a measurement was taken on: a figure without it means nothing.

Says nothing that identifies a person or a host.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from typing import Any

from amc.provenance import processor

_STABLE = ("cpu", "architecture", "cores", "system")


def describe() -> dict[str, Any]:
    """Processor, cores this process may use, system, and how busy the machine was just before."""
    return {
        "cpu": processor(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "system": platform.system(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),  # processes that wanted to run, mean of the last minute
    }


def busy(machine: Mapping[str, Any], threads: int) -> bool:
    """Whether more processes wanted to run than there are cores beside the `threads` of a measurement.

    One of them is the process that measures, which was converting networks in that minute.
    """
    return bool(machine["load"] - 1 > machine["cores"] - threads)


def key(machine: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that are the same for the same kind of machine: measured tables are kept under it."""
    text = json.dumps({name: machine[name] for name in _STABLE}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
