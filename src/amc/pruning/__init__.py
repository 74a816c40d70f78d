"""Calibration, ranking, reconstruction, masks and policies: from what to keep to the network that keeps it."""

from amc.pruning.calibration import Calibration, calibrate, reconstructible
from amc.pruning.policy import GroupPolicy, LayerPolicy, Policy
from amc.pruning.pruner import Pruner

__all__ = ["Calibration", "GroupPolicy", "LayerPolicy", "Policy", "Pruner", "calibrate", "reconstructible"]
