"""Describes the machine of a measurement, without which a latency means nothing.

The description does not identify a person or a host.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from typing import Any

from amc.run.provenance import processor

_STABLE = ("cpu", "architecture", "cores", "system")


def describe() -> dict[str, Any]:
    """Processor, cores that this process may use, system, and the machine's recent load."""
    return {
        "cpu": processor(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "system": platform.system(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),  # number of runnable processes, mean of the last minute
    }


def busy(machine: Mapping[str, Any], threads: int) -> bool:
    """Whether other processes were more than the cores that a measurement with `threads` threads leaves free.

    The load includes the measuring process itself, which converted networks in that minute.
    """
    return bool(machine["load"] - 1 > machine["cores"] - threads)


def key(machine: Mapping[str, Any]) -> str:
    """A hash of the kind of machine, 16 hexadecimal digits; measured tables are stored under it."""
    text = json.dumps({name: machine[name] for name in _STABLE}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
