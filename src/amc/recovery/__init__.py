"""Fine-tuning a pruned network: schedules, distillation, averaging, enforced masks, exact resume.

The result is the network after the last epoch, or its moving average. It is never the best of several epochs: that
choice would need a split of its own.
"""

from amc.recovery.checkpoint import ResumePoint, resume_point
from amc.recovery.data import ShareableTrainingSet, TrainingSet
from amc.recovery.masks import keep_zeros
from amc.recovery.optimiser import learning_rate
from amc.recovery.records import EpochRecord, FineTuneResult, StepRecord
from amc.recovery.train import DivergenceError, finetune
from amc.run.settings import FineTuneConfig

__all__ = [
    "DivergenceError",
    "EpochRecord",
    "FineTuneConfig",
    "FineTuneResult",
    "ResumePoint",
    "ShareableTrainingSet",
    "StepRecord",
    "TrainingSet",
    "finetune",
    "keep_zeros",
    "learning_rate",
    "resume_point",
]
