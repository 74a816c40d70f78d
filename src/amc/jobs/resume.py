"""`amc resume`."""

from __future__ import annotations

from pathlib import Path

from amc.jobs.progress import Progress
from amc.jobs.schedule import resume_schedule
from amc.jobs.search import resume_search
from amc.rundir import RunDir


def resume(run_path: Path, *, progress: Progress) -> Path:
    """Go on with the search, or the schedule of searches, in `run_path`."""
    scheduled = RunDir.open(run_path).config().get("schedule")
    return (resume_schedule if scheduled else resume_search)(run_path, progress=progress)
