"""AMC: a reinforcement-learning agent decides, layer by layer, how much of a network to remove.

The method is He, Lin et al., "AMC: AutoML for Model Compression and Acceleration on Mobile Devices", ECCV 2018
(arXiv 1802.03494).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError, BudgetError, DataError, EvaluationError, ModelError, ResourceError, RunError

if TYPE_CHECKING:
    from amc.compression.load import load_run
    from amc.compression.observer import Observer
    from amc.compression.pipeline import Result, compress
    from amc.compression.settings import SearchConfig
    from amc.pruning import Policy
    from amc.pruning.methods import apply_policy
    from amc.structure import Structure, certify, count_macs, count_params, inspect

_HOMES = {
    "Observer": "amc.compression.observer",
    "Policy": "amc.pruning",
    "Result": "amc.compression.pipeline",
    "SearchConfig": "amc.compression.settings",
    "Structure": "amc.structure",
    "apply_policy": "amc.pruning.methods",
    "certify": "amc.structure",
    "compress": "amc.compression.pipeline",
    "count_macs": "amc.structure",
    "count_params": "amc.structure",
    "inspect": "amc.structure",
    "load_run": "amc.compression.load",
}

__all__ = [
    "AmcError",
    "BudgetError",
    "DataError",
    "EvaluationError",
    "ModelError",
    "Observer",
    "Policy",
    "ResourceError",
    "Result",
    "RunError",
    "SearchConfig",
    "Structure",
    "__version__",
    "apply_policy",
    "certify",
    "compress",
    "count_macs",
    "count_params",
    "inspect",
    "load_run",
]


def __getattr__(name: str) -> Any:
    """Import what is used when it is used first: `amc --help` needs neither torch nor scipy."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("amc-compress")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'amc' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
