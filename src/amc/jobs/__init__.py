"""What the commands do: they load the network and the data by name, and call the library. Prints nothing."""

from amc.jobs.finetune import finetune
from amc.jobs.inspect import inspect
from amc.jobs.origin import BATCH, data_of, network_of
from amc.jobs.resume import resume
from amc.jobs.schedule import Rounds, schedule
from amc.jobs.search import demo, free_place, search
from amc.jobs.stopped import left_in
from amc.settings import parse_schedule

__all__ = [
    "BATCH",
    "Rounds",
    "data_of",
    "demo",
    "finetune",
    "free_place",
    "inspect",
    "left_in",
    "network_of",
    "parse_schedule",
    "resume",
    "schedule",
    "search",
]
