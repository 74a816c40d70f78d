"""Reports of a run directory: tables for the terminal, and one HTML page."""

import os
from pathlib import Path

from amc.run.directory import RunDir


def render_report(run: str | os.PathLike[str] | RunDir, *, now: str = "", refresh: int | None = None) -> Path:
    """Write RUN/report.html atomically and return its path.

    now: what the run is doing, for the top of the page. refresh: seconds after which the browser loads the page again.

    The page of a schedule covers all its rounds, that of a sweep all its points, that of a study all its cells.

    The page of an unfinished search shows the episodes so far. Raises `RunError` if the directory is not a run or
    contains a damaged file.
    """
    from amc.report.page import open_run, render_run  # here: a search needs the page's templates at its end only
    from amc.report.schedule import render_schedule
    from amc.report.study import render_study
    from amc.report.sweep import render_sweep

    directory = open_run(run)
    config = directory.config()
    renderers = {"study": render_study, "sweep": render_sweep, "schedule": render_schedule}
    render = next((render for kind, render in renderers.items() if config.get(kind)), render_run)
    return render(directory, now=now, refresh=refresh)
