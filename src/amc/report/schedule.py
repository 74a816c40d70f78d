"""Writes the page of a schedule, RUN/report.html: all rounds, with links to their own pages."""

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from amc.report import sections
from amc.report.charts.drawing import NARROW, WIDE
from amc.report.charts.rounds import RoundPoint, RoundsCurve, describe_rounds, rounds_chart
from amc.report.page import open_run, render_template
from amc.report.tables import (
    DASH,
    format_bytes,
    format_count,
    format_ratio,
    format_score,
    named_scores,
    part_of,
    records_of,
    scores_are_fractions,
)
from amc.report.words import metric_label, metric_of, words_of
from amc.run import files
from amc.run.directory import RunDir

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+")  # a directory inside the run, not a path or an address


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One round as text. Costs and scores of an unfinished round are dashes."""

    number: int
    asked: str  # requested share of the dense cost
    macs: str
    params: str
    size: str
    pruned: str  # score on the search split after the search
    tuned: str  # score on the search split after fine-tuning
    test: str  # score on the test split of the round's last network
    link: str  # relative address of the round's own page; "" if absent


def render_schedule(run: str | os.PathLike[str] | RunDir, *, now: str = "", refresh: int | None = None) -> Path:
    """Write the page of a schedule atomically and return its path.

    The page of an unfinished schedule shows the rounds so far. Raises `RunError` if the directory is not a run or
    contains a damaged file. `now` and `refresh` as in `render_report`.
    """
    directory = open_run(run)
    config = directory.config()
    summary = directory.read_json(files.SUMMARY) if directory.has(files.SUMMARY) else {}
    page = render_template("schedule.html.j2", _context(directory, config, summary), now=now, refresh=refresh)
    directory.write_text(files.REPORT, page)
    return directory.file(files.REPORT)


def schedule_rows(summary: Mapping[str, Any], run: RunDir | None = None) -> list[RoundRow]:
    """One row per planned round. Links only to pages that exist in `run`."""
    summary = named_scores(summary)
    percent, dense = scores_are_fractions(summary), part_of(summary, "dense")
    planned = summary.get("schedule") or ()
    return [
        _row(number, fraction, round_ or {}, dense, run, percent=percent)
        for number, (fraction, round_) in enumerate(zip_longest(planned, records_of(summary.get("rounds"))), start=1)
    ]


def _row(
    number: int,
    fraction: float | None,
    result: Mapping[str, Any],
    dense: Mapping[str, Any],
    run: RunDir | None,
    *,
    percent: bool,
) -> RoundRow:
    asked = result.get("fraction", fraction)
    test = result.get("test_finetuned", result.get("test"))
    return RoundRow(
        number=number,
        asked=DASH if asked is None else f"{asked:.0%}",
        macs=format_ratio(dense.get("macs"), result.get("macs")),
        params=format_ratio(dense.get("params"), result.get("params")),
        size=format_bytes(result.get("size")),
        pruned=format_score(result.get("score"), percent=percent),
        tuned=format_score(result.get("score_finetuned"), percent=percent),
        test=format_score(test, percent=percent),
        link=_link(run, str(result.get("run") or f"round-{number}")),
    )


def _link(run: RunDir | None, name: str) -> str:
    exists = run is not None and _PLAIN_NAME.fullmatch(name) and run.has(f"{name}/{files.REPORT}")
    return f"{name}/{files.REPORT}" if exists else ""


def _context(run: RunDir, config: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, object]:
    summary = named_scores({**config, **results})
    percent, dense = scores_are_fractions(summary), part_of(summary, "dense")
    rounds, planned = records_of(summary.get("rounds")), summary.get("schedule") or ()
    curve = _curve(rounds, dense, metric_of(summary), percent=percent)
    return {
        "title": sections.title_of(summary),
        "fallback": str(run.path),
        "subtitle": _subtitle(summary, planned),
        "words": words_of(summary.get("method")),
        "done": len(rounds),
        "planned": len(planned),
        "tiles": sections.tiles(dense, rounds[-1], percent=percent) if rounds else [],
        "dense": {
            "macs": format_count(dense.get("macs")),
            "params": format_count(dense.get("params")),
            "size": format_bytes(dense.get("size")),
            "score": format_score(dense.get("score"), percent=percent),
            "test": format_score(dense.get("test"), percent=percent),
        },
        "rows": schedule_rows(summary, run),
        "charts": [rounds_chart(curve, WIDE, name="rounds-wide"), rounds_chart(curve, NARROW, name="rounds-narrow")],
        "chart_text": describe_rounds(curve),
        "settings": sections.plain_items(config),
        "machine": sections.plain_items(summary.get("environment")),
        "python_path": json.dumps(str(run.path), ensure_ascii=False),
        "shell_path": shlex.quote(str(run.path)),
    }


def _subtitle(summary: Mapping[str, Any], planned: Sequence[float]) -> str:
    shares = ", ".join(f"{fraction:.0%}" for fraction in planned)
    parts = [f"{summary.get('method') or ''} pruning in {len(planned)} rounds, to {shares}".strip()]
    parts += [f"{summary['episodes']} episodes a round"] if summary.get("episodes") is not None else []
    parts += [f"seed {summary['seed']}"] if summary.get("seed") is not None else []
    return ", ".join(parts)


def _curve(rounds: Sequence[Mapping[str, Any]], dense: Mapping[str, Any], metric: str, *, percent: bool) -> RoundsCurve:
    whole = dense.get(metric)
    points = [
        RoundPoint(number, result[metric] / whole, result.get("score"), result.get("score_finetuned"))
        for number, result in enumerate(rounds, start=1)
        if whole and result.get(metric)
    ]
    return RoundsCurve(points, dense.get("score"), metric_label(metric), percent)
