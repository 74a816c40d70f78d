"""Calibration, ranking, reconstruction, masks and policies: from keep counts to the pruned network."""

from amc.pruning.calibration import Calibration, calibrate, reconstructible
from amc.pruning.policy import GroupPolicy, LayerPolicy, Policy
from amc.pruning.pruner import Pruner

__all__ = ["Calibration", "GroupPolicy", "LayerPolicy", "Policy", "Pruner", "calibrate", "reconstructible"]
