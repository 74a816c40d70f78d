"""The settings of the jobs: each option of the command line is one field here, or of `SearchConfig`.

Imports neither torch nor NumPy, so that the command line can show its help without them.
"""

from amc.run.settings.durations import format_duration, parse_duration
from amc.run.settings.finetuning import CandidateConfig, FineTuneConfig, OptimiserName, PrecisionName, SessionConfig
from amc.run.settings.given import Given, from_keywords
from amc.run.settings.limits import CONFIDENCE, MAX_SPARSITY, MAX_SPARSITY_LINEAR, Ranking
from amc.run.settings.options import Option, Panel, argument, option, options_of
from amc.run.settings.rounds import ScheduleConfig, parse_schedule
from amc.run.settings.source import Source
from amc.run.settings.spelling import spelled
from amc.run.settings.study import StudyConfig
from amc.run.settings.timing import TimingConfig
from amc.run.settings.types import MAX_SEED, check_rules, convert_types_

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
    "StudyConfig",
    "TimingConfig",
    "argument",
    "check_rules",
    "convert_types_",
    "format_duration",
    "from_keywords",
    "option",
    "options_of",
    "parse_duration",
    "parse_schedule",
    "spelled",
]
