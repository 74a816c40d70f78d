"""Writes the page of one search: RUN/report.html.

The page is one file that works offline and without scripts. The template engine escapes all text from the run.
"""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from amc.report import sections
from amc.report.answers import answers_of
from amc.report.figures import is_percent
from amc.report.finalists import finalists_sentence
from amc.report.guarantee import guarantee_verdict
from amc.report.pruned_part import part_sentence
from amc.report.record import RunRecord, load_record
from amc.report.stopping import stop_sentence
from amc.report.tables import budget_lines, format_bytes, part_of, records_of, summary_table
from amc.report.words import words_of
from amc.run import files
from amc.run.directory import RunDir

_SHOWN_FAILURES = 20
_SHOWN_LOCKS = 12


def render_run(run: RunDir, *, now: str = "", refresh: int | None = None) -> Path:
    """Write the page of one search atomically and return its path; `now` and `refresh` as in `render_report`."""
    run.write_text(files.REPORT, render_page(load_record(run), now=now, refresh=refresh))
    return run.file(files.REPORT)


def open_run(run: str | os.PathLike[str] | RunDir) -> RunDir:
    """The run directory at a path, or the argument itself if it is one. Raises `RunError` if there is none."""
    return run if isinstance(run, RunDir) else RunDir.open(run)


def render_page(record: RunRecord, *, now: str = "", refresh: int | None = None) -> str:
    """The page of one search as HTML text; `now` and `refresh` as in `render_report`."""
    return render_template("report.html.j2", _context(record), now=now, refresh=refresh)


def render_template(name: str, context: Mapping[str, object], *, now: str = "", refresh: int | None = None) -> str:
    """Render one of this package's templates, with the style sheet; `now` and `refresh` as in `render_report`."""
    environment = Environment(
        loader=PackageLoader("amc.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    loader = environment.loader
    assert loader is not None
    style = loader.get_source(environment, "report.css")[0]
    return environment.get_template(name).render(style=Markup(style), now=now, refresh=refresh, **context)


def _repeat(record: RunRecord, summary: Mapping[str, Any]) -> list[str]:
    """The commands that do the same again in a directory NEW; none for a run that a Python program began."""
    command = record.config.get("repeat")
    if not command:
        return []
    training = part_of(summary, "finetuning").get("repeat")
    whole = not command.startswith("amc search") or "--schedule" in command  # such a command fine-tunes by itself
    return [f"{command} --out NEW", *([training] if training and not whole else [])]


def _context(record: RunRecord) -> dict[str, object]:
    summary = {**record.config, **record.summary}  # the summary's keys override those of the configuration
    rows = summary_table(summary) if record.summary else []
    locked = records_of(summary.get("locked"))
    dense, slim = part_of(summary, "dense"), part_of(summary, "slim")
    return {
        "record": record,
        "words": words_of(summary.get("method")),
        "title": sections.title_of(summary),
        "subtitle": sections.subtitle(summary),
        "stopped": stop_sentence(summary),
        "pruned_part": part_sentence(summary),
        "finished": bool(record.summary),
        "tiles": sections.tiles(dense, slim, percent=is_percent(record)) if record.summary else [],
        "budgets": budget_lines(summary),
        "verdict": guarantee_verdict(summary),
        "trials": sections.trial_rows(record),
        "warnings": [str(warning) for warning in summary.get("warnings") or ()],
        "rows": rows,
        "finetuned": any(row.finetuned for row in rows),
        "tested": any("test split" in row.quantity for row in rows),
        "recovered": slim.get("score_recovered") is not None,
        **sections.curves(record),
        "best": sections.best_rows(record),
        "finalists": sections.finalist_rows(record),
        "finalists_text": finalists_sentence(summary),
        "candidates": sections.candidate_rows(record),
        "has_uniform": any(group.uniform is not None for group in record.groups),
        "certificate": sections.certificate_text(summary.get("certificate")),
        "locked": locked[:_SHOWN_LOCKS],
        "locked_left": max(0, len(locked) - _SHOWN_LOCKS),
        "failures": record.failed[:_SHOWN_FAILURES],
        "failures_left": max(0, len(record.failed) - _SHOWN_FAILURES),
        "times": sections.time_rows(record.seconds),
        "files": [(name, format_bytes(size)) for name, size in record.files],
        "latencies": sections.latency_rows(record),
        "exports": sections.export_rows(record),
        **sections.training(record),
        "savings": sections.savings(record),
        "answers": answers_of(record.answers, finetuned=slim.get("test_finetuned") is not None),
        "repeat": _repeat(record, summary),
        "settings": sections.plain_items(record.config),
        "machine": sections.plain_items(summary.get("environment")),
        "python_path": json.dumps(record.path, ensure_ascii=False),
        "shell_path": shlex.quote(record.path),
        "agent": str(summary.get("agent") or "search"),
    }
