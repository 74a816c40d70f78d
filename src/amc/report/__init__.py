"""Reports of a run directory: tables for the terminal, and one HTML page."""

import os
from pathlib import Path

from amc.report.guarantee import Verdict, guarantee_verdict
from amc.report.page import open_run, render_run
from amc.report.schedule import RoundRow, render_schedule, schedule_rows
from amc.report.tables import (
    BudgetLine,
    SummaryRow,
    budget_lines,
    format_ratio,
    format_score,
    format_seconds,
    named_scores,
    summary_table,
)
from amc.report.words import metric_label, metric_of, words_of
from amc.run.directory import RunDir


def render_report(run: str | os.PathLike[str] | RunDir) -> Path:
    """Write RUN/report.html atomically and return its path. The page of a schedule covers all its rounds.

    The page of an unfinished search shows the episodes so far. Raises `RunError` if the directory is not a run or
    contains a damaged file.
    """
    directory = open_run(run)
    return render_schedule(directory) if directory.config().get("schedule") else render_run(directory)


__all__ = [
    "BudgetLine",
    "RoundRow",
    "SummaryRow",
    "Verdict",
    "budget_lines",
    "format_ratio",
    "format_score",
    "format_seconds",
    "guarantee_verdict",
    "metric_label",
    "metric_of",
    "named_scores",
    "render_report",
    "render_schedule",
    "schedule_rows",
    "summary_table",
    "words_of",
]
