"""AMC: a reinforcement-learning agent decides, layer by layer, how much of a network to remove.

The method is He, Lin et al., "AMC: AutoML for Model Compression and Acceleration on Mobile Devices", ECCV 2018
(arXiv 1802.03494).
"""

from amc.compress import Result, compress
from amc.config import SearchConfig
from amc.errors import AmcError, BudgetError, DataError, EvaluationError, ModelError, RunError
from amc.job import Observer
from amc.methods import apply_policy
from amc.pruning import Policy
from amc.stored import load_run
from amc.structure import Structure, certify, count_macs, count_params, inspect

__all__ = [
    "AmcError",
    "BudgetError",
    "DataError",
    "EvaluationError",
    "ModelError",
    "Observer",
    "Policy",
    "Result",
    "RunError",
    "SearchConfig",
    "Structure",
    "apply_policy",
    "certify",
    "compress",
    "count_macs",
    "count_params",
    "inspect",
    "load_run",
]
