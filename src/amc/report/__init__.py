"""A run directory as tables and as one HTML page."""

from amc.report.page import render_report
from amc.report.tables import (
    BudgetLine,
    SummaryRow,
    budget_lines,
    format_count,
    format_score,
    format_seconds,
    summary_table,
)

__all__ = [
    "BudgetLine",
    "SummaryRow",
    "budget_lines",
    "format_count",
    "format_score",
    "format_seconds",
    "render_report",
    "summary_table",
]
