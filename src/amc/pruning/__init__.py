"""Calibration, ranking, reconstruction and policies: from what to keep to the network that keeps it."""

from amc.pruning.calibration import Calibration, calibrate, reconstructible
from amc.pruning.policy import GroupPolicy, Policy
from amc.pruning.pruner import Pruner, apply_policy

__all__ = ["Calibration", "GroupPolicy", "Policy", "Pruner", "apply_policy", "calibrate", "reconstructible"]
