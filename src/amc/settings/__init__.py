"""The settings of the jobs: each option of the command line is one field here, or one of `amc.config.SearchConfig`.

Imports neither torch nor NumPy, so that the command line can show its help without them.
"""

from amc.settings.finetuning import CandidateConfig, FineTuneConfig, OptimiserName, PrecisionName, SessionConfig
from amc.settings.given import Given
from amc.settings.limits import CONFIDENCE, MAX_SPARSITY, MAX_SPARSITY_LINEAR, Ranking
from amc.settings.options import Option, Panel, argument, option, options_of
from amc.settings.rounds import ScheduleConfig, parse_schedule
from amc.settings.source import Source
from amc.settings.timing import TimingConfig
from amc.settings.types import MAX_SEED, settle_types_

__all__ = [
    "CONFIDENCE",
    "MAX_SEED",
    "MAX_SPARSITY",
    "MAX_SPARSITY_LINEAR",
    "CandidateConfig",
    "FineTuneConfig",
    "Given",
    "OptimiserName",
    "Option",
    "Panel",
    "PrecisionName",
    "Ranking",
    "ScheduleConfig",
    "SessionConfig",
    "Source",
    "TimingConfig",
    "argument",
    "option",
    "options_of",
    "parse_schedule",
    "settle_types_",
]
