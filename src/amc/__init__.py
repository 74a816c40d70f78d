"""AMC: a reinforcement-learning agent decides, layer by layer, how much of a network to remove.

    structure = amc.inspect(model, example)  # what can be pruned, and what is locked
    result = amc.compress(model, example, calibration=train, evaluate=search, budget="macs<=50%", run_dir="runs/mine")
    curve = amc.sweep(model, example, calibration=train, evaluate=search, start="80%", end="25%")  # many budgets
    amc.finetune(result.model, train, masks=result.masks, epochs=10)  # in place
    amc.export(result.model, example, "slim.onnx")  # checked against PyTorch
    amc.latency({"dense": model, "slim": result.model}, example)  # timed in alternation
    amc.compare(["runs/mine", "runs/other"], model, example, evaluate=search)  # which network to take

`amc.load_run` loads the network of a run, `amc.from_hub` one of the Hugging Face hub; `amc.apply_policy` applies a
policy to a network. The method is He, Lin et al., "AMC: AutoML for Model Compression and Acceleration on Mobile
Devices", ECCV 2018 (arXiv 1802.03494).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError, BudgetError, DataError, EvaluationError, ModelError, ResourceError, RunError

if TYPE_CHECKING:
    from amc.compression.compare import compare
    from amc.compression.finetuning import finetune
    from amc.compression.hub import from_hub
    from amc.compression.load import load_run
    from amc.compression.loggers import logger
    from amc.compression.observer import Observer
    from amc.compression.pipeline import Result, compress
    from amc.compression.settings import SearchConfig
    from amc.compression.sweep import Sweep, SweepPoint, sweep
    from amc.deploy.export import Export, export
    from amc.deploy.latencies import Latencies, latency
    from amc.pruning import Policy
    from amc.pruning.methods import apply_policy
    from amc.recovery import FineTuneResult, keep_zeros
    from amc.report.compare.compared import Compared
    from amc.run.settings import FineTuneConfig
    from amc.search import SearchResult
    from amc.structure import (
        Certificate,
        Group,
        Layer,
        Locked,
        Structure,
        certify,
        count_macs,
        count_params,
        inspect,
        operator_rule,
    )

# The verbs in the order of their use, what they take and return, the errors.
__all__ = [  # noqa: RUF022
    "inspect", "compress", "sweep", "finetune", "export", "latency", "compare", "load_run", "from_hub", "apply_policy",
    "certify", "count_macs", "count_params", "operator_rule", "logger", "keep_zeros",
    "Structure", "Group", "Layer", "Locked", "Certificate",
    "SearchConfig", "Observer", "Result", "Policy", "SearchResult",
    "Sweep", "SweepPoint", "FineTuneConfig", "FineTuneResult", "Export", "Latencies", "Compared",
    "AmcError", "BudgetError", "DataError", "EvaluationError", "ModelError", "ResourceError", "RunError",
    "__version__",
]  # fmt: skip

_NAMES = {
    "amc.compression.compare": "compare",
    "amc.compression.finetuning": "finetune",
    "amc.compression.hub": "from_hub",
    "amc.compression.load": "load_run",
    "amc.compression.loggers": "logger",
    "amc.compression.observer": "Observer",
    "amc.compression.pipeline": "Result compress",
    "amc.compression.settings": "SearchConfig",
    "amc.compression.sweep": "Sweep SweepPoint sweep",
    "amc.deploy.export": "Export export",
    "amc.deploy.latencies": "Latencies latency",
    "amc.pruning": "Policy",
    "amc.pruning.methods": "apply_policy",
    "amc.recovery": "FineTuneResult keep_zeros",
    "amc.report.compare.compared": "Compared",
    "amc.run.settings": "FineTuneConfig",
    "amc.search": "SearchResult",
    "amc.structure": "Certificate Group Layer Locked Structure certify count_macs count_params inspect operator_rule",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}


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
